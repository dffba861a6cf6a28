"""What ``docs/names.md`` says of other libraries: their methods are ours, at these step sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor
from torch.optim import Optimizer

import svag

STEPS = 30
Make = Callable[[list[Tensor]], Optimizer]


def gradients() -> list[Tensor]:
    """Gradients with a mean, so that averages have a sign that is not chance."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.linspace(-1, 1, 20, dtype=torch.float64)
    noise = torch.randn(STEPS, 20, generator=generator, dtype=torch.float64)
    return list(mean + noise)


def after(make: Make, lrs: Sequence[float] | None = None) -> Tensor:
    """The parameters after all gradients, with a step size for every step if ``lrs`` says so."""
    param = torch.nn.Parameter(torch.linspace(1, 2, 20, dtype=torch.float64))
    optimizer = make([param])
    for step, gradient in enumerate(gradients()):
        if lrs is not None:
            optimizer.param_groups[0]["lr"] = lrs[step]
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


SAME: dict[str, tuple[Make, Make]] = {
    "torch SGD": (lambda p: torch.optim.SGD(p, 0.1), lambda p: svag.SGD(p, 0.1)),
    "torch Adam": (lambda p: torch.optim.Adam(p, 1e-2), lambda p: svag.Adam(p, 1e-2)),
    "torch AdamW": (
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.01),
        lambda p: svag.Adam(p, 1e-2, weight_decay=0.01, decoupled_weight_decay=True),
    ),
    "torch Adam without averages": (
        lambda p: torch.optim.Adam(p, 1e-2, betas=(0.0, 0.0), eps=0.0),
        lambda p: svag.SSD(p, 1e-2),
    ),
    "SignSGD": (
        lambda p: pytorch_optimizer.SignSGD(p, 1e-2, momentum=0.0),
        lambda p: svag.SSD(p, 1e-2),
    ),
    "Signum": (
        lambda p: pytorch_optimizer.SignSGD(p, 1e-2, momentum=0.9),
        lambda p: svag.MSSD(p, 1e-2, beta=0.9),
    ),
    "Signum with decay": (
        lambda p: pytorch_optimizer.SignSGD(p, 1e-2, momentum=0.9, weight_decay=0.1),
        lambda p: svag.MSSD(p, 1e-2, beta=0.9, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "Lion": (
        lambda p: pytorch_optimizer.Lion(p, 1e-2, betas=(0.9, 0.9), weight_decay=0.0),
        lambda p: svag.MSSD(p, 1e-2, beta=0.9),
    ),
    "Tiger": (
        lambda p: pytorch_optimizer.Tiger(p, 1e-2, beta=0.9, weight_decay=0.0),
        lambda p: svag.MSSD(p, 1e-2, beta=0.9),
    ),
    "MSVAG": (
        lambda p: pytorch_optimizer.MSVAG(p, 0.1, beta=0.9),
        lambda p: svag.MSVAG(p, 0.1, beta=0.9),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_method_by_another_name(name: str) -> None:
    theirs, ours = SAME[name]
    torch.testing.assert_close(after(theirs), after(ours), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("b", [0.5, 0.9])
def test_momentum_is_the_average_at_a_smaller_step_size(b: float) -> None:
    lrs = [0.1 * (1 - b) / (1 - b ** (t + 1)) for t in range(STEPS)]
    total = after(lambda p: torch.optim.SGD(p, 0.1, momentum=b), lrs)
    torch.testing.assert_close(total, after(lambda p: svag.MSGD(p, 0.1, beta=b)))


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_the_step_sizes_of_momentum_agree_after_the_start(dampening: float) -> None:
    """Directions of one step, after enough of them: torch's over ours is (1 - b)^-1, or 1."""
    param, other = (torch.nn.Parameter(torch.zeros(20, dtype=torch.float64)) for _ in range(2))
    theirs = torch.optim.SGD([param], 1.0, momentum=0.5, dampening=dampening)
    ours = svag.MSGD([other], 1.0, beta=0.5)
    for gradient in gradients():
        before = param.detach().clone(), other.detach().clone()
        param.grad, other.grad = gradient.clone(), gradient.clone()
        theirs.step()
        ours.step()
    ratio = (param.detach() - before[0]) / (other.detach() - before[1])
    torch.testing.assert_close(
        ratio, torch.full_like(ratio, (1 - dampening) / 0.5), rtol=1e-6, atol=0
    )


def test_lion_with_two_betas_is_another_method() -> None:
    lion = after(lambda p: pytorch_optimizer.Lion(p, 1e-2, betas=(0.9, 0.99), weight_decay=0.0))
    assert not torch.allclose(lion, after(lambda p: svag.MSSD(p, 1e-2, beta=0.9)))


OPTAX: dict[str, tuple[Callable[[Any], Any], Make]] = {
    "sgd": (lambda optax: optax.sgd(0.1), lambda p: svag.SGD(p, 0.1)),
    "sign_sgd": (lambda optax: optax.sign_sgd(1e-2), lambda p: svag.SSD(p, 1e-2)),
    "signum": (lambda optax: optax.signum(1e-2, beta=0.9), lambda p: svag.MSSD(p, 1e-2, beta=0.9)),
    "lion": (
        lambda optax: optax.lion(1e-2, b1=0.9, b2=0.9, weight_decay=0.0),
        lambda p: svag.MSSD(p, 1e-2, beta=0.9),
    ),
    "adam": (lambda optax: optax.adam(1e-2), lambda p: svag.Adam(p, 1e-2)),
    "ema": (
        lambda optax: optax.chain(optax.ema(0.9), optax.scale(-0.1)),
        lambda p: svag.MSGD(p, 0.1, beta=0.9),
    ),
    "sgd with momentum": (
        lambda optax: optax.sgd(lambda t: 0.1 * (1 - 0.9) / (1 - 0.9 ** (t + 1)), momentum=0.9),
        lambda p: svag.MSGD(p, 0.1, beta=0.9),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_the_same_method_in_optax(name: str) -> None:
    optax = pytest.importorskip("optax", reason="optax is not installed")
    import jax

    theirs, ours = OPTAX[name]
    with jax.enable_x64(True):
        transformation = theirs(optax)
        param = jax.numpy.asarray(torch.linspace(1, 2, 20, dtype=torch.float64).numpy())
        state = transformation.init(param)
        for gradient in gradients():
            update, state = transformation.update(jax.numpy.asarray(gradient.numpy()), state, param)
            param = optax.apply_updates(param, update)
        found = torch.tensor(param.tolist(), dtype=torch.float64)
    torch.testing.assert_close(found, after(ours), rtol=1e-9, atol=1e-9)


def test_the_first_step_of_their_msvag_in_float32() -> None:
    gradient = torch.randn(200, generator=torch.Generator().manual_seed(0))
    moved = []
    for make in (pytorch_optimizer.MSVAG, svag.MSVAG):
        param = torch.nn.Parameter(torch.zeros(200))
        optimizer = make([param], lr=1.0, beta=0.9)
        param.grad = gradient.clone()
        optimizer.step()
        moved.append(param.detach())
    error = ((moved[0] - moved[1]).abs() / moved[1].abs()).max().item()
    assert 3e-4 < error < 3e-3
