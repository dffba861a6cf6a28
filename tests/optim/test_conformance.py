"""Every method and recombination on a fixed-seed set of gradients, against the float64 oracle.

The error of each coordinate is |theta - ref| / max(|ref_i|, max|ref| / 100), at steps 1, 2, 10 and
100. The oracle is fed the very float32 gradients that the optimizer is fed, cast up.
"""

import functools

import numpy as np
import pytest
import torch
from measured import assert_within
from reference import error, moving_average

from svag import METHODS as TABLE
from svag import Adam

from .cases import BETAS, CASES, ENGINES, METHODS, Case, by_name, descend, every_engine
from .data import DIMENSION, ROUND_OFF, conformance_gradients

BOUND = {torch.float32: 2e-5, torch.float64: 1e-12}
REPORTED = (1, 2, 10, 100)
GRADIENTS = conformance_gradients()

both_precisions = pytest.mark.parametrize("dtype", BOUND, ids=["float32", "float64"])
FIRST, *OTHERS = ENGINES


def some_betas(first: tuple[float, ...], others: tuple[float, ...]) -> pytest.MarkDecorator:
    """Betas of one engine and those of the others, which take the same steps from them."""
    pairs = [(FIRST, beta) for beta in first] + [(e, beta) for e in OTHERS for beta in others]
    return pytest.mark.parametrize(("engine", "beta"), pairs)


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


def by(engine, case: Case, **options):
    """What builds an optimizer that steps by this engine."""
    return lambda params: case.build(params, **options, **ENGINES[engine])


def run_torch(build, start, dtype, gradients=GRADIENTS):
    """Theta after each step."""
    param = parameter(start, dtype)
    steps = [[torch.from_numpy(g).to(dtype)] for g in gradients]
    return [theta for (theta,) in descend(build([param]), [param], steps)]


@functools.cache
def reference_ends(case: Case, start, columns: tuple[int, int] = (0, 10), **options):
    """The oracle's theta at the reported steps, with some of the columns of each ten."""
    piece = indices(columns)
    steps = case.reference(GRADIENTS[:, piece], start()[piece], **options)
    return {t: steps[t - 1].theta for t in REPORTED}


def indices(columns):
    return np.arange(DIMENSION).reshape(-1, 10)[:, slice(*columns)].ravel()


def assert_conforms(what, dtype, history, ends, bound=None):
    errors = {t: error(history[t - 1], ends[t]) for t in REPORTED}
    name = f"conformance, {what}, {dtype}"
    assert_within(name, max(errors.values()), bound or BOUND[dtype], errors)


@pytest.mark.parametrize("beta", [beta for beta in BETAS if beta])
def test_the_set_stays_away_from_round_off(beta):
    mean, magnitude = np.zeros(DIMENSION), np.zeros(DIMENSION)
    for gradient in GRADIENTS.astype(np.float64):
        mean = moving_average(mean, gradient, beta)
        magnitude = moving_average(magnitude, np.abs(gradient), beta)
        seen = magnitude > 0
        assert (np.abs(mean[seen]) / magnitude[seen]).min() > ROUND_OFF


@by_name(METHODS)
def test_the_table_of_methods(case):
    assert TABLE[case.name].key == case.name
    assert TABLE[case.name].anatomy == case.anatomy
    assert TABLE[case.name].lr == case.lr


def test_the_table_is_complete():
    assert list(TABLE) == [case.name for case in METHODS]


@both_precisions
@some_betas(BETAS, (0.0, 0.9))  # 0 is a branch of its own
@by_name(CASES)
def test_displacement(case: Case, engine, beta, dtype):
    options = {"lr": case.lr, **case.decay(beta)}
    history = run_torch(by(engine, case, **options), start_at_zero(), dtype)
    ends = reference_ends(case, start_at_zero, **options)
    assert_conforms(f"displacement, {engine}", dtype, history, ends)


@both_precisions
@by_name([case for case in CASES if not case.amsgrad])
def test_defaults(case: Case, dtype):
    """No option given: lr, beta, betas and eps are the documented ones."""
    history = run_torch(case.build, start_at_zero(), dtype)
    assert_conforms("defaults", dtype, history, reference_ends(case, start_at_zero, lr=case.lr))


@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@some_betas((0.5, 0.9, 0.999), (0.9,))
@by_name(CASES)
def test_weight_decay_from_a_random_start(case: Case, engine, beta, dtype, decoupled):
    decay = {"weight_decay": 0.05, "decoupled_weight_decay": decoupled}
    options = {"lr": case.lr, **case.decay(beta), **decay}
    history = run_torch(by(engine, case, **options), start_at_random(), dtype)
    ends = reference_ends(case, start_at_random, **options)
    kind = f"{'decoupled' if decoupled else 'coupled'} weight decay, {engine}"
    bound = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert_conforms(kind, dtype, history, ends, bound)


@both_precisions
@every_engine
@by_name([case for case in CASES if case.raw])
def test_raw_factors_far_above_one(case: Case, engine, dtype):
    """After 1000 silent steps m^2 / v = 632: nothing may be lost by taking 1 + r with r near -1.

    The oracle does take it, which costs it 632 of float64's eps.
    """
    gradients = np.zeros((1001, 8), np.float32)
    gradients[-1] = [1.0, 0.3, -0.7, -2.0, 0.01, 1.1, 3.3, -10.0]
    options, start = {"lr": case.lr, **case.decay(0.0)}, np.zeros(8, np.float32)
    theta = run_torch(by(engine, case, **options), start, dtype, gradients)[-1]
    expected = case.reference(gradients, start, **options)[-1].theta
    np.testing.assert_allclose(theta, expected, rtol=BOUND[dtype] / 10)


@pytest.mark.parametrize("beta", [0.999, 0.9999])
@every_engine
@by_name(CASES)
def test_the_start_is_debiased_to_rounding(case: Case, engine, beta):
    """1 - beta^n by subtraction is off by 65 eps at beta = 0.999, n = 2, and 1132 at 0.9999.

    expm1(n log beta) is right to one eps.
    """
    gradients = np.ones((4, 8)) * np.linspace(0.5, 8.0, 8)
    options, start = {"lr": case.lr, **case.decay(beta, beta)}, np.zeros(8)
    history = run_torch(by(engine, case, **options), start, torch.float64, gradients)
    references = case.reference(gradients, start, **options)
    for theta, reference in zip(history, references, strict=True):
        np.testing.assert_allclose(theta, reference.theta, rtol=16 * np.finfo(np.float64).eps)


@both_precisions
@every_engine
@by_name(CASES)
def test_groups_of_different_options(case: Case, engine, dtype):
    groups = [
        {"lr": case.lr, **case.decay(0.9)},
        {
            "lr": 0.5 * case.lr,
            **case.decay(0.5, 0.95),
            "maximize": True,
            "weight_decay": 0.01,
        },
        {
            "lr": 2.0 * case.lr,
            **case.decay(0.99, 0.99),
            "weight_decay": 0.02,
            "decoupled_weight_decay": True,
        },
    ]
    columns = ((0, 3), (3, 6), (6, 10))
    pieces = list(map(indices, columns))
    params = [parameter(start_at_zero()[piece], dtype) for piece in pieces]
    optimizer = by(engine, case)(
        [{"params": [p], **g} for p, g in zip(params, groups, strict=True)]
    )
    steps = [[torch.from_numpy(g[piece]).to(dtype) for piece in pieces] for g in GRADIENTS]
    history = descend(optimizer, params, steps)
    for i, options in enumerate(groups):
        ends = reference_ends(case, start_at_zero, columns[i], **options)
        assert_conforms(f"groups, {engine}", dtype, [thetas[i] for thetas in history], ends)


@both_precisions
@every_engine
@by_name(CASES)
def test_complex_parameters_are_pairs_of_reals(case: Case, engine, dtype):
    def paired(values):
        return torch.view_as_complex(torch.from_numpy(values).to(dtype).reshape(-1, 2))

    param = torch.nn.Parameter(paired(start_at_zero()))
    options = {"lr": case.lr, **case.decay(0.9)}
    optimizer = by(engine, case, **options)([param])
    history = descend(optimizer, [param], [[paired(g)] for g in GRADIENTS])
    ends = reference_ends(case, start_at_zero, **options)
    assert_conforms(f"complex, {engine}", dtype, [theta for (theta,) in history], ends)


ADAM_OPTIONS = (
    {},
    {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-4},
    {"amsgrad": True},
    {"maximize": True},
    {"weight_decay": 0.1},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.1, "betas": (0.99, 0.99)},
)


@both_precisions
@every_engine
@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
@pytest.mark.parametrize("options", ADAM_OPTIONS, ids=str)
@pytest.mark.parametrize("start", [start_at_zero, start_at_random])
def test_adam_is_torchs(options, decoupled, engine, dtype, start):
    if decoupled:
        options = {"weight_decay": 0.01, **options}
        torchs = torch.optim.AdamW
    else:
        torchs = torch.optim.Adam
    flags = {"decoupled_weight_decay": decoupled, **ENGINES[engine]}
    ours = run_torch(lambda params: Adam(params, **options, **flags), start(), dtype)
    theirs = run_torch(lambda params: torchs(params, **options), start(), dtype)
    errors = {t: error(ours[t - 1], theirs[t - 1]) for t in REPORTED}
    name = f"{'AdamW' if decoupled else 'Adam'} against torch, {engine}, {dtype}"
    assert_within(name, max(errors.values()), BOUND[dtype], errors)
