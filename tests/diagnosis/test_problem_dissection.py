"""Problems of the lab: at which point, with which batches, and what a search begins with."""

import math
from pathlib import Path

import pytest
import torch

from svag import problems
from svag.diagnosis.plan import DissectionPlan
from svag.diagnosis.problem_dissection import Point, dissect_problem, suggested_starts
from svag.entrants import entrant
from svag.errors import DissectionError
from svag.lab.base_run import base_run
from svag.lab.search import StepSizes

FOUR = ("m-sgd", "m-svag", "m-ssd", "adam")
EXAMPLES = Path(__file__).parents[2] / "examples"


def dissected(name, point=None, methods=FOUR, **options):
    problem = problems.get(name)
    data = problems.load(problem)
    base = base_run(problem, data, steps=problem.quick_steps)
    plan = DissectionPlan(
        methods=tuple(entrant(key) for key in methods),
        **{"budget": 1.0, "draws": 6, "longest": 10, "steps": 100, "variants": False, **options},
    )
    return dissect_problem(problem, data, base, plan, point or Point(), lambda part, share: None)


def test_training_before_changes_the_loss():
    start, later = (
        dissected("digits", Point(after=after, method="adam", lr=0.01), race=False)
        for after in (0, 40)
    )
    assert (start.setting.step, later.setting.step) == (0, 40)
    assert later.setting.loss < start.setting.loss
    assert start.setting.planned == 100


def test_a_problem_that_carries_state():
    found = dissected("stdlib-chars", methods=("m-sgd", "adam"), race=True, longest=2, draws=3)
    assert math.isfinite(found.race.losses["adam"])
    assert all(one.value > 0 for one in found.improvements)


def test_a_problem_with_a_step_of_its_own_gets_the_race_alone():
    name = f"{EXAMPLES / 'own_step.py'}:own_step"
    found = dissected(name, budget=3.0)
    assert found.improvements == []
    assert found.race is not None
    assert found.skipped == [
        "the problem has a training step of its own, so there is only the race"
    ]
    assert all(one.basis == "race" for one in found.conclusion.suggestions)
    texts = [one.text for one in found.conclusion.statements]
    assert all("in training accuracy after" in text for text in texts)
    assert not any("loss" in text or "step says" in text for text in texts)
    assert found.conclusion.headline.endswith("by a short race alone.")
    with pytest.raises(DissectionError, match="only a race, from initialisation"):
        dissected(name, Point(after=3))


def test_weight_decay_belongs_to_the_loss():
    plain = dissected("digits", race=False)
    problem = problems.get("digits")
    data = problems.load(problem)
    base = base_run(problem, data, steps=10, weight_decay=0.5)
    plan = DissectionPlan(
        methods=(entrant("m-sgd"),), budget=1.0, draws=6, race=False, variants=False
    )
    found = dissect_problem(problem, data, base, plan, Point(), lambda part, share: None)
    assert found.setting.loss > plain.setting.loss


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(DissectionError, match="do not fit the model"):
        dissected("digits", Point(at=tmp_path / "other.pt"))


def test_starts_are_numbers_of_the_grid_near_what_is_suggested():
    problem = problems.get("quadratic")
    data = problems.load(problem)
    base = base_run(problem, data, steps=60)
    found = suggested_starts(problem, data, base, ["m-sgd", "m-ssd"], seconds=60.0)
    grid = StepSizes()
    assert set(found) == {"m-sgd", "m-ssd"}
    assert 1e-4 <= grid[found["m-sgd"]] <= 0.1
    assert 0.01 <= grid[found["m-ssd"]] <= 10
