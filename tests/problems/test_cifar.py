"""The problems on CIFAR: what is read, how a batch becomes what the model takes."""

import pickle

import numpy as np
import pytest
import torch

from svag.problems import get
from svag.problems.augmentation import (
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
    random_saturation,
)
from svag.problems.cifar import CIFAR_10_CHANNELS, CIFAR_100_CHANNELS, standardised

NAMES = ("cifar10-3c3d", "cifar100-wrn404", "cifar100-wrn102-5k")
SETS = {"cifar10-3c3d": "cifar_10", "cifar100-wrn404": "cifar_100", NAMES[2]: "cifar_100"}


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    """A problem, its data, and the data set that they are read from."""
    real = request.getfixturevalue(SETS[request.param])
    problem = get(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("svag.problems.cifar.load_cifar", lambda name, data_dir: real)
        return problem, problem.load(None), real


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images():
    return torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator())


@pytest.mark.parametrize(
    ("name", "parameters", "classes", "batch", "steps", "decay"),
    [
        ("cifar10-3c3d", 895_210, 10, 128, 40_000, 0.002),
        ("cifar100-wrn404", 8_972_340, 100, 128, 78_200, 5e-4),
        ("cifar100-wrn102-5k", 315_316, 100, 128, 2_000, 5e-4),
    ],
)
def test_settings(name, parameters, classes, batch, steps, decay):
    problem = get(name)
    assert problem.name == name
    assert (problem.batch_size, problem.steps, problem.weight_decay) == (batch, steps, decay)
    assert problem.channels_last
    assert problem.select == "test"
    model = problem.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.eval()(problem.prepare(some_images()[:2])).shape == (2, classes)
    pickle.loads(pickle.dumps(problem))  # workers may be sent it


def test_schedules():
    p3 = get("cifar100-wrn404")
    at = {0: 1, 60 * 391 - 1: 1, 60 * 391: 0.2, 120 * 391: 0.04, 160 * 391: 0.008, 78_199: 0.008}
    for step, factor in at.items():
        assert p3.schedule(step, p3.steps) == pytest.approx(factor)
    assert {get("cifar10-3c3d").schedule(step, 40_000) for step in (0, 20_000, 39_999)} == {1.0}
    small = get("cifar100-wrn102-5k")
    assert [small.schedule(step, 2000) for step in (599, 600)] == pytest.approx([1, 0.2])


def test_data_are_the_original_bytes_in_the_original_order(loaded):
    problem, data, real = loaded
    assert data.train.inputs.dtype == data.test.inputs.dtype == torch.uint8
    assert data.test.inputs.shape == (10_000, 3, 32, 32)
    assert np.array_equal(data.test.inputs.numpy(), real.test_images)
    assert np.array_equal(data.test.targets.numpy(), real.test_labels)
    if problem.name != NAMES[2]:
        assert np.array_equal(data.train.inputs.numpy(), real.train_images)
        assert np.array_equal(data.train.targets.numpy(), real.train_labels)


def test_channels_are_standardised(loaded):
    """By the figures published with the data, which the images confirm."""
    problem, data, _ = loaded
    if problem.name == NAMES[2]:
        pytest.skip("5,000 images have a mean of their own")
    total = torch.zeros(3, dtype=torch.float64)
    squares = total.clone()
    for part in data.train.inputs.split(5000):
        values = problem.prepare(part).double()
        total += values.mean((0, 2, 3)) / 10
        squares += values.square().mean((0, 2, 3)) / 10
    assert total.abs().max() < 1e-5
    assert (squares - 1).abs().max() < 1e-5


def test_small_set_is_balanced_and_fixed(loaded):
    problem, data, real = loaded
    if problem.name != NAMES[2]:
        pytest.skip("the full set")
    assert len(data.train) == 5000
    assert data.train.targets.bincount().tolist() == [50] * 100
    pairs = {(image.tobytes(), int(label)) for image, label in zip(*real[:2], strict=True)}
    rows = [image.tobytes() for image in data.train.inputs.numpy()]
    assert set(zip(rows, data.train.targets.tolist(), strict=True)) <= pairs
    assert (
        len(set(rows)) > 4990
    )  # a handful of CIFAR-100's images occur twice, also with two labels
    assert data.train.targets[:8].tolist() == [0, 46, 77, 27, 49, 31, 87, 2]
    assert data.fingerprint == "0bf73628fe5da064"


@pytest.mark.parametrize("channels", [CIFAR_10_CHANNELS, CIFAR_100_CHANNELS])
def test_prepare_takes_bytes_and_floats_alike(channels):
    images = some_images()
    expected = (images.double() / 255 - torch.tensor(channels[0]).double().view(3, 1, 1)) / (
        torch.tensor(channels[1]).double().view(3, 1, 1)
    )
    kept = images / 255
    for given in (images, kept):
        before = given.clone()
        found = standardised(given, channels)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 2e-6
        assert torch.equal(given, before)


def test_what_evaluation_prepares_first_can_be_trained_with():
    images = (some_images() / 255).double().requires_grad_()
    channels = ((0.5, 0.5, 0.25), (1.0, 2.0, 4.0))  # of no other test: nothing is kept yet
    with torch.inference_mode():
        standardised(images.detach(), channels)
    standardised(images, channels).sum().backward()
    expected = torch.tensor([1, 0.5, 0.25], dtype=torch.float64).view(3, 1, 1)
    assert torch.equal(images.grad, expected.expand_as(images))


def test_augmentation_of_p2():
    """Crop, flip, brightness, saturation, contrast, in this order and within DeepOBS' ranges."""
    images, drawn = some_images(), generator()
    expected = random_flip(random_crop(images, 2, drawn), drawn) / 255
    expected = random_brightness(expected, 63 / 255, drawn)
    expected = random_contrast(random_saturation(expected, 0.5, 1.5, drawn), 0.2, 1.8, drawn)
    found = get("cifar10-3c3d").augment(images, generator())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert found.abs().max() < 3  # still about [0, 1]: prepare standardises, once


def test_augmentation_of_p3():
    images, drawn = some_images(), generator()
    found = get("cifar100-wrn404").augment(images, generator())
    assert found.dtype == torch.uint8
    assert torch.equal(found, random_flip(random_crop(images, 4, drawn), drawn))
    assert get("cifar100-wrn102-5k").augment is None


def test_augmented_images_keep_about_the_scale_of_the_others(loaded):
    """What is scaled twice, or not at all, is far off."""
    problem, data, _ = loaded
    if problem.augment is None:
        pytest.skip("no augmentation")
    images = data.train.inputs[:2000]
    plain = problem.prepare(images)
    changed = problem.prepare(problem.augment(images, generator()))
    assert 0.7 < changed.std() / plain.std() < 1.4
    assert (changed.mean() - plain.mean()).abs() < 0.4
