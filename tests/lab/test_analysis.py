"""Analysis: effects against a direct computation, intervals, and what is chosen from records."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from lab.made import record
from svag.anatomy import METHODS
from svag.errors import RecordError
from svag.lab.analysis import EFFECTS, FIGURES, analyse

SQUARE = {
    (False, False): "m-sgd",
    (False, True): "m-svag",
    (True, False): "m-ssd",
    (True, True): "adam",
}
SEEDS = range(1, 7)


def square(value, seeds=SEEDS, **settings):
    """Records of the four cells: ``value(sign, adapted, seed)`` is the training loss.

    The test loss is twice that and the test accuracy a hundredth below 1 for each unit.
    """
    return [
        record(
            key,
            seed=seed,
            train_loss=value(sign, adapted, seed),
            test_loss=2 * value(sign, adapted, seed),
            test_accuracy=1 - value(sign, adapted, seed) / 100,
            **settings,
        )
        for (sign, adapted), key in SQUARE.items()
        for seed in seeds
    ]


def additive(sign, adapted, interaction, noise=0.0, shared=0.0, start=10.0):
    """Cell means with known effects, noise of a cell's own and noise that a seed's cells share."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, 2, 100)) * noise
    common = rng.normal(size=100) * shared

    def value(s, a, seed):
        mean = start + sign * s + adapted * a + interaction * s * a
        return float(mean + own[int(s), int(a), seed] + common[seed])

    return value


def width(effect):
    low, high = effect.interval
    return high - low


# --- effects


def test_effects_of_a_known_square():
    found = analyse(square(additive(sign=3.0, adapted=-1.0, interaction=0.5))).effects
    expected = {
        "sign": 3.0 + 0.5 / 2,
        "adaptation": -1.0 + 0.5 / 2,
        "interaction": 0.5 / 2,
        "adaptation without sign": -1.0,
        "adaptation with sign": -1.0 + 0.5,
    }
    scale = {"train_loss": 1, "test_loss": 2, "test_accuracy": -1 / 100}
    assert found.keys() == set(FIGURES)
    for figure, effects in found.items():
        assert effects.keys() == EFFECTS.keys() == expected.keys()
        for name, effect in effects.items():
            true = scale[figure] * expected[name]
            assert effect.estimate == pytest.approx(true, rel=1e-9)
            assert effect.interval == pytest.approx((true, true), rel=1e-9)
            assert effect.direction == np.sign(true)


def test_effects_against_a_direct_computation():
    value = additive(1.0, 0.3, -0.2, noise=0.5)
    y = {cell: np.mean([value(*cell, seed) for seed in SEEDS]) for cell in SQUARE}
    found = analyse(square(value)).effects["train_loss"]
    plain, adapted = y[False, False], y[False, True]
    signed, both = y[True, False], y[True, True]
    assert found["sign"].estimate == pytest.approx(((signed - plain) + (both - adapted)) / 2)
    assert found["adaptation"].estimate == pytest.approx(((adapted - plain) + (both - signed)) / 2)
    assert found["interaction"].estimate == pytest.approx(((both - signed) - (adapted - plain)) / 2)
    assert found["adaptation without sign"].estimate == pytest.approx(adapted - plain)
    assert found["adaptation with sign"].estimate == pytest.approx(both - signed)


def test_the_order_of_records_does_not_matter():
    records = square(additive(1.0, 0.3, -0.2, noise=0.5))
    shuffled = records.copy()
    random.Random(0).shuffle(shuffled)
    first, second = analyse(records), analyse(shuffled)
    assert first.effects == second.effects
    assert list(first.methods) == list(second.methods) == ["m-sgd", "m-ssd", "m-svag", "adam"]


# --- intervals


def test_intervals_contain_the_estimate_and_shrink_with_the_noise():
    widths = []
    for noise in (1.0, 0.5, 0.25):
        effects = analyse(square(additive(3.0, -1.0, 0.5, noise))).effects
        for of_figure in effects.values():
            for effect in of_figure.values():
                low, high = effect.interval
                assert low < effect.estimate < high
        widths.append(width(effects["train_loss"]["sign"]))
    assert widths[1] == pytest.approx(widths[0] / 2)
    assert widths[2] == pytest.approx(widths[0] / 4)


def test_an_interval_is_about_as_wide_as_theory_has_it():
    """As Student's for a mean of n: +- t sd/sqrt(n); the sign is half of the four cells' sum."""
    value = additive(0.0, 0.0, 0.0, noise=1.0)
    seeds = range(1, 41)
    each = [
        sum((0.5 if sign else -0.5) * value(sign, adapted, seed) for sign, adapted in SQUARE)
        for seed in seeds
    ]
    effect = analyse(square(value, seeds)).effects["train_loss"]["sign"]
    assert effect.estimate == pytest.approx(np.mean(each))
    student = stats.t.ppf(0.975, 39) * np.std(each, ddof=1) / math.sqrt(40)
    assert width(effect) == pytest.approx(2 * student, rel=0.02)


def test_equal_seeds_are_resampled_together():
    """What all cells of a seed share cancels out of every effect, whatever is drawn."""
    value = additive(3.0, -1.0, 0.5, shared=100.0)
    effects = analyse(square(value)).effects["train_loss"]
    for name, true in (("sign", 3.25), ("adaptation", -0.75), ("interaction", 0.25)):
        assert effects[name].estimate == pytest.approx(true, abs=1e-9)
        assert effects[name].interval == pytest.approx((true, true), abs=1e-9)
        assert effects[name].direction == np.sign(true)


def test_other_seeds_are_resampled_each_by_itself():
    records = square(additive(3.0, -1.0, 0.5, shared=100.0))
    records.remove(next(r for r in records if r.run["method"] == "adam" and r.run["seed"] == 6))
    effect = analyse(records).effects["train_loss"]["sign"]
    assert width(effect) > 10
    assert effect.direction == 0


def test_one_seed_has_no_interval():
    effects = analyse(square(additive(3.0, -1.0, 0.5), seeds=[1])).effects
    for of_figure in effects.values():
        for effect in of_figure.values():
            assert effect.interval is None
            assert effect.direction == 0
    assert effects["train_loss"]["sign"].estimate == pytest.approx(3.25)


def test_one_seed_in_one_cell_has_no_interval_either():
    records = square(additive(3.0, -1.0, 0.5))
    records = [r for r in records if r.run["method"] != "adam" or r.run["seed"] == 1]
    assert analyse(records).effects["train_loss"]["sign"].interval is None


# --- cells


@pytest.mark.parametrize("missing", SQUARE.values())
def test_without_one_of_the_cells_there_are_no_effects(missing):
    found = analyse(r for r in square(additive(1, 1, 1)) if r.run["method"] != missing)
    assert found.effects == {}
    assert found.cells == {}
    assert set(found.methods) == set(SQUARE.values()) - {missing}


def test_the_paper_s_methods_stand_for_their_cells():
    everything = [record(key, seed=seed) for key in METHODS for seed in SEEDS]
    found = analyse(everything)
    assert found.cells == SQUARE
    assert list(found.methods) == list(METHODS)
    for cell, key in found.cells.items():
        assert found.methods[key].cell == cell


def test_another_method_of_a_cell_and_direction_takes_the_place_of_a_missing_one():
    records = [record(k, seed=s) for k in METHODS if k != "adam" for s in SEEDS]
    assert analyse(records).cells == {**SQUARE, (True, True): "adam-star"}
    assert analyse(records).effects


def test_momentum_is_not_mixed_with_the_halves():
    for left_out in ("m-sgd", "m-svag", "m-ssd"):
        records = [record(k, seed=s) for k in METHODS if k != left_out for s in SEEDS]
        assert analyse(records).cells == {}


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_of_few_seeds_cover_what_they_should(n):
    """Of 150 studies without any effect; four standard errors below 95 % are 88 %."""
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(150):
        values = rng.normal(size=(2, 2, n + 1))
        found = analyse(square(lambda s, a, k, v=values: v[int(s), int(a), k], range(1, n + 1)))
        low, high = found.effects["train_loss"]["sign"].interval
        covered += low <= 0 <= high
    assert covered / 150 >= 0.88


def test_equal_accuracies_differ_by_nothing():
    """Means of multiples of 1/500 leave 1e-17, which is no effect."""
    accuracy = {1: 0.986, 2: 0.988, 3: 0.982, 4: 0.986, 5: 0.976}
    records = [
        record(key, seed=seed, test_accuracy=accuracy[seed if key != "adam" else 6 - seed])
        for key in SQUARE.values()
        for seed in accuracy
    ]
    for effect in analyse(records).effects["test_accuracy"].values():
        assert effect.estimate == 0
        assert effect.direction == 0


# --- replications


def test_figures_at_the_end_and_at_their_best():
    curves = {
        1: [(2.0, 2.1, 0.1), (0.4, 0.5, 0.9), (0.5, 0.8, 0.8)],
        2: [(2.2, 2.3, 0.2), (0.8, 0.7, 0.6), (0.3, 0.4, 0.7)],
    }
    records = [
        record("m-sgd", seed=seed, evals=evals, **dict(zip(FIGURES, evals[-1], strict=True)))
        for seed, evals in curves.items()
    ]
    result = analyse(records).methods["m-sgd"]
    assert (result.key, result.lr, result.diverged) == ("m-sgd", 0.1, 0)
    assert [r.run["seed"] for r in result.replications] == [1, 2]
    final = result.final["train_loss"]
    assert (final.mean, final.sd, final.n) == (pytest.approx(0.4), pytest.approx(0.02**0.5), 2)
    best = {"train_loss": (0.4, 0.3), "test_loss": (0.5, 0.4), "test_accuracy": (0.9, 0.7)}
    for figure, values in best.items():
        assert result.best[figure].mean == pytest.approx(np.mean(values))
        assert result.best[figure].sd == pytest.approx(np.std(values, ddof=1))
    for column, figure in enumerate(FIGURES):
        values = np.array([[line[column] for line in evals] for evals in curves.values()])
        curve = result.curves[figure]
        assert curve.steps.tolist() == [0, 10, 20]
        assert curve.mean == pytest.approx(values.mean(axis=0))
        assert curve.sd == pytest.approx(values.std(axis=0, ddof=1))


def test_one_replication_has_no_standard_deviation():
    spread = analyse([record(train_loss=0.5)]).methods["m-sgd"].final["train_loss"]
    assert (spread.mean, spread.n) == (0.5, 1)
    assert math.isnan(spread.sd)


def test_diverged_replications_are_counted_and_left_out():
    records = square(additive(3.0, -1.0, 0.5))
    records += [record("adam", seed=s, status="diverged", train_loss=None) for s in (7, 8)]
    found = analyse(records)
    adam = found.methods["adam"]
    assert (adam.diverged, len(adam.replications)) == (2, 6)
    assert adam.final["train_loss"].n == 6
    assert adam.final["train_loss"].mean == pytest.approx(12.5)
    assert found.effects["train_loss"]["sign"].estimate == pytest.approx(3.25)
    assert found.methods["m-sgd"].diverged == 0


def test_a_method_that_always_diverges_has_no_cell_but_is_there():
    records = square(additive(3.0, -1.0, 0.5))
    for place, found in enumerate(records):
        if found.run["method"] == "adam":
            records[place] = record("adam", seed=found.run["seed"], status="diverged")
    found = analyse(records)
    assert found.effects == {}
    adam = found.methods["adam"]
    assert (adam.diverged, len(adam.replications)) == (6, 0)
    assert math.isnan(adam.final["train_loss"].mean)
    assert adam.final["train_loss"].n == 0
    assert len(adam.curves["train_loss"].mean) == len(adam.curves["train_loss"].steps) == 0


@pytest.mark.parametrize("status", ["interrupted", "error"])
def test_unfinished_runs_are_in_no_mean(status):
    records = [record(train_loss=1.0), record(seed=2, train_loss=9.0, status=status)]
    result = analyse(records).methods["m-sgd"]
    assert (result.final["train_loss"].mean, result.final["train_loss"].n) == (1.0, 1)
    assert result.diverged == 0


def test_a_figure_that_is_not_finite_is_no_obstacle():
    """The training loss of a run that is done is finite; its test loss need not be."""
    evals = [(2.0, None, 0.1), (0.5, None, 0.8)]
    records = square(additive(3.0, -1.0, 0.5))
    infinite = record("adam", seed=7, train_loss=0.5, test_loss=None, evals=evals)
    found = analyse([*records, infinite]).methods["adam"]
    assert found.final["train_loss"].n == 7
    assert math.isfinite(found.final["test_accuracy"].mean)
    assert not math.isfinite(found.final["test_loss"].mean)


# --- the step size


def test_the_step_size_is_the_one_that_was_searched_best():
    searched = {0.01: 0.5, 0.1: 0.9, 1.0: 0.7}
    records = [record(seed=0, lr=lr, test_accuracy=merit) for lr, merit in searched.items()]
    records += [record(seed=0, lr=10.0, status="diverged", test_accuracy=0.99)]
    records += [record(seed=seed, lr=lr) for lr in (0.01, 1.0, 10.0) for seed in range(1, 6)]
    records += [record(seed=1, lr=0.1, test_accuracy=0.2)]
    result = analyse(records).methods["m-sgd"]
    assert result.lr == 0.1
    assert [r.run["seed"] for r in result.replications] == [1]
    assert [(t.lr, t.status) for t in result.trials] == [
        (0.01, "done"), (0.1, "done"), (1.0, "done"), (10.0, "diverged")
    ]  # fmt: skip
    assert [t.figures["test_accuracy"] for t in result.trials] == [0.5, 0.9, 0.7, 0.99]


def test_a_step_size_that_was_settled_counts_before_one_that_was_searched():
    records = [record(seed=0, lr=lr, test_accuracy=lr) for lr in (0.1, 0.3)]
    records += [record(seed=1, lr=lr) for lr in (0.1, 0.3, 0.5)]
    assert analyse(records).methods["m-sgd"].lr == 0.3
    assert analyse(records, {"adam": 1.0}).methods["m-sgd"].lr == 0.3
    assert analyse(records, {"m-sgd": 0.1}).methods["m-sgd"].lr == 0.1
    assert analyse(records, {"m-sgd": 0.5}).methods["m-sgd"].lr == 0.5


def test_without_a_search_the_step_size_is_the_one_replicated_most():
    records = [record(seed=seed, lr=0.3) for seed in (1, 2, 3)]
    records += [record(seed=seed, lr=0.5) for seed in (1, 2)]
    result = analyse(records).methods["m-sgd"]
    assert (result.lr, len(result.replications), result.trials) == (0.3, 3, [])


def test_the_search_by_validation_counts_where_that_was_asked_for():
    records = []
    for lr, test, validation in ((0.1, 0.9, 0.5), (1.0, 0.5, 0.9)):
        for seed in (0, 1):
            made = record(seed=seed, lr=lr, test_accuracy=test, select="validation")
            made.end["validation_accuracy"] = validation
            records.append(made)
    assert analyse(records).methods["m-sgd"].lr == 1.0


def test_a_method_without_a_stable_step_size_is_there_with_its_trials():
    records = [record("m-sgd"), record("adam", seed=0, lr=0.1, status="diverged")]
    found = analyse(records)
    adam = found.methods["adam"]
    assert math.isnan(adam.lr)
    assert [trial.status for trial in adam.trials] == ["diverged"]
    assert (adam.replications, adam.diverged) == ([], 0)


# --- studies


def test_studies_are_told_apart():
    """The one with most runs is taken, unless settings are asked for."""
    studies = {
        "made-up": [record(seed=s, train_loss=1.0) for s in range(1, 4)],
        "longer": [record(seed=s, train_loss=2.0, steps=40) for s in range(1, 6)],
        "edited": [record(seed=s, train_loss=3.0, version="2") for s in range(1, 3)],
        "other": [record(seed=s, train_loss=4.0, problem="other") for s in range(1, 5)],
    }
    records = [r for study in studies.values() for r in study]

    def found(**wanted):
        analysis = analyse(records, **wanted)
        result = analysis.methods["m-sgd"]
        return result.final["train_loss"].mean, result.final["train_loss"].n, analysis.others

    assert found() == (2.0, 5, 3)
    assert found(steps=20) == (4.0, 4, 2)
    assert found(problem="made-up", steps=20) == (1.0, 3, 1)
    assert found(version="2") == (3.0, 2, 0)
    assert analyse(records, steps=40).settings == {
        "problem": "made-up", "version": "1", "data": "0123456789abcdef", "steps": 40,
        "batch_size": 8, "eval_every": 10, "select": "test",
    }  # fmt: skip


def test_a_study_without_replications_stands_back():
    search_only = [record(seed=0, lr=lr, steps=40) for lr in (0.1, 0.3, 1.0)]
    found = analyse([*search_only, record(steps=20)])
    assert found.settings["steps"] == 20
    assert found.others == 1


@pytest.mark.parametrize(
    "records",
    [[], [record(seed=0)], [record(status="interrupted")], [record(status="error")]],
    ids=["none", "search only", "interrupted", "error"],
)
def test_nothing_to_analyse(records):
    with pytest.raises(RecordError, match="no run has finished"):
        analyse(records)


@pytest.mark.parametrize("status", ["interrupted", "error"])
def test_a_search_that_did_not_get_to_its_end_has_no_result(status):
    """All that it has tried diverged, but what lies further down was not tried."""
    search = [record(seed=0, lr=1.0, status="diverged"), record(seed=0, lr=0.3, status=status)]
    with pytest.raises(RecordError, match="no run has finished"):
        analyse(search)


def test_a_study_that_is_not_among_the_records():
    records = [record(), record(steps=40), record(problem="other")]
    with pytest.raises(RecordError) as caught:
        analyse(records, problem="other", steps=40)
    assert str(caught.value) == (
        "no study among the records has problem other, steps 40; there are made-up with 20 steps, "
        "made-up with 40 steps, other with 20 steps"
    )


def test_versions_and_time():
    records = [record(seed=1), record(seed=2), record(seed=3, status="interrupted")]
    for made, torch_version in zip(records, ("2.13", "2.14", "2.13"), strict=True):
        made.run.update(svag="0.1.0", torch=torch_version, commit=None)
    found = analyse(records)
    assert found.versions["torch"] == ["2.13", "2.14"]
    assert found.versions["svag"] == ["0.1.0"]
    assert found.versions["commit"] == []
    assert found.seconds == 3.0


def test_neither_analysis_nor_report_imports_torch():
    code = (
        "import sys, svag.lab.analysis, svag.lab.verdict, svag.report; "
        "print([name for name in ('torch', 'svag.lab.train', 'svag.lab.pool', 'svag.problems') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert (done.stdout.strip(), done.stderr) == (b"[]", b"")
