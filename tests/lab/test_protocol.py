"""The plan of a method: search, selection, fresh seeds, and what divergence does to it."""

import math
from dataclasses import replace

import pytest

from lab.synthetic import RUN, follow, record, study_of
from svag.errors import InvalidOption
from svag.lab.protocol import FRESH, expected_runs, replay
from svag.lab.search import SEARCH_SEED


def hill(lr, seed=0, top=1.0, cost=0.2):
    return 0.9 - cost * (math.log10(lr / top)) ** 2


def seeds_at(runs, lr):
    return [run.seed for run in runs if run.lr == lr]


def test_search_select_repeat():
    outcome, runs = follow(study_of("m-sgd"), "m-sgd", hill)
    assert outcome.complete
    assert outcome.lr == 1.0
    assert seeds_at(runs, 1.0) == [SEARCH_SEED, 1, 2, 3, FRESH + 1, FRESH + 2, FRESH + 3]
    for neighbour in (0.3, 3.0):
        assert seeds_at(runs, neighbour) == [SEARCH_SEED, 1, 2, 3]
    assert [r.run["seed"] for r in outcome.final] == [FRESH + 1, FRESH + 2, FRESH + 3]
    assert outcome.set_aside == []


def test_what_selects_is_never_what_is_reported():
    outcome, _ = follow(study_of("m-sgd", seeds=10), "m-sgd", hill)
    selecting = {r.run["seed"] for records in outcome.selection.values() for r in records}
    assert not selecting & {r.run["seed"] for r in outcome.final}


def test_close_candidates_get_as_many_seeds_as_the_figures():
    def noisy(lr, seed):
        return 0.9 + 0.001 * (seed % 3) - (0.0 if lr in (0.3, 1.0) else 0.1)

    outcome, _ = follow(study_of("m-sgd", seeds=8), "m-sgd", noisy)
    many = {lr: len(records) for lr, records in outcome.selection.items()}
    assert many == {0.3: 8, 1.0: 8, 3.0: 3}
    assert outcome.lr == 1.0


def test_a_lucky_seed_of_the_search_does_not_choose():
    """At 10 the search's seed has the best run; the selection seeds go back to where it is good."""

    def merit(lr, seed):
        if seed == SEARCH_SEED and lr == 10.0:
            return 0.99
        return hill(lr)

    outcome, _ = follow(study_of("m-sgd"), "m-sgd", merit)
    assert outcome.lr == 1.0


def test_a_candidate_with_a_run_that_diverges_is_set_aside():
    def merit(lr, seed):
        return None if lr == 1.0 and seed == 2 else hill(lr)

    outcome, _ = follow(study_of("m-sgd"), "m-sgd", merit)
    assert outcome.set_aside == [1.0]
    assert outcome.lr in (0.3, 3.0)


def test_one_lucky_survivor_of_the_search_does_not_cost_a_method():
    """All of the search's neighbourhood diverges with other seeds; the choice goes on downwards."""

    def merit(lr, seed):
        if seed != SEARCH_SEED and lr > 0.02:
            return None
        return hill(lr)

    outcome, _ = follow(study_of("m-sgd"), "m-sgd", merit)
    assert outcome.lr == 0.01
    assert outcome.diverged == 0
    assert len(outcome.survivors) == 3


def test_a_divergence_among_the_final_runs_moves_the_choice_down_with_fresh_seeds():
    def merit(lr, seed):
        return None if lr == 1.0 and seed == FRESH + 2 else hill(lr)

    outcome, _ = follow(study_of("m-sgd"), "m-sgd", merit)
    assert outcome.lr == 0.3
    assert outcome.moves == 1
    assert outcome.set_aside == [1.0]
    assert [r.run["seed"] for r in outcome.final] == [2 * FRESH + n for n in (1, 2, 3)]
    assert [r.status for r in outcome.lost[1.0]] == ["done", "diverged", "done"]


def test_moving_down_forgets_no_run_that_diverged():
    """0.3 had eight seeds, of which the seventh diverged; the choice moves past it from 1."""

    def merit(lr, seed):
        if (lr, seed) in ((0.3, 7), (1.0, FRESH + 1)):
            return None
        return 0.9 - (0.0 if lr in (0.3, 1.0) else 0.01) + 0.001 * (seed % 3)

    outcome, _ = follow(study_of("m-sgd", seeds=8), "m-sgd", merit)
    assert len(outcome.selection[0.3]) == 8
    assert outcome.set_aside == [0.3, 1.0]
    assert outcome.lr == 0.1


def test_twice_at_most():
    def merit(lr, seed):
        return None if seed > FRESH and seed % FRESH == 1 else hill(lr)

    outcome, _ = follow(study_of("m-sgd"), "m-sgd", merit)
    assert outcome.moves == 2
    assert outcome.lr == 0.1
    assert outcome.diverged == 1
    assert len(outcome.survivors) == 2
    assert outcome.complete


def test_nothing_stable():
    outcome, _ = follow(study_of("m-sgd"), "m-sgd", lambda lr, seed: None)
    assert outcome.complete
    assert math.isnan(outcome.lr)
    assert outcome.final == []


def test_nothing_learnt():
    outcome, _ = follow(study_of("m-sgd"), "m-sgd", lambda lr, seed: 0.1)
    assert not outcome.learnt
    assert outcome.complete
    assert len(outcome.final) == 3


def test_the_protocol_of_the_paper():
    study = study_of("m-sgd", protocol="paper", seeds=4)
    outcome, _ = follow(study, "m-sgd", hill)
    assert outcome.selection == {}
    assert [r.run["seed"] for r in outcome.final] == [1, 2, 3, 4]
    lucky, _ = follow(study, "m-sgd", lambda lr, seed: 0.99 if (lr, seed) == (3.0, 0) else hill(lr))
    assert lucky.lr == 3.0  # one seed decides


def test_a_settled_step_size():
    outcome, runs = follow(study_of("m-sgd", lrs={"m-sgd": 0.7}), "m-sgd", hill)
    assert [(run.lr, run.seed) for run in runs] == [(0.7, 1), (0.7, 2), (0.7, 3)]
    assert outcome.complete


def test_a_grid_of_ones_own():
    study = study_of("m-sgd", grids={"m-sgd": (0.05, 0.5, 5.0, 50.0)}, starts={})
    outcome, runs = follow(study, "m-sgd", hill)
    assert {run.lr for run in runs} == {0.05, 0.5, 5.0, 50.0}
    assert outcome.lr == 0.5
    assert set(outcome.selection) == {0.05, 0.5, 5.0}


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_select_by_as_few(seeds):
    outcome, _ = follow(study_of("m-sgd", seeds=seeds), "m-sgd", hill)
    assert {len(records) for records in outcome.selection.values()} == {seeds}


def test_the_smaller_loss_is_chosen():
    base = replace(
        RUN,
        metric="loss",
        metric_better="smaller",
        metric_unit="",
        metric_low=None,
        metric_high=None,
    )
    outcome, _ = follow(
        study_of("m-sgd", base=base), "m-sgd", lambda lr, seed: 1 - hill(lr), start=2.0
    )
    assert outcome.lr == 1.0


class TestReplay:
    def study(self):
        return study_of("m-sgd")

    def answers(self):
        _, runs = follow(self.study(), "m-sgd", hill)
        return {run.id: record(run, hill(run.lr)) for run in runs}, runs

    def test_finds_what_the_plan_found(self):
        answers, _ = self.answers()
        direct, _ = follow(self.study(), "m-sgd", hill)
        replayed = replay(self.study(), "m-sgd", lambda run: answers.get(run.id))
        assert replayed == direct

    def test_stops_at_what_is_missing(self):
        answers, runs = self.answers()
        del answers[runs[2].id]
        replayed = replay(self.study(), "m-sgd", lambda run: answers.get(run.id))
        assert not replayed.complete
        assert replayed.missing == 1
        assert replayed.final == []

    def test_final_runs_count_as_they_come(self):
        answers, runs = self.answers()
        del answers[runs[-1].id]
        replayed = replay(self.study(), "m-sgd", lambda run: answers.get(run.id))
        assert (replayed.missing, len(replayed.final), replayed.complete) == (1, 2, False)

    def test_a_run_in_error_is_missing(self):
        answers, runs = self.answers()
        answers[runs[-1].id].end["status"] = "error"
        assert replay(self.study(), "m-sgd", lambda run: answers.get(run.id)).missing == 1


def test_expected_runs():
    assert expected_runs(study_of("m-sgd", "adam", lrs={"adam": 0.1, "m-sgd": 0.1})) == 6
    assert expected_runs(study_of("m-sgd", protocol="paper")) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds=0: give a number from 1 to 999"),
        ({"selection_seeds": 1000}, "selection_seeds=1000"),
        ({"protocol": "fast"}, "choose tuned or paper"),
        ({"lrs": {"adam": 0.1}}, "'adam', which is not compared; compared are m-sgd"),
        ({"lrs": {"m-sgd": 0.0}}, "step size 0.0 for 'm-sgd'"),
        ({"lrs": {"m-sgd": math.inf}}, "step size inf"),
        ({"grids": {"m-sgd": ()}}, "grid () for 'm-sgd'"),
        ({"grids": {"m-sgd": (0.1, 0.1)}}, "each once"),
        ({"grids": {"m-sgd": (0.1, 1.0)}, "lrs": {"m-sgd": 0.1}}, "give one of both"),
        ({"smallest_effect": -1.0}, "smallest effect -1.0"),
        ({"base": replace(RUN, steps=0)}, "steps=0"),
        ({"base": replace(RUN, steps=10**20)}, "steps=1000"),
        ({"base": replace(RUN, eval_examples=10**20)}, "at least 1 and at most 2"),
        ({"base": replace(RUN, weight_decay=math.inf)}, "weight_decay=inf; it is a finite"),
        ({"seeds": 2.0}, "seeds=2.0"),
    ],
)
def test_a_study_that_cannot_be(changes, words):
    with pytest.raises(InvalidOption, match=words.replace("(", r"\(").replace(")", r"\)")):
        study_of("m-sgd", **changes)
