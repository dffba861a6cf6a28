"""What is sent, and that nothing is sent twice; in a tracker in memory."""

from dataclasses import replace
from datetime import datetime

import pytest
from report.studies import study

from svag.lab.records import load
from svag.trackers.sending import Sent, TrackerError, send
from trackers.made import RUN, VALUES, Memory, every_status, record, runs_of


def test_a_run_is_sent_with_its_settings_curves_figures_and_status(tmp_path):
    record(tmp_path)
    (run,) = runs_of(tmp_path)
    assert (run.id, run.problem, run.status, run.finished) == (RUN.id, "ramp", "done", True)
    assert run.name == "m-svag lr=0.3 seed=7"
    hyper = run.hyperparameters
    assert (hyper["method"], hyper["lr"], hyper["seed"]) == ("m-svag", 0.1 + 0.2, 7)
    assert (hyper["steps"], hyper["batch_size"], hyper["beta"]) == (20, 32, 0.9)
    assert "beta2" not in hyper
    assert [point.step for point in run.points] == [0, 10, 20]
    assert [point.seconds for point in run.points] == [0.0, 1.5, 3.0]
    assert [point.figures["train/loss"] for point in run.points] == list(VALUES)
    assert run.final == {
        "final/train/loss": 0.125, "final/test/loss": 0.75, "final/test/accuracy": 1 / 7,
    }  # fmt: skip
    started = datetime.fromisoformat(load(tmp_path)[0].run["started"]).timestamp()
    assert (run.started, run.seconds) == (started, 12.5)
    assert run.noted["torch"] == load(tmp_path)[0].run["torch"]


def test_a_final_run_says_so(tmp_path):
    analysis = study(tmp_path, searched=False, seeds=1)
    assert {(run.noted["role"], run.noted["study"]) for run in runs_of(tmp_path)} == {
        ("final", analysis.study.id)
    }


def test_what_is_not_finite_is_in_no_curve(tmp_path):
    record(tmp_path, status="diverged")
    (run,) = runs_of(tmp_path)
    assert (run.status, run.final, run.finished) == ("diverged", {}, True)


def test_a_run_without_an_end_has_the_time_of_its_last_evaluation(tmp_path):
    record(tmp_path, status=None)
    (run,) = runs_of(tmp_path)
    assert (run.status, run.seconds, run.finished) == ("interrupted", 3.0, False)


def test_everything_is_sent_once(tmp_path):
    every_status(tmp_path)
    tracker, seen = Memory(), []
    assert send(runs_of(tmp_path), tracker, seen.append) == Sent(new=4)
    assert {run.id for run in seen} == tracker.runs.keys()
    assert send(runs_of(tmp_path), tracker, seen.append) == Sent(unchanged=4)
    assert len(seen) == 4


def test_a_run_that_went_on_takes_the_place_of_what_was_sent(tmp_path):
    every_status(tmp_path)
    tracker = Memory()
    send(runs_of(tmp_path), tracker)
    record(tmp_path, replace(RUN, seed=4), "done")
    assert send(runs_of(tmp_path), tracker) == Sent(replaced=1, unchanged=3)
    assert tracker.runs[replace(RUN, seed=4).id].status == "done"


def test_a_tracker_that_cannot_replace_gets_runs_when_they_have_finished(tmp_path):
    every_status(tmp_path)
    tracker = Memory(replaces=False)
    assert send(runs_of(tmp_path), tracker) == Sent(new=2, held_back=2)
    assert {run.status for run in tracker.runs.values()} == {"done", "diverged"}
    record(tmp_path, replace(RUN, seed=3), "done")
    assert send(runs_of(tmp_path), tracker) == Sent(new=1, unchanged=2, held_back=1)


def test_what_was_sent_before_a_failure_is_not_sent_again(tmp_path):
    every_status(tmp_path)
    runs = runs_of(tmp_path)
    tracker = Memory(fails_at=runs[2].id)
    says = rf"memory did not take run {runs[2].id} .*the line is dead.*goes on from here"
    with pytest.raises(TrackerError, match=says):
        send(runs, tracker)
    assert list(tracker.runs) == [run.id for run in runs[:2]]
    tracker.fails_at = ""
    assert send(runs, tracker) == Sent(new=2, unchanged=2)


def test_the_digest_follows_every_part_of_a_run(tmp_path):
    record(tmp_path / "a")
    record(tmp_path / "b", shift=1e-15)
    record(tmp_path / "c", status=None)
    digests = {runs_of(tmp_path / name)[0].digest for name in "abc"}
    assert len(digests) == 3


def test_the_counts_read_as_a_sentence():
    assert str(Sent(new=3)) == "3 runs sent"
    assert str(Sent(1, 2, 3, 4)) == (
        "1 runs sent, 2 sent again, for they have changed, 3 there already, "
        "4 held back until they have finished"
    )
