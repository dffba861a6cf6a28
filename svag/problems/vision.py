"""Problems on images: scikit-learn's digits (bundled) and the paper's P1 on Fashion-MNIST."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import init

from svag.errors import DataError
from svag.problems.data import FASHION_MNIST, locate, read_idx
from svag.problems.models import conv_2c2d
from svag.problems.problem import Data, Problem, Split

DIGITS_TRAIN = 1297


def digits() -> Problem:
    """Classify 8x8 scans of handwritten digits: 1,297 to train on, 500 to test on."""
    return Problem(
        name="digits",
        description="scikit-learn's handwritten digits, small CNN (no download)",
        model=_small_cnn,
        load=_load_digits,
        batch_size=32,
        steps=2000,
        quick_steps=600,
        select="test",
        channels_last=True,
    )


def fmnist_2c2d() -> Problem:
    """Classify Fashion-MNIST with the 2c2d network: P1 of the paper."""
    return Problem(
        name="fmnist-2c2d",
        description="P1 of the paper: Fashion-MNIST, two convolutions, two dense layers",
        model=conv_2c2d,
        load=_load_fashion_mnist,
        batch_size=64,
        steps=6000,
        quick_steps=500,
        select="test",
        channels_last=True,
    )


def _small_cnn() -> nn.Module:
    """Two convolutions and a dense layer, ``(B, 1, 8, 8)`` to ``(B, 10)``; 7,490 parameters."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4 * 4, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(layer.weight, nonlinearity="relu")
            init.zeros_(cast(torch.Tensor, layer.bias))
    return model


def _load_digits(data_dir: Path | None) -> Data:
    """Read the bundled data set; nothing is looked for in ``data_dir``."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn; pip install 'svag[lab]'") from error
    bunch = load_digits()
    inputs = (bunch.images / 16).astype(np.float32)[:, None]
    # NumPy guarantees the same stream in every version for RandomState, not for default_rng.
    order = np.random.RandomState(0).permutation(len(inputs))
    train, test = order[:DIGITS_TRAIN], order[DIGITS_TRAIN:]
    targets = bunch.target.astype(np.int64)
    return Data(
        Split(torch.from_numpy(inputs[train]), torch.from_numpy(targets[train])),
        Split(torch.from_numpy(inputs[test]), torch.from_numpy(targets[test])),
    )


def _load_fashion_mnist(data_dir: Path | None) -> Data:
    paths = locate(FASHION_MNIST, data_dir)

    def split(prefix: str, count: int) -> Split:
        images = read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"], (count, 28, 28))
        labels = read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"], (count,))
        return Split(_scaled(images), torch.from_numpy(labels.astype(np.int64)))

    return Data(split("train", 60_000), split("t10k", 10_000))


def _scaled(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn ``(n, H, W)`` bytes into ``(n, 1, H, W)`` floats in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32)[:, None]).div_(255)
