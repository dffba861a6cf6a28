"""Every row and recombination on a fixed-seed set of gradients, against the float64 oracle.

The error of each coordinate is |theta - ref| / max(|ref_i|, max|ref| / 100), at steps 1, 2, 10 and
100. The oracle is fed the very float32 gradients that the optimizer is fed, cast up; where the
variance is that of the mini-batch, it is fed the gradients' variances s_t and sums c_s^2 s_s
explicitly, where the optimizer has a recurrence.
"""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from measured import assert_within
from reference import error, moving_average

from svag import METHODS as TABLE
from svag import Adam

from .cases import (
    BETAS,
    CASES,
    ENGINES,
    FEW,
    METHODS,
    WITHIN_BATCH,
    Case,
    by_name,
    descend,
    every_method,
)
from .data import DIMENSION, ROUND_OFF, conformance_gradients, conformance_variances

BOUND = {torch.float32: 2e-5, torch.float64: 1e-12}
REPORTED = (1, 2, 10, 100)
GRADIENTS, VARIANCES = conformance_gradients(), conformance_variances()

both_precisions = pytest.mark.parametrize("dtype", BOUND, ids=["float32", "float64"])
every_case = by_name(CASES + WITHIN_BATCH)


def start_at_zero():
    return np.zeros(DIMENSION, np.float32)


def start_at_random():
    """Of size 1/2 to 3/2 and of the mean gradient's sign, so that decay pulls where it pulls.

    Against it, coupled decay would bring g + wd theta to zero, and sign descent about its zero is
    chaotic: in the oracle itself a start changed by 1e-15 ends 5e-10 elsewhere, within 100 steps.
    """
    size = np.random.default_rng(1).uniform(0.5, 1.5, DIMENSION)
    return (np.where(GRADIENTS.mean(axis=0) < 0, -size, size)).astype(np.float32)


def parameter(values, dtype):
    return torch.nn.Parameter(torch.from_numpy(values).to(dtype, copy=True))


def indices(columns):
    return np.arange(DIMENSION).reshape(-1, 10)[:, slice(*columns)].ravel()


def run_torch(optimizer, params, dtype, pieces, gradients=GRADIENTS):
    """Theta of each parameter after each step, along some columns of the set for each."""
    steps, variances = (
        [[torch.from_numpy(row[piece]).to(dtype) for piece in pieces] for row in rows]
        for rows in (gradients, VARIANCES)
    )
    within = getattr(optimizer, "anatomy", None) and optimizer.anatomy.within_batch
    return zip(*descend(optimizer, params, steps, variances if within else None), strict=True)


def run_one(build, start, dtype, gradients=GRADIENTS):
    """Theta after each step of a parameter with all columns."""
    param = parameter(start, dtype)
    (history,) = run_torch(build([param]), [param], dtype, [np.arange(len(start))], gradients)
    return history


def by(engine, case: Case, **options):
    """What builds an optimizer that steps by this engine."""
    return lambda params: case.build(params, **options, **engine)


@functools.cache
def reference_ends(case: Case, start, columns: tuple[int, int] = (0, 10), **options):
    """The oracle's theta at the reported steps, with some of the columns of each ten."""
    piece = indices(columns)
    sample = {"variances": VARIANCES[:, piece]} if case.within_batch else {}
    steps = case.reference(GRADIENTS[:, piece], start()[piece], **sample, **options)
    return {t: steps[t - 1].theta for t in REPORTED}


def assert_conforms(what, dtype, history, ends, bound=None, detail: Any = ""):
    errors = {t: error(history[t - 1], ends[t]) for t in REPORTED}
    name = f"conformance, {what}, {dtype}"
    assert_within(name, max(errors.values()), bound or BOUND[dtype], (errors, detail))


@pytest.mark.parametrize("beta", [beta for beta in BETAS if beta])
def test_the_set_stays_away_from_round_off(beta):
    mean, magnitude = np.zeros(DIMENSION), np.zeros(DIMENSION)
    for gradient in GRADIENTS.astype(np.float64):
        mean = moving_average(mean, gradient, beta)
        magnitude = moving_average(magnitude, np.abs(gradient), beta)
        seen = magnitude > 0
        assert (np.abs(mean[seen]) / magnitude[seen]).min() > ROUND_OFF


@every_method
def test_the_table_of_methods(case):
    row = TABLE[case.name]
    assert (row.key, row.anatomy, row.lr) == (case.name, case.anatomy, case.lr)
    assert list(TABLE) == [case.name for case in METHODS]


@both_precisions
@every_case
def test_displacement(case, engine, dtype):
    """beta = 0 is a branch of its own; the other betas are numbers, the same for every engine."""
    betas = (0.0, 0.9) if engine != next(iter(ENGINES.values())) else BETAS
    for beta in betas if case.averages else (0.9,):
        options = {"lr": case.lr, **case.decay(beta)}
        history = run_one(by(engine, case, **options), start_at_zero(), dtype)
        ends = reference_ends(case, start_at_zero, **options)
        assert_conforms(f"displacement, {engine}", dtype, history, ends, detail=beta)


@by_name([case for case in CASES + WITHIN_BATCH if not case.amsgrad])
def test_defaults(case):
    """No option given: lr, beta, betas and eps are the documented ones."""
    history = run_one(case.build, start_at_zero(), torch.float64)
    ends = reference_ends(case, start_at_zero, lr=case.lr)
    assert_conforms("defaults", torch.float64, history, ends)


# What differs from group to group, two columns of ten each. Ascent meets coupled decay at zero,
# so it starts there; where decay pulls from elsewhere, float32 has five times the bound.
GROUPS: tuple[tuple[Any, float, dict[str, Any]], ...] = (
    (start_at_zero, 0.9, {}),
    (start_at_zero, 0.5, {"maximize": True, "weight_decay": 0.01}),
    (start_at_zero, 0.99, {"weight_decay": 0.02, "decoupled_weight_decay": True}),
    (start_at_random, 0.9, {"weight_decay": 0.05}),
    (start_at_random, 0.999, {"weight_decay": 0.05, "decoupled_weight_decay": True}),
    (start_at_random, 0.9, {"weight_decay": 0.05, "decoupled_weight_decay": True,
                            "maximize": True}),
)  # fmt: skip
SIXTHS = ((0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10))


# A loop for groups is compiled for each row in float32, and for a few in float64: how a gradient is
# altered and decays has nothing to do with how it is stored.
@pytest.mark.parametrize(
    ("case", "engine", "dtype"),
    [
        (case, engine, dtype)
        for case in CASES + WITHIN_BATCH
        for engine in ENGINES.values()
        for dtype in BOUND
        if "fused" not in engine or dtype == torch.float32 or case in FEW
    ],
    ids=str,
)
def test_groups_of_different_options(case, engine, dtype):
    """All in one call of the fused engine; decay does not vary within a mini-batch."""
    share = (1.0, 0.5, 2.0, 1.0, 1.0, 0.5)
    options = [
        {"lr": lr * case.lr, **case.decay(beta, max(beta, 0.95)), **own}
        for lr, (_, beta, own) in zip(share, GROUPS, strict=True)
    ]
    pieces = list(map(indices, SIXTHS))
    params = [
        parameter(start()[piece], dtype)
        for piece, (start, _, _) in zip(pieces, GROUPS, strict=True)
    ]
    groups = [{"params": [p], **g} for p, g in zip(params, options, strict=True)]
    optimizer = by(engine, case)(groups)
    histories = run_torch(optimizer, params, dtype, pieces)
    for history, own, columns, (start, _, _) in zip(
        histories, options, SIXTHS, GROUPS, strict=True
    ):
        far = start is start_at_random and dtype == torch.float32
        ends = reference_ends(case, start, columns, **own)
        what = "far groups" if far else "groups"
        assert_conforms(f"{what}, {engine}", dtype, history, ends, 1e-4 if far else None, own)
    if "fused" in engine:
        assert len(optimizer._plan.fused) == 1


@both_precisions
@by_name([case for case in CASES if case.raw])
def test_raw_factors_far_above_one(case, engine, dtype):
    """After 300 silent steps m^2 / v = 260: nothing may be lost by taking 1 + r with r near -1.

    The oracle does take it, which costs it 260 of float64's eps.
    """
    gradients = np.zeros((301, 8), np.float32)
    gradients[-1] = [1.0, 0.3, -0.7, -2.0, 0.01, 1.1, 3.3, -10.0]
    options, start = {"lr": case.lr, **case.decay(0.0)}, np.zeros(8, np.float32)
    theta = run_one(by(engine, case, **options), start, dtype, gradients)[-1]
    expected = case.reference(gradients, start, **options)[-1].theta
    np.testing.assert_allclose(theta, expected, rtol=BOUND[dtype] / 10)


@by_name(CASES)
def test_the_start_is_debiased_to_rounding(case, engine):
    """1 - beta^n by subtraction is off by 65 eps at beta = 0.999, n = 2, and 1132 at 0.9999.

    expm1(n log beta) is right to one eps.
    """
    gradients, start = np.ones((4, 8)) * np.linspace(0.5, 8.0, 8), np.zeros(8)
    for beta in (0.999, 0.9999):
        options = {"lr": case.lr, **case.decay(beta, beta)}
        history = run_one(by(engine, case, **options), start, torch.float64, gradients)
        references = case.reference(gradients, start, **options)
        for theta, reference in zip(history, references, strict=True):
            np.testing.assert_allclose(theta, reference.theta, rtol=16 * np.finfo(np.float64).eps)


ALL_OPTIONS = {"amsgrad": True, "maximize": True, "weight_decay": 0.1, "betas": (0.99, 0.99)}


@both_precisions
@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["defaults", "all options"])
def test_adam_is_torchs(options, decoupled, engine, dtype):
    """A hundred steps from a random start; each of torch's configurations in test_torch_cases."""
    theirs = torch.optim.AdamW if decoupled else torch.optim.Adam
    if decoupled:
        options = {"weight_decay": 0.01, **options}
    flags = {"decoupled_weight_decay": decoupled, **engine}
    ends = [
        run_one(build, start_at_random(), dtype)
        for build in (lambda ps: Adam(ps, **options, **flags), lambda ps: theirs(ps, **options))
    ]
    errors = {t: error(ends[0][t - 1], ends[1][t - 1]) for t in REPORTED}
    name = f"{theirs.__name__} against torch, {engine}, {dtype}"
    assert_within(name, max(errors.values()), BOUND[dtype], errors)
