"""The construction of Wilson et al.: its data, Lemmas 2 and 3, and who generalises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from scipy.stats import binomtest

from svag import METHODS
from svag.errors import InvalidOption
from svag.theory.rules import AnatomyRule
from svag.theory.separable import angle, full_batch_iterates, proportionality_error
from svag.theory.wilson import (
    clopper_pearson,
    course,
    wilson_comparison,
    wilson_data,
    wilson_test_error,
)

ON_THE_LINE = ("sign-descent", "adam", "adagrad", "rmsprop")


@pytest.fixture(scope="module", params=[10, 100])
def rows(request):
    return {row.method: row for row in wilson_comparison(request.param)}


def test_data_are_as_described():
    data = wilson_data(30, seed=3)
    assert data.X.shape == (30, 153)
    assert data.y.sum() > 0
    assert np.array_equal(data.X[:, 0], data.y)
    assert (data.X[:, 1:3] == 1).all()
    blocks = data.X[:, 3:].reshape(30, 30, 5)
    for i, y in enumerate(data.y):
        assert np.array_equal(blocks[i, i], [1, 0, 0, 0, 0] if y > 0 else [1, 1, 1, 1, 1])
        assert not np.delete(blocks[i], i, axis=0).any()


def test_labels_have_their_share_and_are_seeded():
    shares = [wilson_data(200, 0.8, seed=s).y.mean() / 2 + 0.5 for s in range(20)]
    assert np.mean(shares) == pytest.approx(0.8, abs=0.03)
    assert np.array_equal(wilson_data(20, seed=1).y, wilson_data(20, seed=1).y)
    assert not np.array_equal(wilson_data(20, seed=1).y, wilson_data(20, seed=2).y)


@given(st.integers(1, 40), st.floats(0.51, 0.99), st.integers(0, 999))
def test_the_premise_holds_on_every_draw(n, p, seed):
    """X sign(X^T y) = 4 y, labels being drawn until their sum is positive."""
    data = wilson_data(n, p, seed=seed)
    assert data.y.sum() > 0
    assert data.lemma2_constant() == 4


@given(st.integers(1, 25), st.integers(0, 99), st.sampled_from(ON_THE_LINE))
def test_lemmas_2_and_3_on_every_draw(n, seed, method):
    data = wilson_data(n, seed=seed)
    sign = data.sign_direction()
    for theta in full_batch_iterates(data, method, 30, lr=1e-3):
        assert not theta[sign == 0].any()
        assert proportionality_error(theta, sign) <= 1e-8


@pytest.mark.parametrize("method", ON_THE_LINE)
def test_sign_methods_stay_on_the_line(rows, method):
    row = rows[method]
    assert 30 <= row.compared < 2_000  # solved, to 1e-6, before the last step
    assert_within("theory: Wilson, distance from the line", row.farthest, 1e-8, method)


@pytest.mark.parametrize("method", ["gd", "m-svag"])
def test_gradient_methods_leave_it(rows, method):
    assert rows[method].compared >= 10
    assert rows[method].nearest > 0.1


def test_all_fit_and_the_line_predicts_the_majority(rows):
    for method, row in rows.items():
        assert row.train_error == 0
        assert row.test_error.n == 10_000
        low, high = row.test_error.interval
        assert low <= row.test_error.estimate <= high
        assert low <= row.test_error.expected <= high
        if method in ON_THE_LINE:
            assert row.test_error.expected == pytest.approx(0.3)
            assert row.to_max_margin > 45
        else:
            assert row.test_error.estimate == 0
            assert row.to_max_margin < 5


def test_on_these_data_gradient_descent_finds_the_max_margin(rows):
    assert rows["gd"].to_max_margin < 1e-4


def test_fresh_examples_need_no_matrix():
    """The shortcut against scores of test examples written out in full."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        theta = rng.normal(size=3 + 5 * 4)
        y = np.where(rng.random(50) < 0.7, 1.0, -1.0)
        fresh = np.zeros((50, 3 + 5 * (4 + 50)))
        fresh[:, 0], fresh[:, 1:3] = y, 1
        for i, label in enumerate(y):
            first = 3 + 5 * (4 + i)
            fresh[i, first : first + (1 if label > 0 else 5)] = 1
        scores = fresh @ np.append(theta, np.zeros(5 * 50))
        wrong = wilson_test_error(theta, 0.7).expected
        by_class = [np.mean(scores[y == label] * label <= 0) for label in (1, -1)]
        assert wrong == pytest.approx(0.7 * by_class[0] + 0.3 * by_class[1])


def test_intervals_cover_as_they_say():
    """Of 400 draws of 200 examples about 95 % cover the expected error."""
    theta, covered = np.ones(3), 0
    for seed in range(400):
        rate = wilson_test_error(theta, 0.7, n=200, seed=seed)
        covered += rate.interval[0] <= rate.expected <= rate.interval[1]
    assert covered >= 0.93 * 400


@pytest.mark.parametrize("theta", [np.ones(3), np.zeros(3), np.array([1.0, 0.0, 0.0])])
def test_intervals_are_clopper_and_pearsons(theta):
    rate = wilson_test_error(theta, 0.7, n=500)
    exact = binomtest(round(rate.estimate * 500), 500).proportion_ci(0.95, method="exact")
    assert rate.interval == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_a_solution_that_diverged_is_wrong_everywhere():
    assert wilson_test_error(np.array([np.nan, 0.0, 0.0])).expected == 1


def test_drift_alone_turns_m_svag_away_from_the_margin():
    """Without noise M-SGD reaches it, and M-SVAG, for which drift is noise, does not."""
    data, ends = wilson_data(50), []
    for row in (METHODS["m-sgd"], METHODS["m-svag"]):
        theta, rule, lr = np.zeros(253), AnatomyRule(row.anatomy, row.betas), 1 / data.smoothness()
        for _ in range(2_000):
            theta = theta - lr * rule(data.gradient(theta))
        ends.append(angle(theta, data.max_margin()))
    assert ends[0] < 1e-3
    assert ends[1] == pytest.approx(3.5, abs=0.05)


def test_a_tie_is_an_error():
    assert wilson_test_error(np.zeros(3)).expected == 1
    assert wilson_test_error(np.zeros(3)).estimate == 1
    assert wilson_test_error(np.array([1.0, 0.0, 0.0])).interval[0] == 0


def test_one_example():
    data = wilson_data(1)
    assert data.X.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert angle(data.max_margin(), data.sign_direction()) < 1e-6


def test_rmsprop_and_its_relatives_keep_their_count_of_iterates():
    [short] = [row for row in wilson_comparison(10, steps=5) if row.method == "adam"]
    assert short.compared == 5
    assert short.residual > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_data(0), "at least 1"),
        (lambda: wilson_data(5, 0.5), r"\(1/2, 1\)"),
        (lambda: wilson_data(5, 1.0), r"\(1/2, 1\)"),
        (lambda: wilson_data(5, float("nan")), r"\(1/2, 1\)"),
        (lambda: wilson_test_error(np.ones(2)), "at least 3 entries"),
        (lambda: wilson_test_error(np.ones((3, 1))), "at least 3 entries"),
        (lambda: wilson_test_error(np.ones(3), n=0), "n >= 1"),
        (lambda: wilson_test_error(np.ones(3), 0.2), r"\(1/2, 1\)"),
        (lambda: wilson_comparison(5, steps=0), "at least 1"),
        (lambda: course(wilson_data(5), "adam", 0), "at least 1"),
        (lambda: clopper_pearson(4, 3), "successes=4"),
        (lambda: clopper_pearson(0, 0), "n >= 1"),
        (lambda: clopper_pearson(1, 3, 1.0), r"level=1\.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidOption, match=message):
        call()
