"""Figure 2's twelve panels, against one replication's band (supplement §5)."""

import numpy as np
import pytest

from svag.errors import InvalidOption
from svag.theory.figure2 import NOISE_LEVELS, Panel, figure2_panels

WELL, ILL = "well-conditioned", "ill-conditioned"
BAND = {
    (WELL, True, 0.1): 1 / 2.6,
    (WELL, True, 4.0): 1 / 1.4,
    (WELL, False, 0.1): 4.8,
    (WELL, False, 4.0): 1.4,
    (ILL, True, 0.1): 1.0,
    (ILL, True, 4.0): 1.0,
    (ILL, False, 0.1): 2_900.0,
    (ILL, False, 4.0): 12.0,
}
"""Suboptimality of SGD over that of SSD after 100 steps."""

CLEAR = {
    (WELL, True, 0.0): "SGD",
    (WELL, True, 0.1): "SGD",
    (WELL, False, 0.0): "SGD",
    (WELL, False, 0.1): "SSD",
    (ILL, True, 0.0): "tie",
    (ILL, True, 0.1): "tie",
    (ILL, True, 4.0): "tie",
    (ILL, False, 0.0): "SSD",
    (ILL, False, 0.1): "SSD",
    (ILL, False, 4.0): "SSD",
}
"""The winners; on the well-conditioned problem at nu = 4 the band is itself at a tie's edge."""


@pytest.fixture(scope="module")
def panels():
    return {(p.spectrum, p.rotated, p.noise): p for p in figure2_panels()}


def test_rows_and_columns_are_the_papers(panels):
    rows = [key[:2] for key in panels][::3]
    assert rows == [(WELL, True), (WELL, False), (ILL, True), (ILL, False)]
    assert [noise for *_, noise in panels] == list(NOISE_LEVELS) * 4
    for panel in panels.values():
        lam = panel.problem.eigenvalues
        assert len(lam) == 100
        assert panel.trajectories.suboptimality["SGD"].shape == (20, 101)
        if panel.spectrum == WELL:
            assert lam.min() >= 0.1
            assert lam.max() <= 1.1
        else:
            assert np.sum(lam <= 1) == 90
            assert np.sum((lam >= 30) & (lam <= 60)) == 10
    rotated, aligned = panels[WELL, True, 0.0].problem, panels[WELL, False, 0.0].problem
    assert rotated.eigenvalues == pytest.approx(aligned.eigenvalues, rel=1e-9)
    assert np.count_nonzero(aligned.Q) == 100


@pytest.mark.parametrize("key", CLEAR, ids=str)
def test_winners(panels, key):
    assert panels[key].winner == CLEAR[key]


@pytest.mark.parametrize("key", BAND, ids=str)
def test_magnitudes_lie_around_the_band(panels, key):
    factor = 10 if key[:2] == (ILL, False) else 3
    assert BAND[key] / factor <= panels[key].ratio <= BAND[key] * factor


def test_noise_evens_out_the_well_conditioned_problem(panels):
    """SGD's lead of many orders of magnitude without noise shrinks to less than a factor of 2."""
    assert panels[WELL, True, 0.0].ratio < 1e-9
    assert panels[WELL, False, 0.0].ratio < 1e-6
    assert 0.5 < panels[WELL, True, 4.0].ratio < 1
    assert 0.7 < panels[WELL, False, 4.0].ratio < 2.1


def test_methods_start_alike_and_intervals_hold_the_median(panels):
    for panel in panels.values():
        start = [values[:, 0] for values in panel.trajectories.suboptimality.values()]
        assert np.array_equal(*start)
        low, high = panel.interval()
        assert low <= panel.ratio <= high
        assert panel.ratios.shape == (20,)


def ratios(**options):
    return np.array([p.ratio for p in figure2_panels(seeds=3, steps=30, dimension=20, **options)])


def test_scale_is_a_noise_level():
    """theta_0 - x* ten times as far away is a noise level ten times as low."""
    far = ratios(scale=30.0)
    low = ratios(scale=10.0, noise_levels=[nu / 3 for nu in NOISE_LEVELS])
    assert far == pytest.approx(low, rel=1e-6)


def test_without_noise_the_scale_does_not_matter():
    near, far = ratios(scale=0.1, noise_levels=[0.0]), ratios(scale=1e3, noise_levels=[0.0])
    assert near == pytest.approx(far, rel=1e-6)


def test_problems_can_be_drawn_again():
    one, two = (figure2_panels(seeds=1, steps=1, dimension=5, problem_seed=s)[0] for s in (1, 2))
    assert not np.allclose(one.problem.Q, two.problem.Q)


def test_winner_is_read_off_the_ratio(panels):
    some = panels[WELL, True, 0.1]
    for value, winner in [(0.69, "SGD"), (0.71, "tie"), (1.49, "tie"), (1.51, "SSD")]:
        curves = {"SGD": np.full((1, 1), value), "SSD": np.ones((1, 1))}
        trajectories = type(some.trajectories)(np.array([0]), curves, (0,))
        assert Panel(WELL, True, some.problem, trajectories).winner == winner


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale(scale):
    with pytest.raises(InvalidOption, match="positive and finite"):
        figure2_panels(scale=scale)
