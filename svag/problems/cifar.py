"""Problems on CIFAR: the paper's P2 and P3, and a small relative of P3 that fits a CPU.

Images stay bytes in memory and on the device; a batch becomes floats when it is trained on. The
networks, batch sizes, regularisation, augmentation and P3's schedule are those of DeepOBS. The
paper does not specify the following, which is our choice: inputs are standardised by the mean and
standard deviation of each channel of the training images, as in DeepOBS' PyTorch version; colours
change after crop and flip, in the order brightness, saturation, contrast, before the
standardisation.

References:
    L. Balles, P. Hennig, "Dissecting Adam", ICML 2018, section 6.
    F. Schneider, L. Balles, P. Hennig, "DeepOBS", ICLR 2019.
"""

from functools import cache, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from svag.problems.augmentation import (
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
    random_saturation,
)
from svag.problems.cifar_files import load_cifar
from svag.problems.models import conv_3c3d, wide_resnet
from svag.problems.nested import Nested
from svag.problems.problem import Data, Problem, Split
from svag.problems.schedules import fifths

# Mean and standard deviation of red, green and blue in the training images divided by 255.
CIFAR_10_CHANNELS = (
    (0.49139968, 0.48215841, 0.44653091),
    (0.24703223, 0.24348513, 0.26158784),
)
CIFAR_100_CHANNELS = (
    (0.50707516, 0.48654887, 0.44091784),
    (0.26733429, 0.25643846, 0.27615047),
)
SMALL_TRAIN_A_CLASS = 50


def cifar10_3c3d() -> Problem:
    """Classify CIFAR-10 with the 3c3d network: P2 of the paper.

    The length of 40,000 steps is a guess; the paper does not give it.
    """
    return Problem(
        name="cifar10-3c3d",
        description="P2 of the paper: CIFAR-10, three convolutions, three dense layers",
        model=conv_3c3d,
        load=partial(_load, "cifar-10"),
        batch_size=128,
        steps=40_000,
        quick_steps=500,
        select="test",
        weight_decay=0.002,
        augment=_cropped_and_coloured,
        prepare=partial(standardised, channels=CIFAR_10_CHANNELS),
        channels_last=True,
    )


def cifar100_wrn404() -> Problem:
    """Classify CIFAR-100 with the wide residual network WRN-40-4: P3 of the paper.

    200 epochs of 391 batches are 78,200 steps; an epoch here leaves out its last, smaller batch.
    """
    return Problem(
        name="cifar100-wrn404",
        description="P3 of the paper: CIFAR-100, wide residual network WRN-40-4",
        model=wide_resnet,
        load=partial(_load, "cifar-100"),
        batch_size=128,
        steps=78_200,
        quick_steps=200,
        select="test",
        schedule=fifths,
        weight_decay=5e-4,
        augment=_cropped,
        prepare=partial(standardised, channels=CIFAR_100_CHANNELS),
        channels_last=True,
    )


def cifar100_wrn102_5k() -> Problem:
    """Classify CIFAR-100 after 50 training images a class: P3 made small enough to overfit.

    WRN-10-2 without augmentation; the test set is the full one.
    """
    return Problem(
        name="cifar100-wrn102-5k",
        description="small P3: 5,000 images of CIFAR-100, wide residual network WRN-10-2",
        model=_small_wide_resnet,
        load=_load_small,
        batch_size=128,
        steps=2_000,
        quick_steps=200,
        select="test",
        schedule=fifths,
        weight_decay=5e-4,
        prepare=partial(standardised, channels=CIFAR_100_CHANNELS),
        channels_last=True,
    )


def standardised(images: Nested, channels: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Turn images into floats with mean 0 and standard deviation 1 in each channel.

    Args:
        images: ``(n, c, h, w)``: bytes, which are divided by 255, or floats in [0, 1], as the
            augmentation returns them.
        channels: the means and the standard deviations of the channels, of floats in [0, 1].

    Returns:
        New images of the same shape, floats.
    """
    images = cast(Tensor, images)
    floats: Tensor = images / 255 if images.dtype == torch.uint8 else images
    mean, deviation = (_a_channel(values, images.device) for values in channels)
    return (floats - mean).div_(deviation)


@cache  # so that the copy to the device is not part of a CUDA graph
def _a_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one number per channel as a tensor ``(1, c, 1, 1)`` on a device."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be trained with
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _cropped(images: Nested, generator: torch.Generator) -> Tensor:
    """Augment as in P3: crop and flip, bytes to bytes."""
    return random_flip(random_crop(cast(Tensor, images), 4, generator), generator)


def _cropped_and_coloured(images: Nested, generator: torch.Generator) -> Tensor:
    """Augment as in P2: bytes to floats, which changes of colour may move out of [0, 1]."""
    moved = random_flip(random_crop(cast(Tensor, images), 2, generator), generator)
    brighter = random_brightness(moved / 255, 63 / 255, generator)
    saturated = random_saturation(brighter, 0.5, 1.5, generator)
    return random_contrast(saturated, 0.2, 1.8, generator)


def _small_wide_resnet() -> nn.Module:
    return wide_resnet(depth=10, widen=2)


def _load(name: str, data_dir: Path | None) -> Data:
    """Read a data set, images as bytes."""
    train_images, train_labels, test_images, test_labels = map(
        torch.from_numpy, load_cifar(name, data_dir)
    )
    return Data(Split(train_images, train_labels), Split(test_images, test_labels))


def _load_small(data_dir: Path | None) -> Data:
    """Read CIFAR-100 and keep the first 50 training images of each class, in a random order."""
    data = _load("cifar-100", data_dir)
    labels = cast(Tensor, data.train.targets).numpy()
    # NumPy guarantees the same stream in every version for RandomState, not for default_rng.
    order = np.random.RandomState(0).permutation(len(labels))
    of_class = [np.flatnonzero(labels[order] == label) for label in range(100)]
    places = np.sort(np.concatenate([found[:SMALL_TRAIN_A_CLASS] for found in of_class]))
    return Data(data.train.take(torch.from_numpy(order[places])), data.test)
