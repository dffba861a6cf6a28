"""The paper's observations over several problems: the conclusions, and how often they are wrong."""

import pytest

from analysis.simulated import NOTHING, adaptation, said, sign
from svag.analysis.observations import Observation
from svag.analysis.observations_over_problems import checks

STUDIES = 80


def concluded(number, *outcomes):
    """The conclusion on one observation from its outcomes on several problems."""
    held = {
        f"p{place}": [Observation("", outcome, "")] * 4 for place, outcome in enumerate(outcomes)
    }
    return checks(held)[number - 1].outcome


@pytest.mark.parametrize(
    ("outcomes", "conclusion"),
    [
        (["holds"] * 4, "confirmed"),
        (["holds"] * 3 + ["does not hold"], "confirmed"),
        (["holds"] * 2 + ["not decided"], "confirmed"),
        (["holds", "not decided"], "not decided"),
        (["holds", "does not hold"], "refuted"),
        (["holds", "not decided", "does not hold", "does not hold"], "refuted"),
        (["not decided"] * 3, "not decided"),
    ],
)
def test_the_sign_dominates_on_most(outcomes, conclusion):
    assert concluded(1, *outcomes) == conclusion


@pytest.mark.parametrize(
    ("outcomes", "conclusion"),
    [
        (["helps", "hurts"], "confirmed"),
        (["helps", "hurts", "not decided", "no difference"], "confirmed"),
        (["helps", "helps"], "refuted"),
        (["hurts", "no difference"], "refuted"),
        (["no difference", "no difference"], "refuted"),
        (["helps", "not decided"], "not decided"),
        (["helps"], "not decided"),
    ],
)
def test_whether_the_sign_helps_depends_on_the_problem(outcomes, conclusion):
    assert concluded(2, *outcomes) == conclusion


@pytest.mark.parametrize(
    ("outcomes", "conclusion"),
    [
        (["holds", "holds"], "confirmed"),
        (["holds", "not decided"], "not decided"),
        (["holds", "does not hold"], "refuted"),
    ],
)
def test_adapted_methods_do_as_well_on_all(outcomes, conclusion):
    assert concluded(3, *outcomes) == conclusion


@pytest.mark.parametrize(
    ("outcomes", "conclusion"),
    [
        (["does not arise", "holds", "not decided"], "confirmed"),
        (["does not arise", "does not arise"], "not decided"),
        (["holds", "does not hold"], "refuted"),
    ],
)
def test_adverse_effects_come_from_the_sign_where_they_arise(outcomes, conclusion):
    assert concluded(4, *outcomes) == conclusion


def test_no_problem_decides_nothing():
    found = checks({})
    assert [check.outcome for check in found] == ["not decided"] * 4
    assert found[0].because == "No problem can be judged yet."


def test_where_it_rests_on_is_named():
    held = {
        name: [Observation("", outcome, "")] * 4
        for name, outcome in (("a", "helps"), ("b", "hurts"), ("c", "helps"))
    }
    assert checks(held)[1].because == "The sign helps on a and c; the sign hurts on b."


class TestHowOftenItIsWrong:
    """Shares of made-up studies; a share of 5 % has a standard error of 2.4 points."""

    def rate(self, world, number, conclusion):
        return said(world, STUDIES)[number - 1][conclusion] / STUDIES

    def test_depends_on_the_problem_where_it_does_not(self):
        for world in (
            [(NOTHING, NOTHING)] * 4,
            [(sign(-3), sign(3))] * 4,
            [(sign(-6), sign(6))] * 2 + [(NOTHING, NOTHING)] * 2,
        ):
            assert self.rate(world, 2, "confirmed") <= 0.05

    def test_depends_on_the_problem_where_it_does(self):
        world = [(sign(-6), sign(6))] * 2 + [(sign(6), sign(-6))] * 2
        assert self.rate(world, 2, "confirmed") >= 0.95
        assert self.rate(world, 2, "refuted") == 0

    def test_does_not_depend_where_it_does(self):
        """Refuted is wrong as well if one problem's effect is opposite, by twice the margin."""
        world = [(sign(-6), sign(6))] * 3 + [(sign(2), sign(-2))]
        assert self.rate(world, 2, "refuted") <= 0.1

    def test_the_sign_dominates_where_both_are_as_large(self):
        world = [((0.0, -6.0, -6.0, -12.0), (0.0, 6.0, 6.0, 12.0))] * 4
        assert self.rate(world, 1, "confirmed") <= 0.05
        assert self.rate(world, 1, "refuted") <= 0.1

    def test_adapted_methods_do_as_well_where_one_is_worse(self):
        world = [(adaptation(-3), adaptation(3))] * 3 + [(adaptation(-3), adaptation(-1))]
        assert self.rate(world, 3, "confirmed") <= 0.1

    def test_adapted_methods_are_worse_where_they_are_equal(self):
        assert self.rate([(NOTHING, NOTHING)] * 4, 3, "refuted") <= 0.1

    def test_adverse_effects_where_there_are_none(self):
        assert self.rate([(sign(-6), NOTHING)] * 4, 4, "confirmed") <= 0.05

    def test_adverse_effects_of_both_halves(self):
        both = (0.0, -6.0, -6.0, -12.0)
        assert self.rate([(both, both)] * 2, 4, "refuted") >= 0.9


def test_problems_are_corrected_for():
    """The more problems, the wider each interval, so that all of them hold together."""
    from analysis.simulated import study

    def width(many):
        import numpy as np

        found = study([(NOTHING, NOTHING)] * many, np.random.default_rng(3), 5)
        detail = found[1].readings["problem 0"].detail
        low, high = detail.split("[")[1].split("]")[0].split(", ")
        return float(high) - float(low)

    assert width(4) > 1.2 * width(1)
