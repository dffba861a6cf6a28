"""The oracle itself, at limits and against numbers computed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from reference import (
    averaging_weights,
    debiasing,
    error,
    factor,
    gradient_variance,
    moving_average,
    rho,
    run,
)

BETAS = (0.0, 0.1, 0.5, 0.9, 0.99, 0.999)
TIMES = (0, 1, 2, 10, 100)


def anatomy(direction="momentum", sign=False, kind="svag", relative_variance="corrected"):
    return SimpleNamespace(
        direction=direction, sign=sign, factor=kind, relative_variance=relative_variance
    )


def averaged(gradients, beta):
    average = np.zeros_like(gradients[0])
    for gradient in gradients:
        average = moving_average(average, gradient, beta)
    return average / debiasing(beta, len(gradients) - 1)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("t", TIMES)
def test_rho_is_the_sum_of_squared_weights(beta, t):
    weights = averaging_weights(beta, t)
    assert weights.sum() == pytest.approx(1.0, rel=1e-12)
    assert rho(beta, t) == pytest.approx((weights**2).sum(), rel=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_rho_starts_at_one(beta):
    assert rho(beta, 0) == 1.0


def test_rho_of_beta_zero_is_one_always():
    assert all(rho(0.0, t) == 1.0 for t in TIMES)


def test_rho_tends_to_the_inverse_of_the_window():
    assert 1.0 / rho(0.9, 10_000) == pytest.approx(19.0, rel=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_the_recurrence_is_the_weighted_sum(beta):
    gradients = np.random.default_rng(0).normal(size=(30, 5))
    assert averaged(gradients, beta) == pytest.approx(
        averaging_weights(beta, 29) @ gradients, rel=1e-11, abs=1e-13
    )


@pytest.mark.parametrize("beta", BETAS)
def test_one_beta_leaves_a_nonnegative_spread(beta):
    gradients = np.random.default_rng(1).normal(1.0, 0.1, size=(30, 1000))
    m, v = averaged(gradients, beta), averaged(gradients**2, beta)
    assert (v - m**2).min() >= -1e-15
    if beta:
        weights = averaging_weights(beta, 29)[:, None]
        assert v - m**2 == pytest.approx((weights * (gradients - m) ** 2).sum(0), abs=1e-12)


def test_the_variance_estimate_is_unbiased():
    """E[s] = sigma^2 under Assumption 1 (Eqs. 20 to 22), at every t, here t = 4."""
    gradients = np.random.default_rng(2).normal(3.0, 2.0, size=(5, 400_000))
    s = gradient_variance(averaged(gradients, 0.9), averaged(gradients**2, 0.9), 0.9, 4)
    assert s.mean() == pytest.approx(4.0, rel=0.01)


def test_factors_at_their_limits():
    ends = np.array([0.0, np.inf])
    for kind in ("svag", "sqrt", "erf"):
        assert factor(kind, ends).tolist() == [1.0, 0.0]
    assert factor("none", ends).tolist() == [1.0, 1.0]
    one = np.array([1.0])
    assert factor("svag", one) == pytest.approx(0.5)
    assert factor("sqrt", one) == pytest.approx(0.5**0.5)
    assert factor("erf", one) == pytest.approx(0.6826894921370859)  # P(|z| < 1)
    assert factor("erf", np.array([-0.1])).tolist() == [1.0]


def test_two_steps_by_hand():
    """beta = 1/2, g = 4 then 1. m~ = 2, 3/2 and v~ = 8, 9/2, so m = 4, 2 and v = 16, 6.

    t = 1: v - m^2 = 2; rho = (1/2)(5/4) / ((3/2)(3/4)) = 5/9, s = 2 / (4/9) = 9/2, rho s = 5/2.
    """
    assert rho(0.5, 1) == pytest.approx(5 / 9)
    last_gamma = {
        ("gradient", "svag"): 4 / (4 + 4.5),
        ("momentum", "svag"): 4 / (4 + 2.5),
        ("momentum", "sqrt"): (4 / (4 + 2.5)) ** 0.5,
        ("momentum", "none"): 1.0,
    }
    for (direction, kind), gamma in last_gamma.items():
        first, second = run(anatomy(direction, kind=kind), [[4.0], [1.0]], [10.0], lr=1.0, beta=0.5)
        assert (first.m[0], first.v[0], first.gamma[0]) == (4.0, 16.0, 1.0)
        assert first.theta[0] == 6.0
        assert (second.m[0], second.v[0]) == (2.0, 6.0)
        assert second.gamma[0] == pytest.approx(gamma)
        moved = 2.0 if direction == "momentum" else 1.0
        assert second.theta[0] == pytest.approx(6.0 - gamma * moved)


def test_adam_by_hand():
    """betas = (1/2, 3/4), g = 4 then 1: m = 4, 2; v~ = 4, 13/4; v = 16, (13/4) / (7/16) = 52/7."""
    adam = anatomy(sign=True, kind="sqrt", relative_variance="raw")
    options = {"lr": 0.5, "betas": (0.5, 0.75), "eps": 1.0}
    first, second = run(adam, [[4.0], [1.0]], [0.0], **options)
    assert first.update[0] == pytest.approx(0.5 * 4 / (4 + 1))
    assert second.update[0] == pytest.approx(0.5 * 2 / ((52 / 7) ** 0.5 + 1))
    # amsgrad keeps the largest v~, here the first, and debiases it by the current step
    _, second = run(adam, [[4.0], [1.0]], [0.0], amsgrad=True, **options)
    assert second.v[0] == pytest.approx(4 / (7 / 16))


def test_weight_decay_and_maximize_by_hand():
    sgd = anatomy("gradient", kind="none")
    options = {"lr": 0.5, "weight_decay": 0.1, "maximize": True}
    (coupled,) = run(sgd, [[3.0]], [2.0], **options)
    assert coupled.theta[0] == pytest.approx(2.0 - 0.5 * (-3.0 + 0.2))
    (decoupled,) = run(sgd, [[3.0]], [2.0], decoupled_weight_decay=True, **options)
    assert decoupled.theta[0] == pytest.approx(2.0 * 0.95 + 0.5 * 3.0)


def test_a_missing_gradient_stops_the_clock():
    late = list(run(anatomy(), [None, [4.0], None, [1.0]], [10.0], lr=1.0, beta=0.5))
    prompt = list(run(anatomy(), [[4.0], [1.0]], [10.0], lr=1.0, beta=0.5))
    assert late[0] is None
    assert late[2] is None
    assert [late[1].theta, late[3].theta] == [step.theta for step in prompt]


@pytest.mark.parametrize("direction", ["gradient", "momentum"])
@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("kind", ["none", "svag", "sqrt", "erf"])
@pytest.mark.parametrize("relative_variance", ["corrected", "raw"])
def test_zero_gradients_move_nothing(direction, sign, kind, relative_variance):
    rule = anatomy(direction, sign, kind, relative_variance)
    for step in run(rule, [[0.0], [0.0]], [3.0], lr=1.0, eps=0.0):
        assert step.theta[0] == 3.0


def test_error_scales_small_coordinates_by_the_largest():
    assert error([1.0, 1e-3], [1.0, 0.0]) == pytest.approx(0.1)
    assert error([2.2, 1.0], [2.0, 1.0]) == pytest.approx(0.1)
    assert error([0.0], [0.0]) == 0.0
