"""The protocol as a plan: which runs it asks for, and when it stops asking."""

import math
from collections import deque
from dataclasses import asdict, replace

import pytest
from torch import nn

from lab.made import RUN, classification, points
from svag.anatomy import METHODS
from svag.errors import InvalidOption, SvagError
from svag.lab.pool import Event
from svag.lab.protocol import (
    SEEDS,
    Study,
    carry_out,
    expected_runs,
    grid,
    plan,
    shared_settings,
    template,
)
from svag.lab.records import STUDY, Record, Recorder, find, load, path_of

GRID = {
    -14: 1e-7, -13: 3e-7, -12: 1e-6, -11: 3e-6, -10: 1e-5, -9: 3e-5, -8: 1e-4, -7: 3e-4,
    -6: 1e-3, -5: 3e-3, -4: 1e-2, -3: 3e-2, -2: 1e-1, -1: 3e-1, 0: 1.0, 1: 3.0, 2: 10.0,
    3: 30.0, 4: 100.0, 5: 300.0, 6: 1e3, 7: 3e3, 8: 1e4,
}  # fmt: skip


def study(*methods, seeds=3, lrs=None, **settings):
    return Study(methods=methods or ("m-sgd",), steps=20, seeds=seeds, lrs=lrs or {}, **settings)


def curve(peak, largest=math.inf):
    """Outcome of a step size: best at ``peak``, diverged above ``largest``."""

    def outcome(run):
        if run.lr > largest:
            return {"status": "diverged", "test_accuracy": 0.1}
        distance = abs(math.log10(run.lr) - math.log10(peak))
        return {"status": "done", "test_accuracy": 1 - distance / 20}

    return outcome


def answered(runs, outcome):
    """Records by name; before the first step the accuracy is that of chance, a tenth."""
    start = {"kind": "eval", "step": 0, "test_accuracy": 0.1, "validation_accuracy": 0.1}
    return {run.id: Record(asdict(run), [start], outcome(run)) for run in runs}


def drive(key, outcome, wanted=None):
    """Answer a plan until it ends; returns the step sizes searched and the runs that replicate."""
    asked = plan(RUN, key, wanted or study(key))
    searched, replicated = [], []
    runs = next(asked)
    while True:
        assert not replicated  # the replications come last, all at once
        if runs[0].seed == 0:
            assert len(runs) == 1  # of a search the next step depends on the last
            searched.append(runs[0].lr)
        else:
            replicated = runs
        try:
            runs = asked.send(answered(runs, outcome))
        except StopIteration:
            return searched, replicated


# --- the grid and the study


def test_the_grid_is_exact():
    assert {index: grid(index) for index in GRID} == GRID


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"steps": 0}, "steps=0"),
        ({"lrs": {"adam": 1.0}}, "'adam', which is not compared; compared are m-sgd"),
        ({"lrs": {"m-sgd": 0.0}}, "step size 0.0 for 'm-sgd'"),
        ({"lrs": {"m-sgd": -1.0}}, "step size -1.0"),
        ({"lrs": {"m-sgd": math.inf}}, "step size inf"),
        ({"lrs": {"m-sgd": math.nan}}, "step size nan"),
    ],
)
def test_a_study_that_cannot_be(changes, words):
    settings = {"methods": ("m-sgd",), "steps": 20, "seeds": 1, "lrs": {}, **changes}
    with pytest.raises(InvalidOption, match=words) as caught:
        Study(**settings)
    assert isinstance(caught.value, SvagError)


def test_the_template_holds_what_a_study_shares():
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, batch_size=5, version="7")
    base = template(problem, data, replace(study(select="validation"), steps=200))
    assert (base.problem, base.version, base.data) == ("points", "7", data.fingerprint)
    assert (base.steps, base.batch_size, base.eval_every) == (200, 5, 10)
    assert base.select == "validation"
    assert shared_settings(base) == {key: asdict(base)[key] for key in STUDY}


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (19, 1), (39, 1), (40, 2), (6000, 300)])
def test_a_run_is_evaluated_about_twenty_times(steps, every):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    assert template(problem, data, replace(study(), steps=steps)).eval_every == every


@pytest.mark.parametrize("key", METHODS)
def test_a_run_names_its_method_with_anatomy_and_betas(key):
    run = next(plan(RUN, key, study(key)))[0]
    row = METHODS[key]
    assert (run.method, run.anatomy) == (key, str(row.anatomy))
    assert (run.beta, run.beta2) == {0: (None, None), 1: (0.9, None), 2: (0.9, 0.999)}[
        len(row.betas)
    ]
    assert replace(run, **{k: getattr(RUN, k) for k in ("method", "anatomy", "beta", "beta2")}) == (
        replace(RUN, lr=run.lr)
    )


def test_budgets_and_the_guess_of_their_runs():
    assert SEEDS == {"quick": 5, "paper": 10}
    methods = ("m-sgd", "adam")
    assert expected_runs(study(*methods, seeds=5)) == 24
    assert expected_runs(study(*methods, seeds=5, lrs={"adam": 1.0})) == 17
    assert expected_runs(study(*methods, seeds=5, lrs={"adam": 1.0, "m-sgd": 1.0})) == 10


# --- the search


def test_a_search_walks_up_until_it_diverges_then_down():
    searched, replicated = drive("m-sgd", curve(peak=0.1, largest=5))
    assert searched == [1.0, 3.0, 10.0, 0.3, 0.1, 0.03, 0.01]
    assert [(run.lr, run.seed) for run in replicated] == [(0.1, 1), (0.1, 2), (0.1, 3)]


def test_a_search_stops_after_two_that_are_no_better():
    searched, replicated = drive("m-sgd", curve(peak=10))
    assert searched == [1.0, 3.0, 10.0, 30.0, 100.0, 0.3, 0.1]
    assert {run.lr for run in replicated} == {10.0}


def test_the_search_of_a_sign_method_starts_lower():
    for key, row in METHODS.items():
        searched, _ = drive(key, curve(peak=0.01))
        assert searched[0] == (0.01 if row.anatomy.sign else 1.0)


def test_a_start_that_diverges_is_left_downwards_at_once():
    searched, replicated = drive("adam", curve(peak=1e-4, largest=5e-4))
    assert searched == [1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5]
    assert {run.lr for run in replicated} == {1e-4}


@pytest.mark.parametrize("key", ["m-sgd", "adam"])
def test_the_peak_is_found_wherever_it_is(key):
    for peak in GRID:
        for largest in range(peak, max(GRID) + 1):
            searched, replicated = drive(key, curve(GRID[peak], GRID[largest]))
            assert {run.lr for run in replicated} == {GRID[peak]}, (peak, largest)
            assert len(searched) == len(set(searched))
            assert set(searched) <= set(GRID.values())
            assert sum(lr > GRID[largest] for lr in searched) <= max(1, 9 - largest)


def test_one_step_size_that_does_badly_does_not_end_the_search():
    def outcome(run):
        return {"status": "done", "test_accuracy": {1.0: 0.5, 3.0: 0.4, 10.0: 0.6}.get(run.lr, 0.1)}

    searched, replicated = drive("m-sgd", outcome)
    assert searched == [1.0, 3.0, 10.0, 30.0, 100.0, 0.3, 0.1]
    assert {run.lr for run in replicated} == {10.0}


def test_of_equals_the_largest_step_size_is_taken():
    searched, replicated = drive("m-sgd", lambda run: {"status": "done", "test_accuracy": 0.5})
    assert searched[:3] == [1.0, 3.0, 10.0]
    assert searched[3:] == [lr for lr in reversed(GRID.values()) if lr < 1]
    assert {run.lr for run in replicated} == {10.0}


def table(accuracies, otherwise):
    return lambda run: {"status": "done", "test_accuracy": accuracies.get(run.lr, otherwise)}


def test_equals_end_a_search_upwards_and_not_downwards():
    equals = dict.fromkeys((3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), 0.5)
    searched, replicated = drive("m-sgd", table(equals, otherwise=0.4))
    assert searched == [1.0, 3.0, 10.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4]
    assert {run.lr for run in replicated} == {10.0}


@pytest.mark.parametrize("chance", [0.1, 0.1899])
def test_where_nothing_is_learnt_at_first_the_search_goes_on_downwards_only(chance):
    searched, replicated = drive("m-sgd", table({1e-4: 0.5, 3e-5: 0.7, 1e-5: 0.6}, chance))
    assert searched == [1.0, 3.0, *(GRID[index] for index in range(-1, -12, -1))]
    assert {run.lr for run in replicated} == {3e-5}


def test_a_tenth_of_what_was_wrong_is_enough_to_have_learnt():
    searched, _ = drive("m-sgd", table({1.0: 0.1902}, otherwise=0.15))
    assert searched == [1.0, 3.0, 10.0, 0.3, 0.1]


def test_where_nothing_is_ever_learnt_the_search_ends_with_the_grid():
    searched, replicated = drive("m-sgd", table({}, otherwise=0.1))
    assert searched == [1.0, 3.0, *(GRID[index] for index in range(-1, -15, -1))]
    assert len(replicated) == 3


def test_at_chance_the_search_goes_on_downwards():
    def outcome(run):
        chance = {0.01: 0.06, 0.03: 0.05, 0.1: 0.07, 3e-3: 0.05, 1e-3: 0.04}
        learns = {3e-4: 0.9, 1e-4: 0.8, 3e-5: 0.7}
        return {"status": "done", "test_accuracy": {**chance, **learns}.get(run.lr, 0.05)}

    searched, replicated = drive("adam", outcome)
    assert {run.lr for run in replicated} == {3e-4}
    assert searched[-2:] == [1e-4, 3e-5]


def test_where_all_diverge_nothing_is_replicated():
    searched, replicated = drive("m-sgd", lambda run: {"status": "diverged"})
    assert searched == [GRID[index] for index in range(0, -15, -1)]
    assert replicated == []


@pytest.mark.parametrize("failing", [1.0, 3.0, 0.3])
def test_an_error_ends_a_method(failing):
    def outcome(run):
        return {"status": "error"} if run.lr == failing else curve(0.1, 5)(run)

    searched, replicated = drive("m-sgd", outcome)
    assert searched[-1] == failing
    assert replicated == []


def test_the_search_is_by_validation_where_that_is_asked_for():
    run = replace(RUN, select="validation")

    def outcome(run):
        return {**curve(0.1)(run), "validation_accuracy": curve(3.0)(run)["test_accuracy"]}

    asked = plan(run, "m-sgd", study(select="validation"))
    runs = next(asked)
    while runs[0].seed == 0:
        runs = asked.send(answered(runs, outcome))
    assert {run.lr for run in runs} == {3.0}


def test_a_settled_step_size_is_not_searched_for():
    wanted = study("m-sgd", "adam", seeds=4, lrs={"m-sgd": 0.7})
    searched, replicated = drive("m-sgd", lambda run: {"status": "diverged"}, wanted)
    assert searched == []
    assert [(run.lr, run.seed) for run in replicated] == [(0.7, 1), (0.7, 2), (0.7, 3), (0.7, 4)]
    searched, _ = drive("adam", curve(0.01), wanted)
    assert searched


# --- carrying out


class Executor:
    """Records at once what an outcome says; knows how often it was asked."""

    def __init__(self, directory, outcome):
        self.directory, self.outcome = directory, outcome
        self.waiting, self.submitted = deque(), []

    def submit(self, run):
        self.submitted.append(run)
        self.waiting.append(run)

    def events(self):
        while self.waiting:
            run = self.waiting.popleft()
            yield Event(run, 0, ended=False)
            end = self.outcome(run)
            with Recorder(self.directory, run) as recorder:
                recorder.eval(run.steps, train_loss=1.0, test_loss=1.0, test_accuracy=0.5)
                recorder.end(**end)
            yield Event(run, run.steps, ended=True)

    def close(self):
        pass


def carried_out(directory, outcome, wanted):
    executor = Executor(directory, outcome)
    seen = []
    plans = {key: plan(RUN, key, wanted) for key in wanted.methods}
    records = carry_out(plans, executor, directory, lambda *observed: seen.append(observed))
    return executor.submitted, records, seen


BOTH = study("m-sgd", "adam", seeds=3)


def both(run):
    return curve(0.1, 5)(run) if run.method == "m-sgd" else curve(1e-3, 0.02)(run)


def identities(records):
    """Names of runs, from themselves or from their records."""
    runs = [record.run if isinstance(record, Record) else asdict(record) for record in records]
    return sorted((run["method"], run["lr"], run["seed"]) for run in runs)


def test_all_that_the_plans_ask_for_is_carried_out_once(tmp_path):
    submitted, records, seen = carried_out(tmp_path, both, BOTH)
    assert len(submitted) == len({run.id for run in submitted}) == 7 + 6 + 3 + 3
    assert identities(records) == identities(submitted) == identities(load(tmp_path))
    replicated = {(r.run["method"], r.run["lr"]) for r in records if r.run["seed"] > 0}
    assert replicated == {("m-sgd", 0.1), ("adam", 1e-3)}
    assert [run.method for run in submitted[:4]] == ["m-sgd", "adam", "m-sgd", "adam"]
    begun = [event.run for event, record in seen if not event.ended and record is None]
    ended = [(event.run, record) for event, record in seen if event.ended]
    assert begun == [run for run, _ in ended] == submitted
    assert all(record == find(tmp_path, run) for run, record in ended)


def test_finished_runs_are_not_carried_out_again(tmp_path):
    first, records, _ = carried_out(tmp_path, both, BOTH)
    before = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    submitted, again, seen = carried_out(tmp_path, both, BOTH)
    assert submitted == []
    assert identities(again) == identities(records)
    assert len(seen) == len(first)
    assert all(event.ended and record.finished for event, record in seen)
    assert {path: path.read_bytes() for path in (tmp_path / "records").iterdir()} == before


def test_more_seeds_add_runs_only(tmp_path):
    carried_out(tmp_path, both, BOTH)
    submitted, _, _ = carried_out(tmp_path, both, replace(BOTH, seeds=5))
    assert [(run.method, run.seed) for run in submitted] == [
        ("m-sgd", 4), ("m-sgd", 5), ("adam", 4), ("adam", 5)
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["interrupted", "error"])
def test_unfinished_runs_are_carried_out_again(tmp_path, status):
    first, _, _ = carried_out(tmp_path, both, BOTH)
    chosen = [first[0], first[5], first[-1]]
    for run in chosen:
        with Recorder(tmp_path, run) as recorder:
            if status == "error":
                recorder.end("error", message="broken")
    submitted, records, _ = carried_out(tmp_path, both, BOTH)
    assert identities(submitted) == identities(chosen)
    assert len(records) == len(first)
    assert all(record.finished for record in records)


def test_a_missing_record_is_made_again(tmp_path):
    first, _, _ = carried_out(tmp_path, both, BOTH)
    path_of(tmp_path, first[3]).unlink()
    submitted, _, _ = carried_out(tmp_path, both, BOTH)
    assert submitted == [first[3]]


def test_an_error_in_one_method_leaves_the_others_alone(tmp_path):
    def outcome(run):
        failing = run.method == "m-sgd" and run.lr == 3.0
        return {"status": "error", "message": "broken"} if failing else both(run)

    submitted, records, _ = carried_out(tmp_path, outcome, BOTH)
    m_sgd, adam = ([r for r in records if r.run["method"] == key] for key in ("m-sgd", "adam"))
    assert [record.status for record in m_sgd] == ["done", "error"]
    assert sum(record.run["seed"] > 0 for record in adam) == 3
    assert len(submitted) == len(records)


def test_diverged_replications_are_results(tmp_path):
    wanted = study("m-sgd", lrs={"m-sgd": 7.0})
    submitted, records, _ = carried_out(tmp_path, curve(0.1, 5), wanted)
    assert [record.status for record in records] == ["diverged"] * 3
    submitted, _, _ = carried_out(tmp_path, curve(0.1, 5), wanted)
    assert submitted == []
