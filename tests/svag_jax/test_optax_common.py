"""optax's own common tests of contributed optimizers, run on svag's optimizers."""

import pytest

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

from .optax_tests import load

ContribTest = load("contrib/_common_test.py").ContribTest
