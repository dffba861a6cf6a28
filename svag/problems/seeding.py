"""Seeds the global generators of random numbers that a user's code may draw from."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed ``random``, ``numpy.random`` and torch (all devices) for the whole process.

    It cannot seed a user's own ``numpy.random.default_rng()``, which needs a seed of its own.

    Args:
        seed: any integer from -2^63 to 2^64 - 1; NumPy gets its lowest 32 bits.

    Example:
        >>> seed_everything(3)
        >>> first = random.random()
        >>> seed_everything(3)
        >>> random.random() == first
        True
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is what is to be seeded
    torch.manual_seed(seed)
