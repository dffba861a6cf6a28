"""Rows that are adapted by the variance inside each mini-batch, in every engine.

The oracle is fed the gradients' variances s_t and sums c_s^2 s_s explicitly, where the optimizer
has a recurrence. What counts as a variance's gradient, and how clipping and unscaling follow it, is
tested in tests/variance; here is what the optimizers make of it.
"""

import copy
import functools
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import assert_within
from reference import error
from torch import Tensor, nn

import svag
from svag.errors import MissingVariance, SvagError
from svag.variance.grad_var import attach, current, is_current

from .cases import ENGINES, WITHIN_BATCH, Case, by_name, every_engine, flat, named
from .data import DIMENSION, STEPS, conformance_gradients

GRADIENTS = conformance_gradients()
BOUND = {torch.float32: 2e-5, torch.float64: 1e-12}
REPORTED = (1, 2, 10, 100)

both_precisions = pytest.mark.parametrize("dtype", BOUND, ids=["float32", "float64"])

MOMENTUM = tuple(case for case in WITHIN_BATCH if case.anatomy.direction == "momentum")


def within(name: str) -> Case:
    return next(case for case in WITHIN_BATCH if case.name == name)


def made_variances() -> np.ndarray:
    """STEPS x DIMENSION, of relative variances from 1e-3 to 1e3; none at all in some columns."""
    rng = np.random.default_rng(1)
    scale = np.sqrt((GRADIENTS.astype(np.float64) ** 2).mean(axis=0))
    relative = 10.0 ** rng.uniform(-3, 3, DIMENSION)
    variances = scale**2 * relative * rng.chisquare(4, (STEPS, DIMENSION)) / 4
    variances[:, ::17] = 0.0
    return variances.astype(np.float32)


VARIANCES = made_variances()


def start_of(kind: str) -> np.ndarray:
    if kind == "zero":
        return np.zeros(DIMENSION, np.float32)
    # Of the mean gradient's sign, so that coupled decay pulls where it pulls (test_conformance.py).
    size = np.random.default_rng(1).uniform(0.5, 1.5, DIMENSION)
    return np.where(GRADIENTS.mean(axis=0) < 0, -size, size).astype(np.float32)


def give(param: Tensor, gradient: Any, variance: Any) -> None:
    """A gradient with its variance, as a recorder leaves them."""
    param.grad = torch.as_tensor(gradient).to(param.dtype, copy=True)
    attach(param, torch.as_tensor(variance).to(param.dtype, copy=True))


def parameter(values: np.ndarray, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values).to(dtype, copy=True))


def descend(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    columns: Sequence[np.ndarray],
    steps: int = STEPS,
) -> list[list[np.ndarray]]:
    """The parameters after each step along some columns of the conformance set."""
    history = []
    for gradient, variance in zip(GRADIENTS[:steps], VARIANCES[:steps], strict=True):
        for param, column in zip(params, columns, strict=True):
            give(param, gradient[column], variance[column])
        optimizer.step()
        history.append([flat(param) for param in params])
    return history


# --------------------------------------------------------------------------- conformance

EVERYTHING = np.arange(DIMENSION)
PIECES = {
    "all": EVERYTHING,
    "first": EVERYTHING.reshape(-1, 10)[:, :4].ravel(),
    "second": EVERYTHING.reshape(-1, 10)[:, 4:].ravel(),
}


@functools.cache
def reference_ends(case: Case, start: str, piece: str = "all", **options: Any):
    """The oracle's theta at the reported steps."""
    columns = PIECES[piece]
    steps = case.reference(
        GRADIENTS[:, columns], start_of(start)[columns], variances=VARIANCES[:, columns], **options
    )
    return {t: steps[t - 1].theta for t in REPORTED}


def assert_conforms(what, dtype, history, ends, bound=None):
    errors = {t: error(history[t - 1], ends[t]) for t in REPORTED}
    assert_within(
        f"within-batch, {what}, {dtype}", max(errors.values()), bound or BOUND[dtype], errors
    )


@both_precisions
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99, 0.999])
@every_engine
@by_name(MOMENTUM)
def test_displacement_along_an_average(case: Case, engine, beta, dtype):
    options = {"lr": case.lr, "beta": beta}
    p = parameter(start_of("zero"), dtype)
    history = descend(case.build([p], **options, **ENGINES[engine]), [p], [EVERYTHING])
    ends = reference_ends(case, "zero", **options)
    assert_conforms(f"displacement, {engine}", dtype, [theta for (theta,) in history], ends)


@both_precisions
@pytest.mark.parametrize("maximize", [False, True], ids=["", "maximize"])
@pytest.mark.parametrize("decay", ["none", "coupled", "decoupled"])
@every_engine
@by_name(WITHIN_BATCH)
def test_options(case: Case, engine, decay, maximize, dtype):
    """Decay does not vary within a mini-batch: s is the loss's."""
    start = "zero" if decay == "none" else "random"
    options = {"lr": case.lr, **case.decay(0.9), "maximize": maximize}
    if decay != "none":
        # Against the gradient that ascent follows, coupled decay would meet it at zero.
        options["weight_decay"] = 0.05
        options["decoupled_weight_decay"] = decay == "decoupled" or maximize
    p = parameter(start_of(start), dtype)
    history = descend(case.build([p], **options, **ENGINES[engine]), [p], [EVERYTHING])
    bound = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    ends = reference_ends(case, start, **options)
    thetas = [theta for (theta,) in history]
    assert_conforms(f"decay {decay}, {engine}", dtype, thetas, ends, bound)


@both_precisions
@every_engine
@by_name(WITHIN_BATCH)
def test_two_groups_of_different_options(case: Case, engine, dtype):
    groups = {
        "first": {"lr": case.lr, **case.decay(0.5)},
        "second": {
            "lr": 0.5 * case.lr,
            **case.decay(0.99),
            "maximize": True,
            "weight_decay": 0.02,
            "decoupled_weight_decay": True,
        },
    }
    columns = [PIECES[piece] for piece in groups]
    params = [parameter(start_of("zero")[column], dtype) for column in columns]
    described = [{"params": [p], **g} for p, g in zip(params, groups.values(), strict=True)]
    history = descend(case.build(described, **ENGINES[engine]), params, columns)
    for i, (piece, options) in enumerate(groups.items()):
        ends = reference_ends(case, "zero", piece, **options)
        assert_conforms(f"groups, {engine}", dtype, [thetas[i] for thetas in history], ends)


@every_engine
@by_name(WITHIN_BATCH)
def test_defaults_are_those_of_the_method(case: Case, engine):
    p = parameter(start_of("zero"))
    history = descend(case.build([p], **ENGINES[engine]), [p], [EVERYTHING])
    ends = reference_ends(case, "zero", lr=case.lr)
    assert_conforms("defaults", torch.float64, [theta for (theta,) in history], ends)


# Averages with a variance beyond the range of float16 are another test's.
HALF_COLUMNS = np.flatnonzero((VARIANCES.max(axis=0) < 1e3) & (np.abs(GRADIENTS).max(axis=0) > 0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_engine
@by_name([within(name) for name in ("svag", "m-svag", "adam-star", "m-ssd-erf", "ssd-erf")])
def test_half_precision_goes_the_same_way(case: Case, engine, dtype):
    """Ten steps, each rounded to half precision: 64 eps of the length of the way."""
    columns = HALF_COLUMNS[::3]
    options = {"lr": case.lr, **case.decay(0.5)}
    p = parameter(np.ones(len(columns), np.float32), dtype)
    gradients = [torch.from_numpy(g[columns]).to(dtype) for g in GRADIENTS[:10]]
    variances = [torch.from_numpy(v[columns]).to(dtype) for v in VARIANCES[:10]]
    optimizer = case.build([p], **options, **ENGINES[engine])
    for gradient, variance in zip(gradients, variances, strict=True):
        give(p, gradient, variance)
        optimizer.step()
    steps = case.reference(
        list(map(flat, gradients)), np.ones(len(columns)), variances=map(flat, variances), **options
    )
    reach = 1.0 + sum(np.abs(step.update) for step in steps)
    unit = torch.finfo(dtype).eps
    distance = np.abs(flat(p) - steps[-1].theta) / (unit * reach)
    assert_within(f"within-batch, eps of {dtype}, {engine}", float(distance.max()), 64.0)


@every_engine
@by_name(WITHIN_BATCH)
def test_complex_parameters_are_pairs_of_reals(case: Case, engine):
    pairs = [torch.view_as_complex(torch.from_numpy(x).reshape(STEPS, -1, 2).contiguous())
             for x in (GRADIENTS, VARIANCES)]  # fmt: skip
    p = nn.Parameter(torch.zeros(DIMENSION // 2, dtype=torch.complex64))
    options = {"lr": case.lr, **case.decay(0.9)}
    optimizer, history = case.build([p], **options, **ENGINES[engine]), []
    for gradient, variance in zip(*pairs, strict=True):
        p.grad = gradient.clone()
        attach(p, variance.clone())
        optimizer.step()
        history.append(flat(p))
    ends = reference_ends(case, "zero", **options)
    assert_conforms(f"complex, {engine}", torch.float32, history, ends)


@every_engine
@by_name(MOMENTUM)
def test_late_and_missing_gradients_count_steps_of_their_own(case: Case, engine):
    early, late = (parameter(start_of("zero")) for _ in range(2))
    optimizer = case.build([early, late], lr=case.lr, beta=0.9, **ENGINES[engine])
    for t in range(20):
        optimizer.zero_grad()
        give(early, GRADIENTS[t], VARIANCES[t])
        if t % 4 == 3:
            give(late, GRADIENTS[t], VARIANCES[t])
        optimizer.step()
    for p, times in ((early, slice(20)), (late, slice(3, 20, 4))):
        steps = case.reference(
            GRADIENTS[times], start_of("zero"), variances=VARIANCES[times], lr=case.lr, beta=0.9
        )
        assert error(flat(p), steps[-1].theta) < 1e-12


# --------------------------------------------------------------------------------- limits


def plain(case: Case) -> Case:
    """The same direction without a factor."""
    momentum, sign = case.anatomy.direction == "momentum", case.anatomy.sign
    return named(("m-" if momentum else "") + ("ssd" if sign else "sgd"))


def path(case: Case, variance: Any, steps: int = 5, **options: Any) -> Tensor:
    """Where five steps along the conformance set lead; ``variance`` None: not adapted."""
    p = parameter(start_of("zero"))
    optimizer = case.build([p], lr=case.lr, **case.decay(0.9), **options)
    for t in range(steps):
        p.grad = torch.from_numpy(GRADIENTS[t].astype(np.float64))
        if variance is not None:
            attach(p, torch.as_tensor(variance(t), dtype=torch.float64).expand(DIMENSION).clone())
        optimizer.step()
    return p.detach()


@every_engine
@by_name(WITHIN_BATCH)
def test_without_variance_nothing_is_adapted(case, engine):
    ours = path(case, lambda t: 0.0, **ENGINES[engine])
    theirs = path(plain(case), None, **ENGINES[engine])
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


@every_engine
@by_name(WITHIN_BATCH)
def test_of_pure_noise_nothing_is_believed(case, engine):
    ours = path(case, lambda t: 1e40, **ENGINES[engine])
    assert float(ours.abs().max()) < 1e-15


@every_engine
@pytest.mark.parametrize("value", [1e40, float("inf")])
@by_name(WITHIN_BATCH)
def test_a_variance_beyond_the_range_stops_a_coordinate_and_is_no_nan(case, value, engine):
    p = nn.Parameter(torch.zeros(4))
    optimizer = case.build([p], lr=0.1, **ENGINES[engine])
    for _ in range(3):
        give(p, [1.0, -2.0, 1e-20, 0.0], torch.tensor([value] * 4))
        optimizer.step()
    assert torch.equal(p.detach(), torch.zeros(4))


@every_engine
@by_name(WITHIN_BATCH)
def test_a_nan_gradient_shows_and_stays_with_its_coordinate(case, engine):
    p = nn.Parameter(torch.zeros(3))
    optimizer = case.build([p], lr=0.1, **ENGINES[engine])
    give(p, [1.0, float("nan"), 1.0], [0.1, 0.1, 0.1])
    optimizer.step()
    assert p.isnan().tolist() == [False, True, False]


@every_engine
@by_name(WITHIN_BATCH)
def test_the_first_step_is_adapted_already(case, engine):
    """Unlike with moving averages, which have seen one gradient and no variance."""
    ours = path(case, lambda t: VARIANCES[t], steps=1, **ENGINES[engine])
    gradient = GRADIENTS[0].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        eta_sq = np.where(gradient != 0, VARIANCES[0] / gradient**2, 0.0)
    expected = {"svag": 1 / (1 + eta_sq), "sqrt": (1 + eta_sq) ** -0.5}
    step = np.sign(gradient) if case.anatomy.sign else gradient
    if case.anatomy.factor in expected:
        moved = -case.lr * expected[case.anatomy.factor] * step
        np.testing.assert_allclose(ours.numpy(), moved, rtol=1e-12)
    else:
        reach = case.lr * np.abs(step)
        assert (np.abs(ours.numpy()) <= reach).all()
        assert (np.abs(ours.numpy()) < 0.5 * reach).any()


@by_name(WITHIN_BATCH)
@given(
    seed=st.integers(0, 2**32 - 1), exponent=st.integers(-8, 8), engine=st.sampled_from([*ENGINES])
)
@settings(max_examples=10)
def test_only_the_sign_is_free_of_the_scale(case, seed, exponent, engine):
    """Exactly so: gradients by a power of two, variances by its square."""
    rng = np.random.default_rng(seed)
    scale, ends = 2.0**exponent, []
    gradients = torch.from_numpy(rng.normal(size=(4, 30))).float()
    variances = torch.from_numpy(rng.chisquare(2, (4, 30))).float()
    for factor in (1.0, scale):
        p = nn.Parameter(torch.zeros(30))
        optimizer = case.build([p], lr=0.5, **ENGINES[engine])
        for gradient, variance in zip(gradients, variances, strict=True):
            give(p, factor * gradient, factor**2 * variance)
            optimizer.step()
        ends.append(p.detach())
    assert torch.equal(ends[1], ends[0] if case.anatomy.sign else scale * ends[0])


# ------------------------------------------------------------------- the variance itself


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    params = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    return params, copy.deepcopy(optimizer.state_dict()["state"])


def assert_unchanged(optimizer: torch.optim.Optimizer, before: Any) -> None:
    after = snapshot(optimizer)
    for one, other in zip(after[0], before[0], strict=True):
        assert torch.equal(one, other)
    saved = {index: state for index, state in after[1].items() if state}
    assert saved.keys() == {index for index, state in before[1].items() if state}
    for index, state in saved.items():
        assert state.keys() == before[1][index].keys()
        for name, value in state.items():
            assert torch.equal(value, before[1][index][name]), name


def never_estimated(p: nn.Parameter) -> None:
    p.grad = torch.ones_like(p)


def of_the_gradient_before(p: nn.Parameter) -> None:
    give(p, torch.ones(3), torch.ones(3))
    p.grad = torch.ones_like(p)


def changed_in_place(p: nn.Parameter) -> None:
    give(p, torch.ones(3), torch.ones(3))
    p.grad.mul_(0.5)


def written_by_hand(p: nn.Parameter) -> None:
    give(p, torch.ones(3), torch.ones(3))
    p.grad_var = torch.ones(3)  # type: ignore[attr-defined]


def clipped_by_value(p: nn.Parameter) -> None:
    give(p, torch.ones(3), torch.ones(3))
    nn.utils.clip_grad_value_([p], 0.1)


def dropped(p: nn.Parameter) -> None:
    give(p, torch.ones(3), torch.ones(3))
    svag.SGD([p]).zero_grad()
    p.grad = torch.ones_like(p)


FAULTS = {
    never_estimated: "svag.within_batch_variance",
    of_the_gradient_before: "svag.within_batch_variance",
    changed_in_place: "svag.clip_grad_norm_",
    written_by_hand: "attach",
    clipped_by_value: "svag.clip_grad_value_",
    dropped: "svag.micro_batch_variance",
}


@every_engine
@pytest.mark.parametrize("started", [False, True], ids=["at the first step", "later"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@by_name([within(name) for name in ("svag", "m-svag", "m-ssd-erf")])
def test_a_missing_variance_is_an_error_that_changes_nothing(case, fault, started, engine):
    first, second = (nn.Parameter(torch.linspace(1.0, 2.0, 3)) for _ in range(2))
    optimizer = case.build([first, second], **ENGINES[engine])
    if started:
        for p in (first, second):
            give(p, torch.ones(3), torch.ones(3))
        optimizer.step()
    before = snapshot(optimizer)
    give(first, torch.ones(3), torch.ones(3))
    second.__dict__.pop("grad_var", None)
    fault(second)
    with pytest.raises(MissingVariance) as caught:
        optimizer.step()
    assert isinstance(caught.value, SvagError)
    assert isinstance(caught.value, RuntimeError)
    assert FAULTS[fault] in str(caught.value)
    assert_unchanged(optimizer, before)
    give(second, torch.ones(3), torch.ones(3))
    optimizer.step()
    assert not torch.equal(second.detach(), before[0][1])
    for state in optimizer.state.values():
        assert "step" not in state or float(state["step"]) == 1 + started


@every_engine
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_drops_the_variance_with_the_gradient(set_to_none, engine):
    p, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = svag.MSVAG([p, other], variance="within-batch", **ENGINES[engine])
    give(p, torch.ones(3), torch.ones(3))
    optimizer.zero_grad(set_to_none=set_to_none)
    assert not hasattr(p, "grad_var")
    if set_to_none:
        optimizer.step()  # there is no gradient, so none whose variance is missing
        assert torch.equal(p.detach(), torch.ones(3))
    else:
        with pytest.raises(MissingVariance):
            optimizer.step()


@every_engine
@by_name(WITHIN_BATCH)
def test_gradients_and_variances_are_left_as_they_are(case, engine):
    p = nn.Parameter(torch.linspace(-1.0, 1.0, 9000))
    options = {"weight_decay": 0.1, "maximize": True}
    optimizer = case.build([p], **options, **ENGINES[engine])
    gradient, variance = torch.linspace(-3.0, 2.0, 9000), torch.linspace(0.0, 4.0, 9000)
    for _ in range(2):
        give(p, gradient, variance)
        held = p.grad, current(p)
        optimizer.step()
        assert p.grad is held[0]
        assert current(p) is held[1]
        assert torch.equal(p.grad, gradient)
        assert torch.equal(current(p), variance)


@every_engine
@by_name(WITHIN_BATCH)
def test_the_same_gradient_may_be_stepped_along_twice(case, engine):
    """Nothing has changed it, so its variance is still its own."""
    p = nn.Parameter(torch.ones(3))
    optimizer = case.build([p], **ENGINES[engine])
    give(p, torch.ones(3), torch.ones(3))
    optimizer.step()
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

    def backward(self, scaler: torch.amp.GradScaler | None = None, worst: float = 1.0) -> None:
        with svag.micro_batch_variance(self.params) as batches:
            for inputs, targets in zip(self.inputs, self.targets, strict=True):
                loss = worst * (self.model(inputs) - targets).square().mean() / 4
                (loss if scaler is None else scaler.scale(loss)).backward()
                batches.micro_step()


def clip_to(limit: float | None, params: list[nn.Parameter]) -> None:
    if limit is not None:
        svag.clip_grad_norm_(params, limit)


@every_engine
@pytest.mark.parametrize("limit", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("recipe", ["scaler.step alone", "svag.unscale_", "scaler.unscale_"])
@by_name([within(name) for name in ("svag", "m-svag", "adam-star", "ssd-erf")])
def test_a_scaler_changes_nothing_but_the_steps_that_it_skips(case, recipe, limit, engine):
    if recipe == "scaler.step alone" and limit is not None:
        limit = None  # what is clipped has to be unscaled before
    scaled, straight = Problem(), Problem()
    optimizer = case.build(scaled.params, **ENGINES[engine])
    unscaled = case.build(straight.params, **ENGINES[engine])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for worst in (1.0, float("inf"), 1.0, 1.0, float("nan"), 1.0):
        before = snapshot(optimizer)
        optimizer.zero_grad()
        scaled.backward(scaler, worst)
        if recipe == "svag.unscale_":
            svag.unscale_(scaler, optimizer)
        if recipe == "scaler.unscale_":
            scaler.unscale_(optimizer)
        if recipe != "scaler.step alone":
            clip_to(limit, scaled.params)
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf")
        if worst != 1.0:
            for p, old in zip(scaled.params, before[0], strict=True):
                assert torch.equal(p.detach(), old)
            continue
        unscaled.zero_grad()
        straight.backward()
        clip_to(limit, straight.params)
        unscaled.step()
        for p, q in zip(scaled.params, straight.params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    for p in scaled.params:
        state = optimizer.state[p]
        assert "step" not in state or float(state["step"]) == 4


@every_engine
def test_a_scaler_that_is_off_is_no_scaler(engine):
    scaled, straight = Problem(), Problem()
    optimizer = svag.MSVAG(scaled.params, variance="within-batch", **ENGINES[engine])
    unscaled = svag.MSVAG(straight.params, variance="within-batch", **ENGINES[engine])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(2):
        scaled.backward(scaler)
        svag.unscale_(scaler, optimizer)
        scaler.step(optimizer)
        scaler.update()
        straight.backward()
        unscaled.step()
        optimizer.zero_grad()
        unscaled.zero_grad()
    for p, q in zip(scaled.params, straight.params, strict=True):
        assert torch.equal(p, q)


@every_engine
@by_name([within(name) for name in ("svag", "m-svag", "adam-star")])
def test_clipping_by_svag_leaves_the_factor_as_it_was(case, engine):
    """g by c and s by c^2: at the first step the update of a sign is that of the whole gradient."""
    ends = []
    for limit in (None, 0.1):
        problem = Problem()
        optimizer = case.build(problem.params, lr=1.0, **ENGINES[engine])
        start = [p.detach().clone() for p in problem.params]
        problem.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in problem.params])
        clip_to(limit, problem.params)
        assert all(is_current(p) for p in problem.params)
        optimizer.step()
        ends.append([p.detach() - q for p, q in zip(problem.params, start, strict=True)])
    share = 1.0 if case.anatomy.sign else float(0.1 / norm)
    for whole, clipped in zip(*ends, strict=True):
        torch.testing.assert_close(clipped, share * whole, rtol=1e-4, atol=1e-7)


@every_engine
@by_name([within(name) for name in ("svag", "m-svag", "adam-star", "m-ssd-erf")])
def test_a_model_is_trained_by_it(case, engine):
    problem = Problem()
    optimizer = case.build(problem.params, lr=0.02 if case.anatomy.sign else 0.2, **ENGINES[engine])

    def loss() -> float:
        return (problem.model(problem.inputs) - problem.targets).square().mean().item()

    first = loss()
    for _ in range(100):
        optimizer.zero_grad()
        problem.backward()
        optimizer.step()
    assert loss() < 0.2 * first


# ----------------------------------------------------------------------------------- state


@every_engine
@by_name(WITHIN_BATCH)
def test_state_is_what_the_row_needs(case, engine):
    p = nn.Parameter(torch.ones(10))
    optimizer = case.build([p], **ENGINES[engine])
    for _ in range(2):
        give(p, torch.ones(10), torch.ones(10))
        optimizer.step()
    momentum = case.anatomy.direction == "momentum"
    expected = {"step", "exp_avg", "exp_avg_var"} if momentum else set()
    assert set(optimizer.state[p]) == expected
    assert set(case.anatomy.buffers) == expected - {"step"}
    if momentum:
        assert float(optimizer.state[p]["step"]) == 2


@every_engine
@by_name(MOMENTUM)
def test_the_variance_of_the_average_is_the_sum_of_the_gradients_shares(case, engine):
    p = parameter(start_of("zero"))
    optimizer = case.build([p], beta=0.9, **ENGINES[engine])
    descend(optimizer, [p], [EVERYTHING], steps=12)
    shares = (0.1 * 0.9 ** np.arange(11, -1, -1.0)) ** 2
    kept = flat(optimizer.state[p]["exp_avg_var"])
    np.testing.assert_allclose(kept, shares @ VARIANCES[:12].astype(np.float64), rtol=1e-13)


@every_engine
@pytest.mark.parametrize(
    "options",
    [{}, {"state_dtype": torch.bfloat16, "seed": 5}],
    ids=["float32 state", "bfloat16 state"],
)
@by_name(WITHIN_BATCH)
def test_resuming_is_exact_to_the_bit(case, options, engine):
    straight, p = (parameter(start_of("zero"), torch.float32) for _ in range(2))
    whole = case.build([straight], lr=case.lr, **options, **ENGINES[engine])
    first = case.build([p], lr=case.lr, **options, **ENGINES[engine])
    descend(whole, [straight], [EVERYTHING], steps=4)
    descend(first, [p], [EVERYTHING], steps=4)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = case.build([p], **ENGINES[engine])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(torch.load(file, weights_only=True))
    for name in case.anatomy.buffers:
        assert torch.equal(second.state[p][name], first.state[p][name])
        assert second.state[p][name].dtype == options.get("state_dtype", torch.float32)
    for optimizer, param in ((whole, straight), (second, p)):
        descend(optimizer, [param], [EVERYTHING], steps=5)
    assert torch.equal(p, straight)


@pytest.mark.parametrize("betas", [(0.9, 0.9), (0.9, 0.5), (0.5, 0.99)], ids=str)
@pytest.mark.parametrize("towards", ["within-batch", "moving-average"])
def test_switching_the_source_of_the_variance_keeps_that_of_the_average(towards, betas):
    """rho s from v and m on the one side, r~ over the debiasing's square on the other."""
    p, steps = parameter(start_of("zero")), 7
    source = "moving-average" if towards == "within-batch" else "within-batch"
    donor = svag.MSVAG([p], beta=betas[0], variance=source)
    descend(donor, [p], [EVERYTHING], steps=steps)
    taker = svag.MSVAG([p], beta=betas[1], variance=towards)
    with pytest.warns(UserWarning, match="keeps its own options"):
        taker.load_state_dict(donor.state_dict())
    assert set(taker.state[p]) == {"step", *taker.anatomy.buffers}

    def moments(optimizer: Any) -> tuple[np.ndarray, np.ndarray]:
        """m and its variance, as the supplement and Eqs. (21) and (22) have them."""
        state, beta = optimizer.state[p], optimizer.param_groups[0]["beta"]
        weight = 1 - beta**steps
        mean = flat(state["exp_avg"]) / weight
        if "exp_avg_var" in state:
            return mean, flat(state["exp_avg_var"]) / weight**2
        rho = (1 - beta) * (1 + beta**steps) / ((1 + beta) * weight)
        spread = flat(state["exp_avg_sq"]) / weight - mean**2
        return mean, np.maximum(spread, 0) * rho / (1 - rho)

    (mean, variance), (kept_mean, kept_variance) = moments(donor), moments(taker)
    np.testing.assert_allclose(kept_mean, mean, rtol=1e-13)
    if towards == "within-batch" or betas[0] == betas[1]:
        np.testing.assert_allclose(kept_variance, variance, rtol=1e-9, atol=1e-12 * (mean**2).max())
    else:  # v keeps the variance of g: another beta's average of it is another variance
        share = [(1 - b) * (1 + b**steps) / ((1 + b) * (1 - b**steps)) for b in betas]
        share = [rho / (1 - rho) for rho in share]
        expected = variance * share[1] / share[0]
        np.testing.assert_allclose(kept_variance, expected, rtol=1e-8, atol=1e-12 * (mean**2).max())
    descend(taker, [p], [EVERYTHING], steps=1)
    assert float(taker.state[p]["step"]) == steps + 1
    assert bool(p.isfinite().all())


def test_an_average_without_variance_starts_at_none():
    p = parameter(start_of("zero"))
    donor = svag.MSGD([p])
    descend(donor, [p], [EVERYTHING], steps=3)
    taker = svag.MSVAG([p], variance="within-batch")
    with pytest.warns(UserWarning, match="keeps its own options"):
        taker.load_state_dict(donor.state_dict())
    assert torch.equal(taker.state[p]["exp_avg_var"], torch.zeros_like(p))


# ----------------------------------------------------------------- compiled, copied, derived


@pytest.mark.parametrize("name", ["svag", "m-svag", "ssd-sqrt"])
@pytest.mark.parametrize("flags", [{}, *ENGINES.values()], ids=str)
def test_a_compiled_step_takes_at_most_two_graphs(name, flags):
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    case = within(name)
    p, q = (parameter(start_of("zero")[:60], torch.float32) for _ in range(2))
    one, other = case.build([p], **flags), case.build([q], foreach=False)
    counter = CompileCounter()
    step = torch.compile(one.step, backend=counter)
    for t in range(10):
        give(p, GRADIENTS[t][:60], VARIANCES[t][:60])
        give(q, GRADIENTS[t][:60], VARIANCES[t][:60])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()
        other.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert 1 <= counter.frame_count <= 2


def test_a_compiled_step_without_a_variance_is_the_same_error():
    torch.compiler.reset()
    p = nn.Parameter(torch.ones(3))
    optimizer = svag.MSVAG([p], variance="within-batch")
    p.grad = torch.ones(3)
    step = torch.compile(optimizer.step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MissingVariance, match=r"svag\.within_batch_variance"):
            step()
    assert torch.equal(p.detach(), torch.ones(3))


@every_engine
def test_copies_go_on_alike(engine):
    p = parameter(start_of("zero"))
    optimizer = svag.MSVAG([p], variance="within-batch", **ENGINES[engine])
    descend(optimizer, [p], [EVERYTHING], steps=3)
    twin = copy.deepcopy(optimizer)
    q = twin.param_groups[0]["params"][0]
    descend(optimizer, [p], [EVERYTHING], steps=2)
    descend(twin, [q], [EVERYTHING], steps=2)
    assert torch.equal(p, q)


@by_name([within(name) for name in ("svag", "m-svag", "adam-star", "m-ssd-erf")])
def test_differentiable_steps_have_the_derivative_of_the_step(case):
    gradients = torch.tensor([[1.0, -2.0, 0.5], [0.7, -1.0, 0.9]], dtype=torch.float64)

    def end(lr: Tensor, variance: Tensor) -> Tensor:
        p = torch.ones(3, dtype=torch.float64, requires_grad=True).clone()
        optimizer = case.build([p], lr=lr, differentiable=True)
        for gradient in gradients:
            p.grad = gradient * (p + 1)
            attach(p, variance.detach())
            optimizer.step()
        return p.sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda lr: end(lr, torch.full((3,), 0.3).double()), (lr,))
