"""Every generator of random numbers that a user's code may draw from without saying so."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed ``random``, ``numpy.random`` and torch (all devices) for the whole process.

    A ``numpy.random.default_rng()`` of the user's own is out of reach: it has to be given a seed.

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
