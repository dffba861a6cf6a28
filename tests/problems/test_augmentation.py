"""Changes of image batches, held against Pillow and colorsys on real images, and their draws."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from svag.errors import InvalidOption
from svag.problems import augmentation as change
from svag.problems.cifar import cifar10_3c3d, cifar100_wrn404

COUNT = 100


@pytest.fixture(params=["photographs", "cifar-10"], scope="module")
def images(request):
    """100 real images as bytes: pieces of scikit-learn's two photographs, or CIFAR-10's first."""
    if request.param == "cifar-10":
        return torch.from_numpy(request.getfixturevalue("cifar_10").train_images[:COUNT])
    return _pieces()


@pytest.fixture(scope="module")
def floats():
    return _pieces() / 255


def _pieces() -> torch.Tensor:
    from sklearn.datasets import load_sample_images

    pieces = [
        photograph[top : top + 32, left : left + 32]
        for photograph in load_sample_images().images
        for top in range(0, 400, 80)
        for left in range(0, 600, 60)
    ]
    assert len(pieces) == COUNT
    return torch.from_numpy(np.stack(pieces).transpose(0, 3, 1, 2).copy())


def pillow(images, change_one, *arguments):
    """Change each image by Pillow: arguments are taken image by image."""
    changed = [
        np.asarray(change_one(Image.fromarray(image.permute(1, 2, 0).numpy()), *rest))
        for image, *rest in zip(images, *(a.tolist() for a in arguments), strict=True)
    ]
    return torch.from_numpy(np.stack(changed).transpose(0, 3, 1, 2).astype(np.int64))


def as_bytes(floats):
    return (floats * 255).round().clamp(0, 255).long()


def drawn(low, high, seed=0):
    return torch.empty(COUNT).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding", [0, 2, 4, 40])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bfloat16])
def test_crop_as_pillow(images, padding, kind):
    tops = torch.randint(2 * padding + 1, (COUNT,))
    lefts = torch.randint(2 * padding + 1, (COUNT,))
    tops[:2], lefts[:2] = torch.tensor([0, 2 * padding]), torch.tensor([0, 2 * padding])

    def cut(image, top, left):
        box = (left, top, left + 32, top + 32)
        return ImageOps.expand(image, border=padding, fill=0).crop(box)

    ours = change.crop(images.to(kind), padding, tops, lefts)
    assert ours.dtype == kind
    assert ours.is_contiguous()
    assert torch.equal(ours.long(), pillow(images, cut, tops, lefts))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.int16])
def test_flip_as_pillow(images, kind):
    flipped = torch.arange(COUNT) % 3 == 0

    def mirror(image, yes):
        return ImageOps.mirror(image) if yes else image

    ours = change.flip(images.to(kind), flipped)
    assert ours.dtype == kind
    assert torch.equal(ours.long(), pillow(images, mirror, flipped))


def test_brightness_as_pillow(images):
    deltas = drawn(-63 / 255, 63 / 255)

    def brighten(image, delta):
        table = [min(255, max(0, round(v + 255 * delta))) for v in range(256)]
        return image.point(table * 3)

    ours = as_bytes(change.brightness(images / 255, deltas))
    assert torch.equal(ours, pillow(images, brighten, deltas))


def test_contrast_as_pillow(images):
    """Pillow takes a mean in whole levels and cuts off fractions: less than two levels in all."""
    factors = drawn(0.2, 1.8)

    def stretch(image, factor):
        means = np.asarray(image).mean((0, 1)).round().astype(int)
        return Image.blend(Image.new("RGB", image.size, tuple(means)), image, factor)

    ours = as_bytes(change.contrast(images / 255, factors))
    assert (ours - pillow(images, stretch, factors)).abs().max() <= 2


def test_saturation_as_pillow(images):
    """Pillow cuts hue and saturation to bytes.

    A step of hue is 6 levels of a channel, one of saturation 1.5, and both sides round: 8 at most.
    """
    factors = drawn(0.5, 1.5)

    def saturate(image, factor):
        hue, saturation, value = image.convert("HSV").split()
        scaled = saturation.point([min(255, round(factor * s)) for s in range(256)])
        return Image.merge("HSV", (hue, scaled, value)).convert("RGB")

    apart = as_bytes(change.saturation(images / 255, factors)) - pillow(images, saturate, factors)
    assert apart.abs().max() <= 8
    assert apart.abs().double().mean() < 1.5


def _saturated(pixel, factor):
    """One pixel in double precision, by way of hue and saturation, as TensorFlow defines them."""
    if max(pixel) <= 0:
        return (max(pixel),) * 3
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)


@pytest.mark.parametrize("delta", [0.0, -0.24, -1.0, 0.24])
def test_saturation_in_double_precision(floats, delta):
    """Also where brightness has made some values negative, or all."""
    chosen, factors = floats[:12] + delta, torch.linspace(0, 2, 12)
    expected = [
        [_saturated(pixel, factor) for pixel in image.permute(1, 2, 0).reshape(-1, 3).tolist()]
        for image, factor in zip(chosen, factors.tolist(), strict=True)
    ]
    expected = torch.tensor(expected, dtype=torch.float64).view(12, 32, 32, 3).permute(0, 3, 1, 2)
    ours = change.saturation(chosen, factors)
    assert (ours - expected).abs().max() < 1e-6
    assert delta != -0.24 or (chosen.amin(1) < 0).logical_and(chosen.amax(1) > 0).any()


def test_saturation_of_greys_and_black():
    greys = torch.linspace(0, 1, 11).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    ours = change.saturation(greys, torch.full((11,), 1.5))
    assert torch.equal(ours, greys)


def test_colours_of_factor_one_change_nothing(floats):
    ones = torch.ones(COUNT)
    assert torch.equal(change.saturation(floats, ones), floats)
    assert torch.allclose(change.contrast(floats, ones), floats, atol=1e-6)
    assert torch.equal(change.brightness(floats, 0 * ones), floats)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 2, 5, 7), (2, 3, 4, 1)])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_of_other_sizes(size, padding):
    images = torch.rand(size)
    tops = torch.randint(2 * padding + 1, size[:1])
    lefts = torch.randint(2 * padding + 1, size[:1])
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    expected = [
        image[:, top : top + size[2], left : left + size[3]]
        for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    assert torch.equal(change.crop(images, padding, tops, lefts), torch.stack(expected))


def _every_change(images, generator):
    """All five, one after the other, and each result."""
    moved = change.random_crop(images, 2, generator)
    results = [moved, change.random_flip(moved, generator)]
    results.append(change.random_brightness(results[-1] / 255, 0.2, generator))
    results.append(change.random_saturation(results[-1], 0.5, 1.5, generator))
    return [*results, change.random_contrast(results[-1], 0.2, 1.8, generator)]


def test_memory_layout_does_not_matter(images):
    last = images.contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    for ours, plain in zip(
        _every_change(last, torch.Generator().manual_seed(1)),
        _every_change(images, torch.Generator().manual_seed(1)),
        strict=True,
    ):
        assert torch.allclose(ours.float(), plain.float(), atol=1e-6)


def test_inputs_stay_and_only_the_generator_is_drawn_from(images):
    before, state = images.clone(), torch.get_rng_state()
    first = _every_change(images, torch.Generator().manual_seed(1))
    kept = [result.clone() for result in first]
    generator = torch.Generator().manual_seed(1)
    again = _every_change(images, generator)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, kept, again))
    assert not any(map(torch.equal, again, _every_change(images, generator)))


def test_crop_offsets_are_uniform():
    """Pixels that hold their own place show the offset; 25 equally likely ones, chi-square."""
    places = torch.arange(1.0, 65).view(1, 1, 8, 8).expand(5000, 1, 8, 8)
    cut = change.random_crop(places, 2, torch.Generator().manual_seed(0))
    offset = (cut[:, 0, 4, 4] - places[0, 0, 4, 4]).long()  # 8 rows down and 1 right
    observed = offset.add(18).bincount(minlength=37)
    expected_places = [8 * row + column + 18 for row in range(-2, 3) for column in range(-2, 3)]
    assert observed[expected_places].sum() == 5000
    assert stats.chisquare(observed[expected_places].numpy()).pvalue > 1e-3


def test_half_of_the_images_are_flipped():
    images = torch.tensor([0, 1], dtype=torch.uint8).view(1, 1, 1, 2).expand(5000, 1, 1, 2)
    flipped = change.random_flip(images, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 1
    assert stats.binomtest(int(flipped.sum()), 5000).pvalue > 1e-3
    pairs = (flipped[::2] * 2 + flipped[1::2]).bincount(minlength=4)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3  # neighbours are independent


@pytest.mark.parametrize(
    ("recover", "low", "high"),
    [
        (lambda x, g: change.random_brightness(x, 0.25, g)[:, 0, 0, 0] - 0.5, -0.25, 0.25),
        (
            lambda x, g: (change.random_saturation(x, 0.5, 1.5, g)[:, 1, 0, 0] - 0.5) / -0.25,
            0.5,
            1.5,
        ),
        (lambda x, g: (change.random_contrast(x, 0.2, 1.8, g)[:, 0, 0, 0] - 0.375) * 8, 0.2, 1.8),
    ],
    ids=["brightness", "saturation", "contrast"],
)
def test_colour_draws_are_uniform(recover, low, high):
    """Of one image 5,000 times: red 0.5 and 0.25, green 0.25 and 0.25, blue alike."""
    image = torch.tensor([[0.5, 0.25], [0.25, 0.25], [0.25, 0.25]]).view(1, 3, 1, 2)
    found = recover(image.expand(5000, 3, 1, 2), torch.Generator().manual_seed(0))
    assert stats.kstest(found.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert found.min() >= low - 1e-5
    assert found.max() <= high + 1e-5


class Recorded(TorchDispatchMode):
    """Names of the operations that ran, those with a boolean index marked."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        flat = torch.utils._pytree.tree_leaves(args)
        if name == "index" and any(
            isinstance(a, torch.Tensor) and a.dtype == torch.bool for a in flat
        ):
            name = "boolean index"
        self.names.append(name)
        return function(*args, **kwargs or {})


HOST = {"_local_scalar_dense", "nonzero", "masked_select", "boolean index", "lift_fresh", "equal"}


def test_recorder_sees_what_waits_for_the_device():
    for waits in (lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: torch.tensor([1.0])):
        with Recorded() as recorded:
            waits(torch.rand(3))
        assert HOST & set(recorded.names)


@pytest.mark.parametrize("problem", [cifar10_3c3d(), cifar100_wrn404()], ids=lambda p: p.name)
def test_nothing_waits_for_the_device(problem):
    images, generator = _pieces(), torch.Generator().manual_seed(0)
    problem.prepare(problem.augment(images, generator))  # puts the constants on the device
    with Recorded() as recorded:
        problem.prepare(problem.augment(images, generator))
    assert recorded.names
    assert not HOST & set(recorded.names)


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: change.random_crop(x[0], 2, GENERATOR), r"shape \(3, 32, 32\): give a batch"),
        (lambda x: change.random_flip(x[:0], GENERATOR), r"shape \(0, 3, 32, 32\)"),
        (lambda x: change.random_crop(x, -1, GENERATOR), "padding=-1: give a whole number"),
        (lambda x: change.random_crop(x, 1.5, GENERATOR), "padding=1.5"),
        (lambda x: change.random_crop(x, True, GENERATOR), "padding=True"),
        (lambda x: change.random_brightness(x.byte(), 0.1, GENERATOR), "torch.uint8: colours"),
        (lambda x: change.random_contrast(x.byte(), 0.1, 1, GENERATOR), "give images / 255"),
        (lambda x: change.random_brightness(x, -0.1, GENERATOR), "max_delta=-0.1: give a finite"),
        (lambda x: change.random_brightness(x, float("nan"), GENERATOR), "max_delta=nan"),
        (lambda x: change.random_saturation(x, 1.5, 0.5, GENERATOR), "low=1.5, high=0.5"),
        (lambda x: change.random_saturation(x[:, :1], 0.5, 1, GENERATOR), "images of 1 channels"),
        (lambda x: change.random_contrast(x, -1, 1, GENERATOR), "low=-1, high=1: give finite"),
        (lambda x: change.random_contrast(x, 0, float("inf"), GENERATOR), "high=inf"),
    ],
)
def test_unusable_arguments(floats, call, words):
    with pytest.raises(InvalidOption, match=words):
        call(floats)
