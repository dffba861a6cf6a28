"""Follows which example each row of a tensor belongs to, through every operation.

Importing the package registers the rules of all its files.
"""

from svag.variance.per_example.owners import (  # noqa: F401 - each registers its rules
    elementwise,
    indexing,
    joining,
    layers,
    linear_algebra,
    losses,
    products,
    reductions,
    views,
    writing,
)
