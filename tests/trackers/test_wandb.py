"""Runs of Weights & Biases in offline mode, read back from the files that it would send."""

import json
import struct
import time
from dataclasses import replace

import pytest

from svag.errors import RecordError
from svag.lab.records import RecordWriter
from svag.trackers.sending import Sent, send
from trackers.made import RUN, VALUES, every_status, record, runs_of

pytest.importorskip("wandb", reason="wandb is not installed")

from wandb.proto import wandb_internal_pb2

from svag.trackers.wandb_runs import WeightsAndBiases


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """Nothing of the user's own settings, and nothing sent anywhere."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def tracker(folder, project="svag"):
    return WeightsAndBiases(folder, project, offline=True)


def files(folder):
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def records_in(path):
    """The records of a run's file: a header, then blocks of a LevelDB log."""
    content = path.read_bytes()
    assert content.startswith(b":W&B") or not content
    whole, at = b"", _HEADER
    while at + _FRAME <= len(content):
        if _BLOCK - at % _BLOCK < _FRAME:  # too little is left of the block for a frame
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + _FRAME])
        if at + _FRAME + length > len(content):
            return
        whole += content[at + _FRAME : at + _FRAME + length]
        at += _FRAME + length
        if kind in (_FULL, _LAST):
            found = wandb_internal_pb2.Record()
            found.ParseFromString(whole)
            whole = b""
            yield found


_HEADER, _FRAME, _BLOCK = 7, 7, 32768
_FULL, _LAST = 1, 4


def complete(path):
    """The records of a run's file, which a process of wandb's own writes to its end."""
    until = time.monotonic() + 30
    while not (found := list(records_in(path))) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < until, f"{path} has no end: {len(found)} records"
        time.sleep(0.05)
    return found


def read(path):
    """What a run's file holds: its settings, its history, its summary and its exit code."""
    run, history, summary, code = None, [], {}, None
    for found in complete(path):
        kind = found.WhichOneof("record_type")
        if kind == "run":
            run = found.run
        elif kind == "history":
            history.append({_name(i): json.loads(i.value_json) for i in found.history.item})
        elif kind == "summary":
            summary |= {_name(i): json.loads(i.value_json) for i in found.summary.update}
        elif kind == "exit":
            code = found.exit.exit_code
    return run, history, summary, code


def _name(item):
    return item.key or ".".join(item.nested_key)


def test_settings_curves_figures_and_status_come_back(tmp_path):
    record(tmp_path)
    assert send(runs_of(tmp_path), tracker(tmp_path)) == Sent(new=1)
    run, history, summary, code = read(*files(tmp_path))
    assert (run.run_id, run.project, run.run_group) == (RUN.id, "svag", "m-svag")
    assert run.display_name == "m-svag lr=0.3 seed=7"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["method"], config["lr"], config["seed"]) == ("m-svag", 0.1 + 0.2, 7)
    assert set(run.tags) == {"ramp", "done"}
    assert [line["_step"] for line in history] == [0, 10, 20]
    assert [line["train/loss"] for line in history] == list(VALUES)
    assert summary["final/test/accuracy"] == 1 / 7
    assert (summary["status"], code) == ("done", 0)


def test_runs_are_sent_once_and_when_they_have_finished(tmp_path):
    every_status(tmp_path)
    assert send(runs_of(tmp_path), tracker(tmp_path)) == Sent(new=2, held_back=2)
    assert send(runs_of(tmp_path), tracker(tmp_path)) == Sent(unchanged=2, held_back=2)
    codes = {read(path)[2]["status"]: read(path)[3] for path in files(tmp_path)}
    assert codes == {"done": 0, "diverged": 1}
    assert len(files(tmp_path)) == 2


def test_another_project_is_sent_the_runs_too(tmp_path):
    record(tmp_path)
    assert send(runs_of(tmp_path), tracker(tmp_path, "one")) == Sent(new=1)
    assert send(runs_of(tmp_path), tracker(tmp_path, "two")) == Sent(new=1)
    assert [read(path)[0].project for path in files(tmp_path)] == ["one", "two"]


def test_a_long_run_arrives_whole(tmp_path):
    with RecordWriter(tmp_path, replace(RUN, steps=700, eval_every=1)) as recorder:
        for step in range(701):
            recorder.eval(step, train_loss=step / 7, test_loss=0.5, test_accuracy=0.5)
        final = {"train_loss": 100.0, "test_loss": 0.5, "test_accuracy": 0.5}
        recorder.end("done", step=700, **final)
    send(runs_of(tmp_path), tracker(tmp_path))
    (path,) = files(tmp_path)
    _, history, _, _ = read(path)
    assert path.stat().st_size > 2 * _BLOCK
    assert [line["train/loss"] for line in history] == [step / 7 for step in range(701)]


@pytest.mark.parametrize("note", ["{", "[]", '{"svag": 3}'])
def test_a_spoilt_note_of_what_was_sent_is_refused(tmp_path, note):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "svag-sent.json").write_text(note)
    with pytest.raises(RecordError, match="move it away to send all of them again"):
        tracker(tmp_path)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="choose another folder with --where"):
        tracker(tmp_path / "file")
