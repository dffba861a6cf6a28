"""Random changes of a batch of images ``(n, c, h, w)``, drawn from one generator, on any device.

Each ``random_*`` draws one number per image and passes them to the function of the same name, which
is deterministic. Crops and flips take any dtype, changes of colour take floats in [0, 1].
Brightness, saturation and contrast are those of TensorFlow's ``tf.image``; as there, results are
not clipped to [0, 1]. No function synchronises with the device, so a CUDA graph can capture them;
the generator has to be on the device of the images.

Example:
    >>> import torch
    >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    >>> generator = torch.Generator().manual_seed(0)
    >>> random_flip(random_crop(images, 4, generator), generator).shape
    torch.Size([8, 3, 32, 32])
"""

import torch
from torch import Tensor
from torch.nn import functional

from svag.errors import InvalidOption


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros and cut out the original size at a random offset; see :func:`crop`.

    Args:
        images: ``(n, c, h, w)``, of any type.
        padding: pixels on each side; each offset in 0 to ``2 * padding`` is equally likely.
        generator: to draw from.

    Returns:
        New images of the same shape and type.

    Raises:
        InvalidOption: ``images`` has another shape, or ``padding`` is no whole number >= 0.
    """
    _check_images(images)
    if type(padding) is not int or padding < 0:
        raise InvalidOption(f"padding={padding!r}: give a whole number of pixels of at least 0")
    drawn = torch.randint(
        2 * padding + 1, (2, len(images)), generator=generator, device=images.device
    )
    return crop(images, padding, drawn[0], drawn[1])


def crop(images: Tensor, padding: int, tops: Tensor, lefts: Tensor) -> Tensor:
    """Pad with zeros and cut the original size out, each image at an offset of its own.

    Args:
        images: ``(n, c, h, w)``, of any type.
        padding: pixels on each side.
        tops: ``(n,)`` offsets from the top of the padded image, 0 to ``2 * padding``.
        lefts: likewise, from the left.

    Returns:
        New images of the same shape and type.
    """
    count, channels, height, width = images.shape
    # Each crop is copied as one contiguous run of the padded batch, which is faster than copying
    # single values; as_strided then drops the values between its rows. One more row of padding
    # at the bottom makes room for the last run.
    padded = functional.pad(images.contiguous(), (padding, padding, padding, padding + 1))
    rows, row = padded.shape[2:]
    length = ((channels - 1) * rows + height) * row
    runs = padded.view(-1).unfold(0, length, 1)
    first = torch.arange(count, device=images.device) * (channels * rows * row)
    chosen = runs.index_select(0, first + tops * row + lefts)
    strides = (length, rows * row, row, 1)
    return chosen.as_strided((count, channels, height, width), strides).contiguous()


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image from left to right with probability 1/2.

    Args:
        images: ``(n, c, h, w)``, of any type.
        generator: to draw from.

    Returns:
        New images of the same shape and type.

    Raises:
        InvalidOption: ``images`` has another shape.
    """
    _check_images(images)
    drawn = torch.rand(len(images), generator=generator, device=images.device)
    return flip(images, drawn < 0.5)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror some of the images from left to right.

    Args:
        images: ``(n, c, h, w)``, of any type.
        flipped: ``(n,)`` booleans: which images to mirror.

    Returns:
        New images of the same shape and type.
    """
    mirrored, chosen = images.flip(3), flipped.view(-1, 1, 1, 1)
    if images.dtype != torch.uint8:
        return torch.where(chosen, mirrored, images)
    # torch vectorises these for bytes, unlike where(): b ^ ((a ^ b) & mask) is a or b.
    mask = chosen.to(torch.uint8) * 255
    return mirrored.bitwise_xor_(images).bitwise_and_(mask).bitwise_xor_(images)


def random_brightness(images: Tensor, max_delta: float, generator: torch.Generator) -> Tensor:
    """Add one number to all pixels of an image.

    Args:
        images: ``(n, c, h, w)``, floats.
        max_delta: the number is uniform in ``[-max_delta, max_delta]``.
        generator: to draw from.

    Returns:
        New images of the same shape and type.

    Raises:
        InvalidOption: ``images`` is of another kind, or ``max_delta`` is not finite and >= 0.
    """
    _check_floats(images)
    if not 0 <= max_delta < float("inf"):
        raise InvalidOption(f"max_delta={max_delta!r}: give a finite number of at least 0")
    return brightness(images, _uniform(images, -max_delta, max_delta, generator))


def brightness(images: Tensor, deltas: Tensor) -> Tensor:
    """Add ``deltas[i]`` to all pixels of image ``i``."""
    return images + deltas.view(-1, 1, 1, 1)


def random_saturation(
    images: Tensor, low: float, high: float, generator: torch.Generator
) -> Tensor:
    """Scale the saturation of each image; see :func:`saturation`.

    Args:
        images: ``(n, 3, h, w)``, floats.
        low: the least factor.
        high: the largest factor.
        generator: to draw from.

    Returns:
        New images of the same shape and type.

    Raises:
        InvalidOption: ``images`` is of another kind, or not 0 <= low <= high.
    """
    _check_floats(images)
    if images.shape[1] != 3:
        raise InvalidOption(
            f"images of {images.shape[1]} channels have no saturation; give red, green and blue"
        )
    _check_range(low, high)
    return saturation(images, _uniform(images, low, high, generator))


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the saturation S of HSV by a factor; hue H and value V stay as they are.

    With V the largest of a pixel's channels x and S = (V - min x) / V, every channel becomes
    ``V - f' (V - x)``, where ``f' = min(f, 1 / S)`` keeps the new S at most 1. As in TensorFlow,
    S is taken as 0 where V <= 0; a change of brightness can make V negative.

    Args:
        images: ``(n, 3, h, w)``, floats.
        factors: ``(n,)``, the f of each image, at least 0.

    Returns:
        New images of the same shape and type.
    """
    value = images.amax(1, keepdim=True)
    spread = (value - images.amin(1, keepdim=True)).clamp_(min=torch.finfo(images.dtype).tiny)
    limit = value.clamp(min=0).div_(spread)
    return torch.lerp(value, images, torch.minimum(limit, factors.view(-1, 1, 1, 1)))


def random_contrast(images: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Stretch each image about the mean of each of its channels.

    Args:
        images: ``(n, c, h, w)``, floats.
        low: the least factor.
        high: the largest factor.
        generator: to draw from.

    Returns:
        New images of the same shape and type.

    Raises:
        InvalidOption: ``images`` is of another kind, or not 0 <= low <= high.
    """
    _check_floats(images)
    _check_range(low, high)
    return contrast(images, _uniform(images, low, high, generator))


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Return ``mean + factors[i] (x - mean)``, with the mean of each channel of image ``i``."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean).mul_(factors.view(-1, 1, 1, 1)).add_(mean)


def _uniform(images: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw one number per image, of the images' dtype."""
    drawn = torch.rand(len(images), generator=generator, device=images.device)
    return drawn.mul_(high - low).add_(low).to(images.dtype)


def _check_images(images: Tensor) -> None:
    """Raise if this is no batch of images."""
    if images.ndim != 4 or not images.numel():
        raise InvalidOption(
            f"images of shape {tuple(images.shape)}: give a batch (n, c, h, w), no dimension 0"
        )


def _check_floats(images: Tensor) -> None:
    """Raise if this is no batch of images of a floating-point dtype."""
    _check_images(images)
    if not images.is_floating_point():
        raise InvalidOption(
            f"images of {images.dtype}: colours change on floats in [0, 1]; give images / 255"
        )


def _check_range(low: float, high: float) -> None:
    """Refuse factors that are out of order, negative or not finite."""
    if not 0 <= low <= high < float("inf"):
        raise InvalidOption(f"low={low!r}, high={high!r}: give finite numbers 0 <= low <= high")
