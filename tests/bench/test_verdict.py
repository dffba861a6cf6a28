"""The simulation that keeps verdicts honest, in its small form: the same studies every time."""

import numpy as np
import pytest

from svag.bench.verdict import COLUMNS, DEVIATION, SCENARIOS, measure

STUDIES = 100


def simulated(scenario, seeds, cost, **settings):
    (row,) = measure(studies=STUDIES, seeds=[seeds], costs=[cost], scenarios=[scenario], **settings)
    return row


@pytest.mark.parametrize(("seeds", "cost"), [(3, 0.5), (5, 1.25)])
def test_identical_methods_are_seldom_told_apart(seeds, cost):
    """At most 7 % of studies, and joint coverage of 93 %, up to three errors of 100 studies."""
    row = simulated("no effect", seeds, cost)
    assert row.claims <= 0.07 + 3 * np.sqrt(0.07 * 0.93 / STUDIES)
    assert row.joint >= 0.93 - 3 * np.sqrt(0.07 * 0.93 / STUDIES)
    assert 0.92 <= row.single <= 0.98


def test_the_papers_protocol_tells_them_apart_where_the_step_size_matters():
    assert simulated("no effect", 5, 0.5, protocol="paper").claims > 0.2


def test_an_effect_of_one_half_is_found():
    row = simulated("sign, 3 sd", 5, 0.5)
    assert row.sign_counts >= 0.9
    assert row.sign_decides >= 0.7
    assert row.adaptation_decides == 0


def test_equal_halves_do_not_decide():
    row = simulated("equal halves, 3 sd each", 5, 0.25)
    assert row.sign_decides + row.adaptation_decides <= 0.07
    assert row.claims == 1.0


def test_equal_within_is_seldom_said_at_the_margin():
    assert simulated("sign at the margin", 5, 0.5).sign_equal <= 0.07 + 0.08


def test_survivors_decide_nothing():
    row = simulated("sign methods diverge, 60 %", 5, 0.5)
    assert row.diverged > 0.9
    assert row.claims == 0


def test_the_same_studies_every_time_and_on_any_number_of_workers():
    jobs = {"studies": 5, "seeds": [3], "costs": [0.5], "scenarios": ["no effect", "sign, 3 sd"]}
    assert measure(**jobs) == measure(**jobs) == measure(**jobs, workers=2)


def test_rows_are_those_of_a_table():
    row = simulated("no effect, heavy tails", 3, 0.0)
    assert str(row).count("|") == len(COLUMNS) + 1
    assert str(row).startswith("| no effect, heavy tails | 0 | 3 | ")


def test_worlds_are_as_they_are_named():
    assert SCENARIOS["sign, 3 sd"].effects == (0, 0, 3 * DEVIATION, 3 * DEVIATION)
    assert SCENARIOS["adaptation, 3 sd"].effects == (0, 3 * DEVIATION, 0, 3 * DEVIATION)
