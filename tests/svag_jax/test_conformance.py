"""Every row and recombination against the float64 oracle, within the torch engines' bounds.

The set of gradients, the cases and the measure of error are those of
tests/optim/test_conformance.py.
"""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

import jax
import jax.numpy as jnp
import optax
from measured import assert_within
from optim.cases import BETAS, CASES, FEW, METHODS, WITHIN_BATCH, Case, by_name
from optim.test_conformance import (
    GRADIENTS,
    GROUPS,
    REPORTED,
    SIXTHS,
    VARIANCES,
    indices,
    reference_ends,
    start_at_random,
    start_at_zero,
)
from reference import error

import svag.jax as sj
from svag import METHODS as TABLE

from .stepping import build, path, precision, walk

BOUND = {"float32": 2e-5, "float64": 1e-12}
both_precisions = pytest.mark.parametrize("dtype", BOUND)
every_case = by_name(CASES + WITHIN_BATCH)


def assert_conforms(what: str, dtype: str, history: Any, ends: Any, bound: float | None = None):
    errors = {t: error(history[t - 1], ends[t]) for t in REPORTED}
    name = f"conformance, jax {what}, {dtype}"
    assert_within(name, max(errors.values()), bound or BOUND[dtype], errors)


def run(case: Case, dtype: str, **options: Any) -> Any:
    with precision(dtype):
        variances = VARIANCES.astype(dtype) if case.within_batch else None
        return path(case, GRADIENTS.astype(dtype), variances=variances, **options)


@both_precisions
@every_case
def test_displacement(case: Case, dtype: str):
    for beta in (0.0, 0.9) if case.averages and case in FEW else (0.9,):
        options = {"lr": case.lr, **case.decay(beta)}
        history = run(case, dtype, **options)
        ends = reference_ends(case, start_at_zero, **options)
        assert_conforms("displacement", dtype, history, ends)


@both_precisions
@by_name([case for case in FEW if case.averages and not case.raw])
def test_displacement_with_a_traced_decay(case: Case, dtype: str):
    """As under inject_hyperparams. The oracle is given the decay that float32 can hold."""

    def given(beta: float) -> Any:
        return np.asarray(beta, dtype)

    with precision(dtype):

        @jax.jit
        def thetas(beta: Any) -> Any:
            tx = build(case, case.lr, beta=beta)
            sample = jnp.asarray(VARIANCES, dtype) if case.within_batch else None
            start = jnp.zeros(GRADIENTS.shape[1], dtype)
            return walk(tx, start, jnp.asarray(GRADIENTS, dtype), sample)[0]

        for beta in BETAS:
            history = thetas(given(beta))
            ends = reference_ends(case, start_at_zero, lr=case.lr, beta=float(given(beta)))
            assert_conforms("traced decay", dtype, history, ends)


@by_name(METHODS)
def test_defaults_are_the_tables(case: Case):
    row = TABLE[case.name]
    assert case.name.replace("-", "_") in sj.__all__
    history = run(case, "float64")
    assert_conforms("defaults", "float64", history, reference_ends(case, start_at_zero, lr=row.lr))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in FEW for dtype in BOUND],
    ids=str,
)
def test_leaves_of_different_options(case: Case, dtype: str):
    """Coupled and decoupled decay, other decays and step sizes, ascent: by multi_transform."""
    share = (1.0, 0.5, 2.0, 1.0, 1.0, 0.5)
    options = {
        str(i): {"lr": lr * case.lr, **case.decay(beta, max(beta, 0.95)), **own}
        for i, (lr, (_, beta, own)) in enumerate(zip(share, GROUPS, strict=True))
    }
    pieces = dict(zip(options, map(indices, SIXTHS), strict=True))
    starts = {i: start for i, (start, _, _) in zip(options, GROUPS, strict=True)}
    with precision(dtype):
        transforms = {i: build(case, **dict(own)) for i, own in options.items()}
        tx = optax.multi_transform(transforms, {i: i for i in options})
        params = {i: jnp.asarray(starts[i]()[piece], dtype) for i, piece in pieces.items()}
        cut = [
            {i: jnp.asarray(rows[:, piece], dtype) for i, piece in pieces.items()}
            for rows in (GRADIENTS, VARIANCES)
        ]
        history, _ = walk(tx, params, cut[0], cut[1] if case.within_batch else None)
    for (i, own), columns in zip(options.items(), SIXTHS, strict=True):
        far = starts[i] is start_at_random and dtype == "float32"
        ends = reference_ends(case, starts[i], columns, **own)
        what = "far leaves" if far else "leaves"
        assert_conforms(what, dtype, history[i], ends, 1e-4 if far else None)


@both_precisions
@by_name([case for case in CASES if case.raw])
def test_raw_factors_far_above_one(case: Case, dtype: str):
    """After 1000 silent steps m^2 / v = 632: nothing may be lost by taking 1 + r with r near -1."""
    gradients = np.zeros((1001, 8), np.float32)
    gradients[-1] = [1.0, 0.3, -0.7, -2.0, 0.01, 1.1, 3.3, -10.0]
    options = {"lr": case.lr, **case.decay(0.0)}
    with precision(dtype):
        theta = path(case, gradients.astype(dtype), **options)[-1]
    expected = case.reference(gradients, np.zeros(8), **options)[-1].theta
    np.testing.assert_allclose(theta, expected, rtol=BOUND[dtype] / 10)


@by_name(FEW[:7])
def test_the_start_is_debiased_to_rounding(case: Case):
    """1 - beta^n by subtraction is off by 65 eps at beta = 0.999, n = 2, and 1132 at 0.9999."""
    gradients = np.ones((4, 8)) * np.linspace(0.5, 8.0, 8)
    for beta in (0.999, 0.9999) if case.averages else (0.999,):
        options = {"lr": case.lr, **case.decay(beta, beta)}
        with precision("float64"):
            history = path(case, gradients, **options)
        references = case.reference(gradients, np.zeros(8), **options)
        for theta, reference in zip(history, references, strict=True):
            np.testing.assert_allclose(theta, reference.theta, rtol=16 * np.finfo(np.float64).eps)


@both_precisions
@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
def test_adam_is_optaxs(decoupled: bool, dtype: str):
    """A hundred steps from a random start."""
    decay = {"weight_decay": 0.01} if decoupled else {}
    options = {"b1": 0.9, "b2": 0.99, "eps": 1e-7, **decay}
    theirs = (optax.adamw if decoupled else optax.adam)(1e-3, **options)
    ours = sj.adam(1e-3, decoupled_weight_decay=decoupled, **options)
    with precision(dtype):
        start, gradients = jnp.asarray(start_at_random(), dtype), jnp.asarray(GRADIENTS, dtype)
        ends = [walk(tx, start, gradients)[0] for tx in (ours, theirs)]
    errors = {t: error(ends[0][t - 1], ends[1][t - 1]) for t in REPORTED}
    name = f"{'adamw' if decoupled else 'adam'} against optax, {dtype}"
    assert_within(name, max(errors.values()), BOUND[dtype], errors)
