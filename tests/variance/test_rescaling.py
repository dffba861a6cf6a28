"""torch's own clipping and unscaling, and whatever else changes a gradient before the step.

What a trainer calls is called here as trainers call it: by names imported before svag changed
anything (a fresh process), by attributes, with generators, with a norm of its own.
"""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import svag
from svag.errors import MissingVariance
from svag.variance.grad_var import attach, current, is_current
from svag.variance.rescaling import follow_torch

follow_torch()


def make(shape: tuple[int, ...] = (3, 4), dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A parameter with a gradient and its variance."""
    generator = torch.Generator().manual_seed(seed)
    param = nn.Parameter(torch.zeros(shape, dtype=dtype))
    param.grad = torch.randn(shape, generator=generator).to(dtype)
    attach(param, torch.rand(shape, generator=generator) + 0.5)
    return param


def in_two(params: list[Tensor], max_norm: float, **options: Any) -> Tensor:
    norm = nn.utils.get_total_norm([p.grad for p in params], **options)
    nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm


CLIPPINGS: dict[str, Callable[..., Tensor]] = {
    "by name": clip_grad_norm_,
    "by attribute": lambda *args, **options: nn.utils.clip_grad_norm_(*args, **options),
    "from its module": lambda *args: nn.utils.clip_grad.clip_grad_norm_(*args),
    "a generator": lambda params, *args: clip_grad_norm_((p for p in params), *args),
    "in two": in_two,
    "svag's": svag.clip_grad_norm_,
}


@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1e3, math.inf])
@pytest.mark.parametrize("how", CLIPPINGS)
def test_the_variance_follows_torchs_clipping(how: str, max_norm: float) -> None:
    params = [make(), make((5,), seed=1), make((), seed=2)]
    before = [(p.grad.clone(), p.grad_var.clone()) for p in params]
    norm = CLIPPINGS[how](params, max_norm)
    factor = min(1.0, max_norm / (float(norm) + 1e-6))
    for param, (grad, variance) in zip(params, before, strict=True):
        torch.testing.assert_close(param.grad, grad * factor)
        torch.testing.assert_close(current(param), variance * factor**2)


def test_gradients_are_what_torch_makes_them_to_the_bit() -> None:
    """In a process where svag is there and one where it is not."""
    script = (
        "import torch{}\n"
        "from torch.nn.utils import clip_grad_norm_\n"
        "g = torch.Generator().manual_seed(0)\n"
        "ps = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 50)]\n"
        "for p in ps: p.grad = torch.randn(p.shape, generator=g)\n"
        "{}\n"
        "n = clip_grad_norm_(ps, 0.7)\n"
        "print([n.item()] + [x for p in ps for x in p.grad.tolist()])"
    )
    attaching = (
        "for p in ps: svag.variance.grad_var.attach(p, torch.ones_like(p))\n"
        "svag.variance.rescaling.follow_torch()"
    )
    importing = ", svag.variance.grad_var, svag.variance.rescaling"
    said = [
        subprocess.run(
            [sys.executable, "-c", script.format(*parts)],
            capture_output=True, text=True, check=True,
        ).stdout
        for parts in (("", ""), (importing, attaching))
    ]  # fmt: skip
    assert said[0] == said[1] != ""


def test_a_name_imported_before_svag_is_followed_too() -> None:
    script = (
        "from torch.nn.utils import clip_grad_norm_\n"
        "import torch, svag\n"
        "p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))\n"
        "with svag.micro_batch_variance([p]) as micro_batches:\n"
        "    for target in (1.0, -1.0):\n"
        "        (0.25 * (p - target).pow(2).sum()).backward()\n"
        "        micro_batches.micro_step()\n"
        "clip_grad_norm_([p], 2.5)\n"
        "from svag.variance.grad_var import current\n"
        "print(*current(p).mul(4).round(decimals=5).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "1.0 1.0", done.stderr


def test_it_is_put_in_place_once() -> None:
    kept = nn.utils.clip_grads_with_norm_, torch.amp.GradScaler.unscale_
    follow_torch()
    make()
    assert (nn.utils.clip_grads_with_norm_, torch.amp.GradScaler.unscale_) == kept


def test_a_parameter_given_twice_is_multiplied_twice_by_torch() -> None:
    param = make()
    grad, variance = param.grad.clone(), param.grad_var.clone()
    clip_grad_norm_([param, param], 0.1)
    factor = float(param.grad[0, 0] / grad[0, 0])
    torch.testing.assert_close(current(param), variance * factor**2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_clipping_follows_in_every_dtype(dtype: torch.dtype) -> None:
    param = make(dtype=dtype)
    grad, variance = param.grad.clone(), param.grad_var.clone()
    clip_grad_norm_([param], 0.25)
    factor = (param.grad.abs().double() / grad.abs().double()).mean() ** 2
    bound = 0.05 if dtype.itemsize == 2 else 1e-5
    ratio = (current(param).abs() / variance.abs()).double()
    torch.testing.assert_close(ratio, factor.expand_as(ratio), rtol=bound, atol=0.0)


# --------------------------------------------------------- what changed nothing, and what did

NOTHING: dict[str, Callable[[Tensor], object]] = {
    "multiplied by one": lambda g: g.mul_(1.0),
    "clamped to what it is": lambda g: g.clamp_(-1e6, 1e6),
    "nothing added": lambda g: g.add_(0.0),
    "no NaN to remove": lambda g: g.nan_to_num_(),
    "copied onto itself": lambda g: g.copy_(g.clone()),
    "there and back": lambda g: g.mul_(2.0).mul_(0.5),
    "through data": lambda g: g.data.mul_(1.0),
    "clipped by value to what it is": lambda g: nn.utils.clip_grad_value_([held(g)], 1e6),
}

SOMETHING: dict[str, Callable[[Tensor], object]] = {
    "halved": lambda g: g.mul_(0.5),
    "a last bit": lambda g: g.view(-1)[:1].view(torch.int32).bitwise_xor_(1),
    "weight decay": lambda g: g.add_(1e-6),
    "noise": lambda g: g.add_(torch.full_like(g, 1e-3)),
    "an entry masked": lambda g: g.view(-1)[2:3].zero_(),
    "one row scaled": lambda g: g[0].mul_(0.3),
    "an entry clipped": lambda g: g.clamp_(max=float(g.max()) * 0.99),
    "clipped by value": lambda g: nn.utils.clip_grad_value_([held(g)], 0.1),
    "centred": lambda g: g.sub_(g.mean()),
    "normalised": lambda g: g.div_(g.norm()),
    "through data": lambda g: g.data.mul_(0.5),
    "in a list": lambda g: torch._foreach_mul_([g], 0.5),
    "in a list, through data": lambda g: torch._foreach_mul_([g.data], 0.5),
    "through NumPy": lambda g: g.numpy().__imul__(0.5),
    "by a kernel that bumps nothing": lambda g: torch._amp_foreach_non_finite_check_and_unscale_(
        [g], torch.zeros(1), torch.tensor(0.5)
    ),
    "all zero": lambda g: g.zero_(),
    "NaN": lambda g: g.fill_(float("nan")),
}


def held(grad: Tensor) -> Tensor:
    """A parameter that has this very gradient."""
    param = nn.Parameter(torch.zeros_like(grad))
    param.grad = grad
    return param


@pytest.mark.parametrize("shape", [(3, 4), (3, 5), (4,)], ids=str)
@pytest.mark.parametrize("what", NOTHING)
def test_what_leaves_every_bit_leaves_the_variance(what: str, shape: tuple[int, ...]) -> None:
    param = make(shape)
    kept = param.grad.clone(), param.grad_var.clone()
    NOTHING[what](param.grad)
    assert torch.equal(param.grad, kept[0])
    assert torch.equal(current(param), kept[1])


@pytest.mark.parametrize("shape", [(3, 4), (3, 5), (4,)], ids=str)
@pytest.mark.parametrize("what", SOMETHING)
def test_what_changes_a_bit_ends_the_variance(what: str, shape: tuple[int, ...]) -> None:
    param = make(shape)
    SOMETHING[what](param.grad)
    assert not is_current(param)
    with pytest.raises(MissingVariance, match=r"changed in place.*svag\.clip_grad_norm_"):
        current(param)


def test_a_gradient_of_one_entry_tells_no_factor() -> None:
    """Another backward pass multiplies it as clipping does; only clipping has a known factor."""
    param = make((1,))
    (param * 3.0).sum().backward()
    assert not is_current(param)


def test_a_zero_gradient_tells_no_change_by_its_bits() -> None:
    dead, alive = make(), make()
    for param in (dead, alive):
        param.grad.zero_()
    attach(dead, torch.zeros(3, 4))
    attach(alive, torch.ones(3, 4))
    for param in (dead, alive):
        param.grad.mul_(0.5)
    assert is_current(dead)
    assert not is_current(alive)
    attach(alive, torch.ones(3, 4))
    clip_grad_norm_([make(seed=3), alive], 1e-3)
    assert current(alive).max() < 1e-6


def test_clipping_after_a_change_of_unknown_factor_brings_no_variance_back() -> None:
    param = make()
    param.grad.data.mul_(0.5)
    clip_grad_norm_([param], 0.1)
    assert not is_current(param)


def test_a_compiled_clipping_is_an_error_or_right() -> None:
    torch.compiler.reset()
    param = make()
    grad, variance = param.grad.clone(), param.grad_var.clone()
    torch.compile(clip_grad_norm_, backend="eager")([param], 0.1)
    if is_current(param):
        factor = float(param.grad[0, 0] / grad[0, 0])
        torch.testing.assert_close(current(param), variance * factor**2)


# ------------------------------------------------------------------------------- the scaler


def scaled(param: Tensor, scale: float) -> None:
    """A gradient of a scaled loss, and its variance."""
    param.grad = param.grad * scale
    attach(param, param.grad_var * scale**2)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("unscales", ["scaler.unscale_", "svag.unscale_", "scaler.step"])
@pytest.mark.parametrize("flags", [{"fused": None}, {"foreach": False}], ids=str)
def test_the_variance_follows_the_scaler(
    flags: dict[str, Any], unscales: str, clips: bool, enabled: bool
) -> None:
    """Against the same step without a scaler, whose scale is a power of two."""
    plain, param = make(), make()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=enabled)
    optimizers = [svag.MSVAG([p], variance="within-batch", **flags) for p in (plain, param)]
    scaler.scale(torch.zeros(()))
    scaled(param, 256.0 if enabled else 1.0)
    clips &= unscales != "scaler.step"
    if unscales == "scaler.unscale_":
        scaler.unscale_(optimizers[1])
    if unscales == "svag.unscale_":
        svag.unscale_(scaler, optimizers[1])
    for p in (plain, param) if clips else ():
        clip_grad_norm_([p], 0.1)
    optimizers[0].step()
    scaler.step(optimizers[1])
    scaler.update()
    assert torch.equal(plain, param)
    assert bool(plain.any())
    for name in ("exp_avg", "exp_avg_var"):
        assert torch.equal(optimizers[0].state[plain][name], optimizers[1].state[param][name])


def test_a_fused_step_takes_the_scale_in_itself() -> None:
    pytest.importorskip("numba")
    plain, param = make(), make()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizers = [svag.MSVAG([p], variance="within-batch", fused=True) for p in (plain, param)]
    scaler.scale(torch.zeros(()))
    scaled(param, 256.0)
    kept = param.grad.clone(), param.grad_var.clone()
    optimizers[0].step()
    scaler.step(optimizers[1])
    assert torch.equal(plain, param)
    assert torch.equal(param.grad, kept[0])
    assert torch.equal(current(param), kept[1])


class Own(torch.amp.GradScaler):
    """A scaler whose unscaling is its own."""

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad.div_(self.get_scale())


def test_a_scaler_with_an_unscaling_of_its_own_is_an_error() -> None:
    param = make()
    optimizer = svag.MSVAG([param], variance="within-batch")
    scaler = Own("cpu", init_scale=256.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    with pytest.raises(MissingVariance, match=r"svag\.unscale_\(scaler, optimizer\)"):
        optimizer.step()


@pytest.mark.parametrize("flags", [{"fused": None}, {"fused": False}, {"foreach": True}], ids=str)
def test_only_a_fused_step_says_that_it_unscales(flags: dict[str, Any]) -> None:
    """Lightning refuses to clip for optimizers that do, in bfloat16 as well."""
    optimizer = svag.MSVAG([make()], variance="within-batch", **flags)
    assert not optimizer._step_supports_amp_scaling
    assert not copy.deepcopy(optimizer)._step_supports_amp_scaling
