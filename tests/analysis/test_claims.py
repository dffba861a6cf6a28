"""Every finding under its condition, and under no other."""

import numpy as np
import pytest

from svag.analysis.claims import UNDECIDED, claims, default_margin
from svag.analysis.contrasts import ADAPTATION, SIGN, Sample
from svag.quantity import ACCURACY, LOSS, Quantity

NOISE = np.array([-0.001, 0.0, 0.001, 0.0005, -0.0005])


def cells(*means, noise=NOISE):
    """Four samples, M-SGD, M-SVAG, M-SSD, Adam, with the same small noise."""
    return [Sample(mean + noise) for mean in means]


@pytest.mark.parametrize(
    ("means", "finding"),
    [
        ((0.8, 0.8, 0.9, 0.9), "sign decides"),
        ((0.9, 0.9, 0.8, 0.8), "sign decides"),
        ((0.8, 0.81, 0.9, 0.91), "sign decides"),
        ((0.8, 0.9, 0.8, 0.9), "adaptation decides"),
        ((0.9, 0.8, 0.9, 0.8), "adaptation decides"),
        ((0.8, 0.85, 0.85, 0.9), "both count"),
        ((0.9, 0.85, 0.85, 0.8), "both count"),
        ((0.9, 0.8, 0.8, 0.9), "together"),
        ((0.9, 0.9, 0.9, 0.9), "equal"),
    ],
)
def test_findings(means, finding):
    assert claims(cells(*means), ACCURACY).finding == finding


def test_the_direction_of_a_metric_does_not_change_what_decides():
    loss = claims(cells(0.8, 0.8, 0.9, 0.9), LOSS)
    assert loss.finding == "sign decides"
    assert loss.effects[SIGN].estimate == pytest.approx(0.1)


def wide(*means):
    return cells(*means, noise=30 * NOISE)


@pytest.mark.parametrize(
    ("means", "finding"),
    [
        ((0.80, 0.80, 0.84, 0.84), "sign counts"),
        ((0.80, 0.84, 0.80, 0.84), "adaptation counts"),
        ((0.80, 0.8275, 0.8275, 0.855), "larger"),
        ((0.80, 0.80, 0.81, 0.81), "open"),
    ],
)
def test_findings_of_noisy_runs(means, finding):
    """Each with intervals of about 3 points for a half and 4.4 for a pair."""
    found = claims(wide(*means), ACCURACY)
    assert found.finding == finding


def test_one_run_a_method_decides_nothing():
    found = claims([Sample(np.array([m])) for m in (0.1, 0.2, 0.8, 0.9)], ACCURACY)
    assert found.finding == "one seed"
    assert found.equal == ()


def test_divergence_decides_nothing():
    found = claims(cells(0.8, 0.8, 0.9, 0.9), ACCURACY, diverged=True)
    assert found.finding == "diverged"
    alone = [*cells(0.8, 0.8, 0.9), Sample(np.array([0.9]))]
    assert claims(alone, ACCURACY, diverged=True).finding == "diverged"


def test_what_claims_nothing():
    assert set(UNDECIDED) == {"unfinished", "one seed", "diverged", "equal", "open"}


class TestMargin:
    def test_half_a_point_or_one_seed(self):
        assert default_margin(cells(0.9, 0.9, 0.9, 0.9), ACCURACY) == 0.005
        noisy = wide(0.9, 0.9, 0.9, 0.9)
        assert default_margin(noisy, ACCURACY) == pytest.approx((30 * NOISE).std(ddof=1))

    def test_two_per_cent_of_other_figures(self):
        quantity = Quantity("error", larger_is_better=False)
        assert default_margin(cells(2.0, 2.0, 2.0, 2.0), quantity) == pytest.approx(0.04)
        assert default_margin(cells(-2.0, -2.0, -2.0, -2.0), quantity) == pytest.approx(0.04)

    def test_a_shifted_loss_has_the_margin_of_its_gain(self):
        def shifted(shift):
            return [Sample(np.full(3, 0.1) + shift, start=2.1 + shift)] * 4

        assert default_margin(shifted(0.0), LOSS) == pytest.approx(0.002)
        assert default_margin(shifted(-1000.0), LOSS) == pytest.approx(0.04)

    def test_single_runs(self):
        assert default_margin([Sample(np.array([0.9]))] * 4, ACCURACY) == 0.005

    def test_given(self):
        small = claims(cells(0.9, 0.9, 0.9, 0.9), ACCURACY, smallest_effect=1e-6)
        assert (small.finding, small.margin, small.margin_given) == ("open", 1e-6, True)


def test_one_half_may_be_equal_while_the_other_counts():
    found = claims(cells(0.8, 0.8, 0.9, 0.9), ACCURACY)
    assert found.equal == (ADAPTATION,)


def test_power_is_none_where_the_margin_is_below_the_error():
    assert claims(wide(0.9, 0.9, 0.9, 0.9), ACCURACY, smallest_effect=0.001).power == 0.0
    assert claims(cells(0.9, 0.9, 0.9, 0.9), ACCURACY).power > 0.99
