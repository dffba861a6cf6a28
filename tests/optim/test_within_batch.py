"""What only rows adapted by the variance inside each mini-batch have: that variance.

That they take the oracle's steps, in every engine and with every option, is in test_conformance.py.
What counts as a variance's gradient, and how clipping and unscaling follow it, is tested in
tests/variance; here is what the optimizers make of it.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import svag
from svag.errors import MissingVariance, SvagError
from svag.variance.grad_var import current, is_current

from .cases import WITHIN_BATCH, by_name, flat, give, named
from .data import DIMENSION, conformance_gradients, conformance_variances
from .stepping import assert_all_equal, assert_same_state, copies, held, step

GRADIENTS, VARIANCES = conformance_gradients(), conformance_variances()
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
MOMENTUM = [case for case in WITHIN_BATCH if case.anatomy.direction == "momentum"]
# Both directions, all factors.
FEW = named("svag/batch", "m-svag/batch", "sgd-sqrt/batch", "m-ssd-erf/batch")


def zeros(size: int = DIMENSION, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size, dtype=dtype))


def descend(optimizer: torch.optim.Optimizer, param: Tensor, times: Sequence[int]) -> None:
    """Steps along the conformance set."""
    for t in times:
        step(optimizer, GRADIENTS[t], variance=VARIANCES[t])


# ----------------------------------------------------------------------------- half precision

SIZE = 200


def noisy(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A gradient and its variance, of relative variances from 0.01 to 100.

    Gradients of 1e-4, as those of a float16 model are, have variances of 1e-8: nothing in float16.
    """
    generator = torch.Generator().manual_seed(0)
    grad = (1e-4 * (1 + torch.rand(SIZE, generator=generator))).to(dtype)
    return grad, grad.float().square() * 10.0 ** torch.linspace(-2, 2, SIZE)


@HALVES
def test_a_variance_is_kept_in_float32(dtype):
    grad, variance = noisy(dtype)
    for given in (variance, variance.double()):
        param = zeros(SIZE, dtype)
        give(param, grad, given)
        assert current(param).dtype == torch.float32
        torch.testing.assert_close(current(param), variance)
    for full in (torch.float32, torch.float64, torch.complex64):
        param = zeros(2, full)
        give(param, 1.0, 1.0)
        assert current(param).dtype == full


@HALVES
@by_name([*named("adam-star/batch"), *FEW])
def test_half_gradients_are_adapted_by_a_variance_beyond_float16(case, engine, dtype):
    """From zero; averages in float32 keep it (docs), else exp_avg_var has the parameter's dtype."""
    momentum = case in MOMENTUM
    param, times = zeros(SIZE, dtype), 3 if momentum else 1
    options = {"lr": 1.0, **({"beta": 0.9} if momentum else {})}
    state = {"state_dtype": torch.float32} if momentum else {}
    optimizer = case.build([param], **options, **state, **engine)
    grad, variance = noisy(dtype)
    assert dtype != torch.float16 or not variance.half()[: SIZE // 4].any()
    for _ in range(times):
        step(optimizer, grad, variance=variance)
    if momentum:
        kept = optimizer.state[param]["exp_avg_var"]
        assert kept.dtype == torch.float32
        shares = ((0.1 * 0.9 ** np.arange(3)) ** 2).sum()
        np.testing.assert_allclose(flat(kept), shares * flat(variance), rtol=1e-5)
    steps = case.reference(
        [flat(grad)] * times, np.zeros(SIZE), variances=[flat(variance)] * times, **options
    )
    unit, few = torch.finfo(dtype), 4 if momentum else 1
    reach = sum(np.abs(step.update) for step in steps)
    bound = max(few, 2) * unit.eps * reach + few * unit.smallest_normal * unit.eps
    assert (np.abs(flat(param) - steps[-1].theta) <= bound).all()
    assert current(param).dtype == torch.float32
    if "fused" in engine:  # not left to the eager engine for a dtype beside the parameter's
        assert len(optimizer._plan.fused) == 1
        assert not optimizer._plan.rest


CLIPS = {
    "torch's norm": (lambda ps: nn.utils.clip_grad_norm_(ps, 1e-4), 0.2),
    "svag's norm": (lambda ps: svag.clip_grad_norm_(ps, 1e-4), 0.2),
    "value": (lambda ps: svag.clip_grad_value_(ps, 1.2e-4), 1e-5),
}


@HALVES
@pytest.mark.parametrize("how", CLIPS)
def test_clipping_leaves_float32(how, dtype):
    clip, bound = CLIPS[how]
    param = zeros(SIZE, dtype)
    svag.micro_batch_variance([param])
    grad, variance = noisy(dtype)
    give(param, grad, variance)
    clip([param])
    assert current(param).dtype == torch.float32
    factor = param.grad.double() / grad.double()
    ratio = current(param).double() / (variance.double() * factor.square())
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=bound, atol=0.0)


# --------------------------------------------------------------------------------- limits


@by_name(WITHIN_BATCH)
def test_infinite_variances_stop_a_coordinate_and_nan_shows_in_it(case, engine):
    inf, nan = float("inf"), float("nan")
    for value, dtype in ((1e40, torch.float32), (inf, torch.float32), (1e40, torch.float64)):
        p = zeros(4, dtype)
        optimizer = case.build([p], lr=0.1, **engine)
        for _ in range(3):
            step(optimizer, [1.0, -2.0, 1e-20, 0.0], variance=value)
        assert float(p.detach().abs().max()) <= (1e-15 if dtype == torch.float64 else 0.0)
    p = zeros(4, torch.float32)
    optimizer = case.build([p], lr=0.1, **engine)
    step(optimizer, [1.0, nan, 1.0, 1.0], variance=[0.1, 0.1, nan, 0.1])
    assert p.isnan().tolist() == [False, True, True, False]


# ------------------------------------------------------------------- the variance itself


def drop(p: Any) -> None:
    svag.SGD([p]).zero_grad()
    p.grad = torch.ones_like(p)


# What happens to a gradient with a variance, and what the error names.
FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "never estimated": (lambda p: vars(p).pop("grad_var"), "svag.within_batch_variance"),
    "of the gradient before": (
        lambda p: setattr(p, "grad", torch.ones_like(p)),
        "svag.within_batch_variance",
    ),
    "changed in place": (lambda p: p.grad.mul_(0.5), "svag.clip_grad_norm_"),
    "written by hand": (lambda p: setattr(p, "grad_var", torch.ones(3)), "attach"),
    "clipped by value": (
        lambda p: nn.utils.clip_grad_value_([p], 0.1),
        "svag.clip_grad_value_",
    ),
    "dropped": (drop, "svag.micro_batch_variance"),
}


@pytest.mark.parametrize("started", [False, True], ids=["at the first step", "later"])
@pytest.mark.parametrize("fault", FAULTS)
@by_name(named("svag/batch", "m-svag/batch"))
def test_a_missing_variance_is_an_error_that_changes_nothing(case, fault, started, engine):
    first, second = (nn.Parameter(torch.linspace(1.0, 2.0, 3)) for _ in range(2))
    optimizer = case.build([first, second], **engine)
    if started:
        step(optimizer, 1.0, variance=1.0)
    before, state = copies(held(optimizer)), copy.deepcopy(optimizer.state_dict())
    for p in (first, second):
        give(p, 1.0, 1.0)
    happens, words = FAULTS[fault]
    happens(second)
    with pytest.raises(MissingVariance) as caught:
        optimizer.step()
    assert isinstance(caught.value, SvagError)
    assert isinstance(caught.value, RuntimeError)
    assert words in str(caught.value)
    assert_all_equal(held(optimizer), before)
    assert_same_state(optimizer, state)
    step(optimizer, 1.0, variance=1.0)
    assert not torch.equal(second, before[1])
    for state in optimizer.state.values():
        assert "step" not in state or float(state["step"]) == 1 + started


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_drops_the_variance_with_the_gradient(set_to_none, engine):
    p, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = svag.MSVAG([p, other], variance="within-batch", **engine)
    give(p, 1.0, 1.0)
    optimizer.zero_grad(set_to_none=set_to_none)
    assert not hasattr(p, "grad_var")
    if set_to_none:
        optimizer.step()  # there is no gradient, so none whose variance is missing
        assert torch.equal(p.detach(), torch.ones(3))
    else:
        with pytest.raises(MissingVariance):
            optimizer.step()


@by_name(WITHIN_BATCH)
def test_the_same_gradient_may_be_stepped_along_twice(case, engine):
    """Nothing has changed it, so its variance is still its own."""
    p = nn.Parameter(torch.ones(3))
    optimizer = case.build([p], **engine)
    step(optimizer, 1.0, variance=1.0)
    once = p.detach().clone()
    optimizer.step()
    assert not torch.equal(p, once)


# ---------------------------------------------------------------------- what trains a model


class Problem:
    """A small regression whose gradient comes in four micro-batches."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        self.inputs = torch.randn(4, 8, 4)
        self.targets = self.inputs.sum(-1, keepdim=True)

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def backward(self) -> None:
        with svag.micro_batch_variance(self.params) as batches:
            for inputs, targets in zip(self.inputs, self.targets, strict=True):
                ((self.model(inputs) - targets).square().mean() / 4).backward()
                batches.micro_step()


@by_name([*named("adam-star/batch"), *FEW])
def test_clipping_by_svag_leaves_the_factor_as_it_was(case, engine):
    """g by c and s by c^2: at the first step the update of a sign is that of the whole gradient."""
    ends = []
    for limit in (None, 0.1):
        problem = Problem()
        optimizer = case.build(problem.params, lr=1.0, **engine)
        start = [p.detach().clone() for p in problem.params]
        problem.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in problem.params])
        if limit is not None:
            svag.clip_grad_norm_(problem.params, limit)
        assert all(is_current(p) for p in problem.params)
        optimizer.step()
        ends.append([p.detach() - q for p, q in zip(problem.params, start, strict=True)])
    share = 1.0 if case.anatomy.sign else float(0.1 / norm)
    for whole, clipped in zip(*ends, strict=True):
        torch.testing.assert_close(clipped, share * whole, rtol=1e-4, atol=1e-7)


@by_name([*named("adam-star/batch"), *FEW])
def test_a_model_is_trained_by_it(case, engine):
    problem = Problem()
    optimizer = case.build(problem.params, lr=0.02 if case.anatomy.sign else 0.2, **engine)

    def loss() -> float:
        return (problem.model(problem.inputs) - problem.targets).square().mean().item()

    first = loss()
    for _ in range(100):
        optimizer.zero_grad()
        problem.backward()
        optimizer.step()
    assert loss() < 0.2 * first


# ----------------------------------------------------------------------------------- state


@by_name(MOMENTUM)
def test_the_variance_of_the_average_is_the_sum_of_the_gradients_shares(case, engine):
    p = zeros()
    optimizer = case.build([p], beta=0.9, **engine)
    descend(optimizer, p, range(12))
    shares = (0.1 * 0.9 ** np.arange(11, -1, -1.0)) ** 2
    kept = flat(optimizer.state[p]["exp_avg_var"])
    np.testing.assert_allclose(kept, shares @ VARIANCES[:12].astype(np.float64), rtol=1e-13)


@pytest.mark.parametrize("betas", [(0.9, 0.9), (0.9, 0.5), (0.5, 0.99)], ids=str)
@pytest.mark.parametrize("towards", ["within-batch", "moving-average"])
def test_switching_the_source_of_the_variance_keeps_that_of_the_average(towards, betas):
    """rho s from v and m on the one side, r~ over the debiasing's square on the other."""
    p, steps = zeros(), 7
    source = "moving-average" if towards == "within-batch" else "within-batch"
    donor = svag.MSVAG([p], beta=betas[0], variance=source)
    descend(donor, p, range(steps))
    before = donor.relative_variance(p)
    taker = svag.MSVAG([p], beta=betas[1], variance=towards)
    with pytest.warns(UserWarning, match="keeps its own options"):
        taker.load_state_dict(donor.state_dict())
    assert set(taker.state[p]) == {"step", *taker.anatomy.buffers}
    kept, mean = (flat(optimizer.state[p]["exp_avg"]) for optimizer in (donor, taker))
    weights = [1 - beta**steps for beta in betas]
    np.testing.assert_allclose(mean / weights[1], kept / weights[0], rtol=1e-13)
    rhos = [(1 - b) * (1 + b**steps) / ((1 + b) * (1 - b**steps)) for b in betas]
    # v keeps the variance of g, of which another beta's average has another share
    share = rhos[1] / (1 - rhos[1]) * (1 - rhos[0]) / rhos[0]
    expected = flat(before) * (share if towards == "moving-average" else 1.0)
    np.testing.assert_allclose(flat(taker.relative_variance(p)), expected, rtol=1e-8, atol=1e-11)
    descend(taker, p, range(1))
    assert float(taker.state[p]["step"]) == steps + 1
    assert bool(p.isfinite().all())
