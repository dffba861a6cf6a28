"""Runs along given gradients at a parameter that stays where it is, with a monitor."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optim.cases import give
from torch import nn

from svag import Monitor

Make = Callable[..., torch.optim.Optimizer]


def drawn(mean: Any, std: Any, steps: int, seed: int = 0) -> NDArray[np.float64]:
    """Independent Gaussian gradients, of shape (steps, d)."""
    noise = np.random.default_rng(seed).standard_normal((steps, len(np.atleast_1d(mean))))
    return np.asarray(mean + std * noise)


def watched(
    make: Make, gradients: NDArray[np.float64], variances: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """All records of a run along these gradients; the parameter stays where it is."""
    param = nn.Parameter(torch.zeros(gradients.shape[1], dtype=torch.float64))
    optimizer = make([param])
    records: list[dict[str, Any]] = []
    options = {"every": 1, "budget": None, "coordinates": None, "by_layer": False, **options}
    with Monitor(optimizer, to=records.append, **options):
        for t, gradient in enumerate(gradients):
            sample = None if variances is None else torch.from_numpy(variances[t])
            give(param, torch.from_numpy(gradient), sample)
            optimizer.step()
    return records
