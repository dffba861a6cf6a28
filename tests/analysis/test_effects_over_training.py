"""Effects at every evaluation, targets, and what choosing a step size took."""

import math
from dataclasses import replace

import numpy as np
import pytest
from lab.synthetic import LOSS_RUN, RUN, all_records, record, study_of

from analysis.test_study import MERITS, made
from svag.analysis.effects_over_training import Turn, courses, turn
from svag.analysis.results import TRAIN_LOSS
from svag.analysis.study import of_records
from svag.analysis.targets import target
from svag.analysis.tuning import cost, sensitivity
from svag.anatomy import PAPER_METHODS
from svag.errors import InvalidOption

SIGN = {"m-sgd": 0, "m-svag": 0, "m-ssd": 1, "adam": 1}
STEPS = tuple(range(0, 21, 4))


def with_curves(curve, seeds=5, noise=0.001):
    """A study whose final runs have the accuracy ``curve(key, step)``, and its complement as loss.

    What chose the step sizes stays as it is.
    """
    study, records = made(seeds=seeds)
    for one in records:
        key, seed = one.run["method"], one.run["seed"]
        if seed < 1000:
            continue
        template = dict(one.evals[0])
        one.evals.clear()
        for step in STEPS:
            value = curve(key, step) + noise * math.sin(3.1 * seed + step + len(key))
            figures = {"test_accuracy": value, "train_loss": 1 - value, "wall_time": 0.5 * step}
            one.evals.append({**template, "step": step, **figures})
    return of_records(study, records)


def crossing(key, step):
    """The sign is ahead at first, and behind at the end."""
    return 0.5 + 0.01 * step + SIGN[key] * (0.1 - 0.01 * step)


def test_an_effect_that_changes_sides():
    analysis = with_curves(crossing)
    sign = courses(analysis, analysis.judged)["sign"]
    assert sign.steps.tolist() == list(STEPS)
    assert [round(effect.estimate, 2) for effect in sign.effects] == [
        pytest.approx(0.1 - 0.01 * step, abs=0.002) for step in STEPS
    ]
    assert turn(analysis, analysis.judged) == Turn(until=8, since=12, direction=-1)
    assert turn(analysis, TRAIN_LOSS) == Turn(until=8, since=12, direction=1)


def test_an_effect_that_stays():
    analysis = with_curves(lambda key, step: 0.5 + 0.1 * SIGN[key])
    assert turn(analysis, analysis.judged) is None


def test_noise_changes_no_sides():
    """Of 40 studies without any effect, none is said to turn; single intervals would say it."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        analysis = with_curves(lambda key, step: 0.5 + 0.01 * rng.standard_normal(), seeds=3)
        found += turn(analysis, analysis.judged) is not None
    assert found == 0


def test_a_single_run_has_effects_without_intervals():
    analysis = with_curves(crossing, seeds=1)
    course = courses(analysis, analysis.judged)["sign"]
    assert all(effect.interval is None for effect in course.effects)
    assert turn(analysis, analysis.judged) is None


def test_steps_that_some_run_lacks_are_left_out():
    study, records = made(seeds=3)
    missing = next(r for r in records if r.run["method"] == "adam" and r.run["seed"] == 1001)
    del missing.evals[1]
    analysis = of_records(study, records)
    assert courses(analysis, analysis.judged)["sign"].steps.tolist() == [0]
    assert courses(of_records(*made("m-sgd")), analysis.judged) == {}


class TestTarget:
    def test_the_default_is_what_the_worst_method_has(self):
        analysis = with_curves(lambda key, step: (0.02 if SIGN[key] else 0.01) * step, noise=0)
        found = target(analysis, analysis.judged)
        assert found.worst in ("m-sgd", "m-svag")
        assert found.value == pytest.approx(0.2)
        adam, slow = found.by_method["adam"], found.by_method[found.worst]
        assert (adam.reached, adam.runs, adam.steps.mean, adam.seconds.mean) == (5, 5, 12, 6)
        assert slow.steps.mean == 20

    def test_one_that_is_given_and_not_always_reached(self):
        analysis = with_curves(lambda key, step: (0.02 if SIGN[key] else 0.01) * step, noise=0)
        found = target(analysis, analysis.judged, 0.3)
        assert found.worst == ""
        assert found.by_method["adam"].steps.mean == 16
        assert found.by_method["m-sgd"].reached == 0
        assert math.isnan(found.by_method["m-sgd"].steps.mean)

    def test_less_is_better_for_a_loss(self):
        analysis = with_curves(lambda key, step: (0.02 if SIGN[key] else 0.01) * step, noise=0)
        found = target(analysis, TRAIN_LOSS)
        assert found.value == pytest.approx(0.8)
        assert found.by_method["adam"].steps.mean == 12

    def test_records_without_times(self):
        analysis = of_records(*made())
        found = target(analysis, analysis.judged)
        assert math.isnan(found.by_method["adam"].seconds.mean)
        assert found.by_method["adam"].reached > 0

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1, 90.0])
    def test_values_that_accuracy_cannot_have(self, wrong):
        analysis = of_records(*made())
        with pytest.raises(InvalidOption, match=r"from 0 to 1; percentages are fractions"):
            target(analysis, analysis.judged, wrong)

    def test_a_loss_has_no_bounds(self):
        study = study_of("m-sgd", base=LOSS_RUN)
        analysis = of_records(
            study, all_records(study, {"m-sgd": lambda lr, seed: 1 + abs(lr - 1)})
        )
        assert target(analysis, analysis.judged, -5.0).by_method["m-sgd"].reached == 0
        with pytest.raises(InvalidOption, match=r"target nan: give a finite loss$"):
            target(analysis, analysis.judged, math.nan)


class TestTuning:
    def test_every_run_before_the_final_ones_counts_once(self):
        study, records = made()
        analysis = of_records(study, records)
        for key, result in analysis.methods.items():
            before = [r for r in records if r.run["method"] == key and r.run["seed"] < 1000]
            spent = cost(result)
            assert (spent.runs, spent.final_runs) == (len(before), 3)
            assert spent.seconds == spent.timed <= len(before)
            assert spent.final_seconds == 3.0

    def test_final_runs_that_a_choice_moved_away_from_count(self):
        study = study_of(*PAPER_METHODS, seeds=3)
        merits = dict(MERITS)
        merits["adam"] = lambda lr, seed: None if seed == 1002 else MERITS["adam"](lr, seed)
        records = all_records(study, merits)
        result = of_records(study, records).methods["adam"]
        adam = [r for r in records if r.run["method"] == "adam"]
        assert cost(result).runs == len(adam) - 3

    def test_step_sizes_that_were_given_cost_nothing(self):
        study = study_of("m-sgd", lrs={"m-sgd": 1.0})
        analysis = of_records(study, all_records(study, MERITS))
        assert cost(analysis.methods["m-sgd"]).runs == 0
        assert sensitivity(analysis, "m-sgd") is None

    def test_neighbours(self):
        """The accuracy falls by 0.2 times the squared decades: 4.6 points at 3, 5.5 at 0.3."""
        analysis = of_records(*made())
        found = sensitivity(analysis, "adam")
        assert found.larger == pytest.approx(-0.2 * np.log10(3) ** 2, abs=0.002)
        assert found.smaller == pytest.approx(-0.2 * np.log10(0.3) ** 2, abs=0.002)
        assert (found.low, found.high) == (1.0, 1.0)

    def test_a_flat_top(self):
        study = study_of("m-sgd", smallest_effect=0.06)
        analysis = of_records(study, all_records(study, MERITS))
        found = sensitivity(analysis, "m-sgd")
        assert (found.low, found.high) == (pytest.approx(0.3), pytest.approx(3.0))

    def test_a_step_size_that_diverged_is_not_as_good(self):
        study = study_of("m-sgd", smallest_effect=0.5)
        merits = {"m-sgd": lambda lr, seed: None if lr > 2 else MERITS["m-sgd"](lr, seed)}
        analysis = of_records(study, all_records(study, merits))
        found = sensitivity(analysis, "m-sgd")
        assert found.high == 1.0
        assert math.isnan(found.larger)


def test_the_gap_is_test_minus_training():
    study = study_of("m-sgd", base=replace(RUN))
    records = all_records(study, {"m-sgd": MERITS["m-sgd"]}, train_accuracy=0.99, test_loss=1.5)
    result = of_records(study, records).methods["m-sgd"]
    assert result.gap["loss"].mean == pytest.approx(0.5)
    assert result.gap["accuracy"].mean == pytest.approx(0.80 - 0.99, abs=0.002)


def test_a_gap_that_was_not_recorded():
    study = study_of("m-sgd")
    records = all_records(study, {"m-sgd": MERITS["m-sgd"]})
    for one in records:
        one.end.pop("train_accuracy", None)
    assert math.isnan(of_records(study, records).methods["m-sgd"].gap["accuracy"].mean)
    assert record(RUN, 0.5).end["test_accuracy"] == 0.5
