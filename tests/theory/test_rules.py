"""Update rules against the oracle of the optimizer family, and against their definitions."""

from itertools import product

import numpy as np
import pytest
from measured import assert_within
from reference import error, run

from svag import METHODS, Anatomy
from svag.errors import InvalidOption
from svag.theory.averages import rho
from svag.theory.factors import gamma_erf
from svag.theory.rules import AdaGrad, AnatomyRule, RMSProp, ratio

STEPS, D = 60, 50
BETAS = (0.0, 0.5, 0.9, 0.99)
CORRECTED = [
    Anatomy(direction, sign, factor)
    for direction, sign, factor in product(
        ("gradient", "momentum"), (False, True), ("none", "svag", "sqrt", "erf")
    )
]
RAW = [
    Anatomy("momentum", sign, factor, "raw")
    for sign, factor in product((False, True), ("svag", "sqrt", "erf"))
]


def gradients():
    """Signal and noise of many ratios; coordinates that are zero, constant, or start late."""
    rng = np.random.default_rng(0)
    g = rng.normal(rng.normal(size=D), np.geomspace(1e-3, 10, D), size=(STEPS, D))
    g[:, 0] = 0
    g[:20, 1] = 0
    return g


def directions(rule, g):
    return np.array([rule(row) for row in g])


def reference_directions(anatomy, g, **options):
    return np.array([step.update for step in run(anatomy, g, np.zeros(D), lr=1.0, **options)])


@pytest.mark.parametrize("anatomy", CORRECTED, ids=str)
@pytest.mark.parametrize("beta", BETAS)
def test_rows_equal_the_reference(anatomy, beta):
    found = directions(AnatomyRule(anatomy, (beta,)), gradients())
    expected = reference_directions(anatomy, gradients(), beta=beta)
    assert_within("theory: rule against the reference", error(found, expected), 1e-10, anatomy)


@pytest.mark.parametrize("anatomy", RAW, ids=str)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.9)])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-2])
def test_raw_rows_equal_the_reference(anatomy, betas, eps):
    found = directions(AnatomyRule(anatomy, betas, eps), gradients())
    expected = reference_directions(anatomy, gradients(), betas=betas, eps=eps)
    assert_within("theory: raw rule against the reference", error(found, expected), 1e-10, anatomy)


def test_a_stack_of_seeds_is_every_seed_by_itself():
    g = gradients().reshape(STEPS, 5, 10)
    for row in METHODS.values():
        together = directions(AnatomyRule(row.anatomy, row.betas), g)
        for s in range(5):
            alone = directions(AnatomyRule(row.anatomy, row.betas), g[:, s])
            assert np.array_equal(together[:, s], alone)


def test_idealised_factors_are_those_of_lemma_1():
    g, eta = gradients(), np.linspace(0.1, 3, D)
    svag = AnatomyRule(Anatomy(factor="svag"), idealised=True)
    sign = AnatomyRule(Anatomy(sign=True, factor="erf"), idealised=True)
    for row in g:
        assert svag(row, eta**2) == pytest.approx(row / (1 + eta**2), rel=1e-14)
        assert sign(row, eta**2) == pytest.approx(np.sign(row) * gamma_erf(eta), rel=1e-12)


def test_an_idealised_momentum_shrinks_by_the_variance_of_the_average():
    """Eq. (24)."""
    g, eta_sq = gradients(), np.linspace(0.1, 9, D)
    averaged = directions(AnatomyRule(Anatomy("momentum"), (0.9,)), g)
    rule = AnatomyRule(Anatomy("momentum", factor="svag"), (0.9,), idealised=True)
    for t, row in enumerate(g):
        expected = averaged[t] / (1 + rho(0.9, t) * eta_sq)
        assert rule(row, eta_sq) == pytest.approx(expected, rel=1e-14)


def test_no_information_no_step():
    """An infinite relative variance gives the factor 0, whatever the factor."""
    eta_sq = np.full(D, np.inf)
    for factor in ("svag", "sqrt", "erf"):
        rule = AnatomyRule(Anatomy(factor=factor), idealised=True)
        assert not rule(gradients()[0], eta_sq).any()


def test_adagrad_and_rmsprop_are_what_their_papers_say():
    g = gradients()
    squares = np.cumsum(g**2, axis=0)
    assert directions(AdaGrad(), g)[1:, 2:] == pytest.approx(
        (g / np.sqrt(squares + 1e-300))[1:, 2:]
    )
    weights = 0.1 * 0.9 ** np.arange(STEPS)[::-1]
    expected = g[-1] / np.sqrt(weights @ g**2 + 1e-300)
    assert directions(RMSProp(0.9), g)[-1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [AdaGrad, RMSProp])
def test_zero_gradients_do_not_move(make):
    assert not directions(make(), np.zeros((3, 4))).any()


def test_ratio_of_zeros():
    zero = np.zeros(2)
    assert np.array_equal(ratio(np.array([0.0, 4.0]), np.array([0.0, 2.0])), [0.0, 2.0])
    assert np.array_equal(ratio(zero, zero, undefined=np.inf), [np.inf, np.inf])


@pytest.mark.parametrize(
    ("anatomy", "betas", "idealised", "message"),
    [
        (Anatomy(factor="svag", variance="within-batch"), (0.9,), False, "moving-average"),
        (METHODS["adam"].anatomy, (0.9, 0.999), True, "corrected"),
        (METHODS["adam"].anatomy, (0.9,), False, "pass 2"),
        (METHODS["m-svag"].anatomy, (0.9, 0.999), False, "pass 1"),
        (METHODS["m-svag"].anatomy, (), False, "pass 1"),
        (METHODS["m-svag"].anatomy, (1.0,), False, r"1\.0 is not in \[0, 1\)"),
        (METHODS["m-svag"].anatomy, (float("nan"),), False, r"nan is not in \[0, 1\)"),
    ],
)
def test_bad_options_say_the_remedy(anatomy, betas, idealised, message):
    with pytest.raises(InvalidOption, match=message):
        AnatomyRule(anatomy, betas, idealised=idealised)


def test_an_idealised_rule_needs_the_truth():
    with pytest.raises(InvalidOption, match="eta_sq"):
        AnatomyRule(Anatomy(factor="svag"), idealised=True)(np.ones(2))
