"""Event files, read back by TensorBoard's own reader."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from svag.errors import RecordError
from svag.lab.records import load
from svag.trackers.sending import Sent, TrackerError, send
from trackers.made import RUN, VALUES, every_status, record, runs_of

pytest.importorskip("tensorboard", reason="tensorboard is not installed")

from tensorboard.backend.event_processing import event_accumulator, event_multiplexer
from tensorboard.plugins.hparams import api_pb2, metadata

from svag.trackers.tensorboard_files import TensorBoard


def read(folder):
    """All runs that TensorBoard finds in a folder, by name."""
    found = event_multiplexer.EventMultiplexer(
        size_guidance={event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
    )
    found.AddRunsFromDirectory(str(folder))
    found.Reload()
    return {name: found.GetAccumulator(name) for name in found.Runs()}


def plugin_data(accumulator, tag):
    content = accumulator.SummaryMetadata(tag).plugin_data.content
    parse = {
        metadata.SESSION_START_INFO_TAG: metadata.parse_session_start_info_plugin_data,
        metadata.SESSION_END_INFO_TAG: metadata.parse_session_end_info_plugin_data,
    }[tag]
    return parse(content)


def test_curves_final_figures_and_hyperparameters_come_back(tmp_path):
    record(tmp_path)
    (run,) = runs_of(tmp_path)
    assert send([run], TensorBoard(tmp_path / "tb")) == Sent(new=1)
    ((name, found),) = read(tmp_path / "tb").items()
    assert name == f"ramp/m-svag_lr=0.3_seed=7-{RUN.id}"
    events = found.Scalars("train/loss")
    assert [event.step for event in events] == [0, 10, 20]
    assert [event.value for event in events] == [float(np.float32(v)) for v in VALUES]
    assert [event.wall_time - run.started for event in events] == [0.0, 1.5, 3.0]
    (last,) = found.Scalars("final/test/accuracy")
    assert (last.step, last.value) == (RUN.steps, float(np.float32(1 / 7)))
    curves = {f"{split}/{name}" for split, name in
              (("train", "loss"), ("test", "loss"), ("test", "accuracy"))}  # fmt: skip
    finals = {f"final/{name}" for name in curves}
    assert set(found.Tags()["scalars"]) == curves | finals
    begun = plugin_data(found, metadata.SESSION_START_INFO_TAG)
    hyper = begun.hparams
    assert hyper["method"].string_value == "m-svag"
    assert (hyper["lr"].number_value, hyper["seed"].number_value) == (0.1 + 0.2, 7)
    assert hyper["status"].string_value == "done"
    assert begun.start_time_secs == run.started
    ended = plugin_data(found, metadata.SESSION_END_INFO_TAG)
    assert ended.status == api_pb2.STATUS_SUCCESS
    assert ended.end_time_secs == run.started + 12.5


def test_every_status_is_shown(tmp_path):
    every_status(tmp_path)
    send(runs_of(tmp_path), TensorBoard(tmp_path / "tb"))
    statuses = {}
    for found in read(tmp_path / "tb").values():
        begun = plugin_data(found, metadata.SESSION_START_INFO_TAG)
        ended = plugin_data(found, metadata.SESSION_END_INFO_TAG)
        statuses[begun.hparams["status"].string_value] = ended.status
    assert statuses == {
        "done": api_pb2.STATUS_SUCCESS,
        "diverged": api_pb2.STATUS_FAILURE,
        "error": api_pb2.STATUS_FAILURE,
        "interrupted": api_pb2.STATUS_UNKNOWN,
    }


def test_what_is_sent_again_doubles_nothing(tmp_path):
    every_status(tmp_path)
    for expected in (Sent(new=4), Sent(unchanged=4)):
        assert send(runs_of(tmp_path), TensorBoard(tmp_path / "tb")) == expected
    record(tmp_path, replace(RUN, seed=4), "done", shift=5.0)
    assert send(runs_of(tmp_path), TensorBoard(tmp_path / "tb")) == Sent(replaced=1, unchanged=3)
    found = read(tmp_path / "tb")
    assert len(found) == 4
    again = found[f"ramp/m-svag_lr=0.3_seed=4-{replace(RUN, seed=4).id}"]
    assert [event.value for event in again.Scalars("train/loss")] == [
        float(np.float32(5.0 + value)) for value in VALUES
    ]
    assert len(list((tmp_path / "tb").rglob("*tfevents*"))) == 4


@pytest.mark.parametrize(("last", "visible"), [("rename", 0), ("write_text", 1)])
def test_a_kill_leaves_no_half_of_a_run(tmp_path, monkeypatch, last, visible):
    record(tmp_path)
    runs, tracker = runs_of(tmp_path), TensorBoard(tmp_path / "tb")

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), last, killed)
        with pytest.raises(KeyboardInterrupt):
            send(runs, tracker)
    assert len(read(tmp_path / "tb")) == visible
    assert send(runs, tracker) == Sent(new=1)
    assert len(read(tmp_path / "tb")) == 1
    assert len(list((tmp_path / "tb").rglob("*tfevents*"))) == 1


@pytest.mark.parametrize("note", ["", "{", "[]", '{"digest": 3}', "\udcff"])
def test_a_spoilt_note_has_the_run_written_again(tmp_path, note):
    record(tmp_path)
    send(runs_of(tmp_path), TensorBoard(tmp_path / "tb"))
    (path,) = (tmp_path / "tb").rglob("svag.json")
    path.write_bytes(note.encode(errors="surrogateescape"))
    assert send(runs_of(tmp_path), TensorBoard(tmp_path / "tb")) == Sent(replaced=1)
    assert send(runs_of(tmp_path), TensorBoard(tmp_path / "tb")) == Sent(unchanged=1)


def test_events_that_were_thrown_away_are_written_again(tmp_path):
    record(tmp_path)
    send(runs_of(tmp_path), TensorBoard(tmp_path / "tb"))
    (path,) = (tmp_path / "tb").rglob("svag.json")
    path.unlink()
    assert send(runs_of(tmp_path), TensorBoard(tmp_path / "tb")) == Sent(new=1)
    assert len(read(tmp_path / "tb")) == 1


def test_methods_with_odd_names_get_folders_of_their_own(tmp_path):
    for method in ("a/b:c(x=1)", "a/b:c(x=2)", "../../up", "m" * 300):
        record(tmp_path, replace(RUN, method=method))
    send(runs_of(tmp_path), TensorBoard(tmp_path / "tb"))
    assert len(read(tmp_path / "tb")) == len(load(tmp_path)) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"records", "tb"}


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    record(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="choose another folder with --where"):
        send(runs_of(tmp_path), TensorBoard(tmp_path / "file"))


def test_without_tensorboard_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(TrackerError, match=r"pip install 'svag\[trackers\]'"):
        TensorBoard(tmp_path)
