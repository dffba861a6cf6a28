"""The noise of stochastic rounding in the compiled loop, as :mod:`svag.optim.rounding` draws it."""

from typing import Final

import numpy as np

from svag.compiled.machine_code import compiled

LOW: Final = np.uint32(0xFFFF)

NEXT: Final = np.uint32(0x9E3779B9)
"""From the count of one element to the next one's: 2^32 over the golden ratio, which spreads what
is mixed better than counting by 1."""


@compiled
def mix(x):
    """Mix 32 bits (Wellons' lowbias32), for noise that needs no state and no order."""
    x = np.uint32(np.uint32(x ^ np.uint32(x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(np.uint32(x ^ np.uint32(x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@compiled
def key(seed, stream, step):
    """Return where the noise of one tensor and step starts."""
    mixed = mix(np.uint32(mix(np.uint32(seed)) + np.uint32(stream)))
    return mix(np.uint32(mixed + np.uint32(step)))
