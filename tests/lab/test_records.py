"""Records: identity by content, lines as the design has them, and files that were cut short."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from torch import nn

from lab.made import classification, points, run_of
from lab.synthetic import LOSS_RUN, RUN
from svag.errors import RecordError
from svag.lab import records
from svag.lab.folder_lock import claim
from svag.lab.records import RecordWriter, find, load, path_of, read
from svag.lab.run import Run
from svag.lab.train import train

OTHER = {
    "problem": "another",
    "version": "2",
    "data": "fedcba9876543210",
    "method": "m-svag",
    "anatomy": "m * 1/(1 + rho s/m^2)",
    "optimizer": "1f2e3d4c5b6a7988",
    "beta": 0.99,
    "beta2": 0.999,
    "lr": 0.3,
    "seed": 1,
    "steps": 21,
    "batch_size": 9,
    "weight_decay": 1e-4,
    "eval_every": 11,
    "eval_examples": 100,
    "select": "validation",
    "device": "cuda",
    "autocast": "bfloat16",
    "channels_last": True,
    "metric": "f1",
    "metric_better": "smaller",
}
DESCRIBED = {
    "metric_unit": "points",
    "metric_low": -1.0,
    "metric_high": 2.0,
}
ENVIRONMENT = ["svag", "torch", "numpy", "python", "machine", "commit"]
FIGURES = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
IDENTITIES = ("c376249a47af80a3", "f25de94a6cc8633a")
FINAL = {"train_loss": 1.0, "test_loss": 2.0, "test_accuracy": 0.5}


def strict(constant):
    raise AssertionError(f"{constant} is not JSON")


def lines_of(path):
    return [json.loads(text, parse_constant=strict) for text in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The file of a run as training leaves it."""
    folder = tmp_path_factory.mktemp("real")
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, steps=4)
    run = run_of(problem, data, select="test")
    train(problem, data, run, folder)
    return path_of(folder, run), run


def attempt(directory, run, status="done"):
    with RecordWriter(directory, run) as recorder:
        for step in range(0, run.steps + 1, run.eval_every):
            recorder.eval(step, **FINAL)
        recorder.end(status, step=run.steps, **FINAL, wall_time=0.1)


# --- identity


def test_changing_any_field_changes_the_identity():
    assert OTHER.keys() | DESCRIBED.keys() == {field.name for field in fields(Run)}
    changed = [replace(RUN, **{name: value}).id for name, value in OTHER.items()]
    assert len({RUN.id, *changed}) == 1 + len(OTHER)


def test_what_describes_the_metric_does_not_change_the_identity():
    assert all(replace(RUN, **{name: value}).id == RUN.id for name, value in DESCRIBED.items())


def test_the_order_of_fields_does_not_change_the_identity():
    assert Run(**dict(reversed(asdict(RUN).items()))).id == RUN.id


def test_equal_runs_have_equal_identities():
    whole = replace(RUN, lr=1)
    assert whole == replace(RUN, lr=1.0)
    assert whole.id == replace(RUN, lr=1.0).id


@pytest.mark.parametrize("name", ["weight_decay", "beta", "beta2"])
@pytest.mark.parametrize("zero", [0, -0.0])
def test_zero_is_one_number(name, zero):
    assert replace(RUN, **{name: zero}).id == replace(RUN, **{name: 0.0}).id


def test_identities_stay_as_they_are():
    """Whoever changes them has every run repeated that users have recorded."""
    kept = [replace(run, eval_every=10).id for run in (RUN, LOSS_RUN)]
    assert tuple(kept) == IDENTITIES


def test_the_identity_leaves_versions_out(real):
    path, run = real
    noted = lines_of(path)[0]
    assert Run(**{field.name: noted[field.name] for field in fields(Run)}).id == run.id == path.stem


# --- lines


def test_lines_of_a_real_run(real):
    path, run = real
    first, *evals, end = lines_of(path)
    assert list(first) == ["kind", *asdict(run), *ENVIRONMENT, "started", "source", "threads"]
    assert {name: first[name] for name in asdict(run)} == asdict(run)
    assert [list(line) for line in evals] == [["kind", "step", *FIGURES, "wall_time"]] * 5
    assert [line["step"] for line in evals] == [0, 1, 2, 3, 4]
    assert list(end) == ["kind", "status", "step", *FIGURES, "wall_time"]
    assert [line["kind"] for line in (first, *evals, end)] == ["run", *["eval"] * 5, "end"]
    assert end["status"] == "done"
    assert {name: end[name] for name in ("step", *FIGURES)} == {
        name: evals[-1][name] for name in ("step", *FIGURES)
    }
    assert end["wall_time"] >= 0
    for line in (first, *evals, end):
        assert not any(isinstance(value, dict | list) for value in line.values())
    assert path.read_bytes().endswith(b"\n")


def test_read_gives_back_what_was_written(real):
    path, run = real
    first, *evals, end = lines_of(path)
    record = read(path)
    assert (record.run, record.evals, record.end) == (first, evals, end)
    assert (record.status, record.finished) == ("done", True)
    assert record.merit == end["test_accuracy"]
    assert find(path.parents[1], run) == record
    assert load(path.parents[1]) == [record]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path, value):
    with RecordWriter(tmp_path, RUN) as recorder:
        recorder.eval(0, train_loss=value, test_loss=1.0, test_accuracy=0.5)
        recorder.end("diverged", step=0, train_loss=value)
    assert find(tmp_path, RUN).evals[0]["train_loss"] is None
    _, line, end = lines_of(path_of(tmp_path, RUN))
    assert line == {
        "kind": "eval", "step": 0, "train_loss": None, "test_loss": 1.0, "test_accuracy": 0.5
    }  # fmt: skip
    assert end["train_loss"] is None


@pytest.mark.parametrize(
    ("status", "finished"),
    [("done", True), ("diverged", True), ("interrupted", False), ("error", False)],
)
def test_statuses(tmp_path, status, finished):
    attempt(tmp_path, RUN, status)
    record = find(tmp_path, RUN)
    assert (record.status, record.finished) == (status, finished)
    assert record.merit == (0.5 if status == "done" else -math.inf)


def test_a_message_of_several_lines_stays_on_one(tmp_path):
    message = "first\nsecond\r\u2028third \x0c \u00e9 [/tag] {}"
    with RecordWriter(tmp_path, RUN) as recorder:
        recorder.end("error", message=message)
    assert find(tmp_path, RUN).end["message"] == message
    assert find(tmp_path, RUN).merit == -math.inf
    assert path_of(tmp_path, RUN).read_bytes().count(b"\n") == 2


# --- attempts


def test_a_run_without_end_is_interrupted(tmp_path):
    assert find(tmp_path, RUN) is None
    with RecordWriter(tmp_path, RUN) as recorder:
        recorder.eval(0, train_loss=1.0, test_loss=1.0, test_accuracy=0.1)
    record = find(tmp_path, RUN)
    assert (record.status, record.finished, record.merit) == ("interrupted", False, -math.inf)
    assert len(record.evals) == 1


def test_a_second_attempt_appends_and_the_last_counts(real, tmp_path):
    path, run = real
    copy = path_of(tmp_path, run)
    copy.parent.mkdir()
    shutil.copy(path, copy)
    for status in ("error", "done", "interrupted"):
        before = copy.read_bytes()
        attempt(tmp_path, run, status)
        assert copy.read_bytes().startswith(before)
        record = read(copy)
        assert record.status == status
        assert [line["step"] for line in record.evals] == list(range(run.steps + 1))


# --- files cut short


def test_a_file_cut_at_any_byte_is_interrupted_and_can_be_continued(real, tmp_path):
    path, run = real
    whole = path.read_bytes()
    ends = [n for n, byte in enumerate(whole) if byte == ord("\n")]
    cut_path = path_of(tmp_path, run)
    cut_path.parent.mkdir()
    cut_path.write_bytes(whole)
    for cut in reversed(range(len(whole))):
        os.truncate(cut_path, cut)
        lines = sum(end <= cut for end in ends)  # a line is whole without its line break too
        record = read(cut_path)
        if lines == 0:
            assert record is None, cut
        else:
            assert record.status == ("done" if lines == len(ends) else "interrupted"), cut
            assert len(record.evals) == min(lines - 1, len(ends) - 2), cut
        attempt(tmp_path, run)
        assert cut_path.read_bytes().startswith(whole[:cut]), cut
        record = read(cut_path)
        assert (record.status, len(record.evals)) == ("done", run.steps + 1), cut


def test_training_again_after_a_cut_gives_the_same_record(real, tmp_path):
    path, run = real
    whole = path.read_bytes()
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, steps=4)
    cut_path = path_of(tmp_path, run)
    cut_path.parent.mkdir()
    for cut in range(0, len(whole), 97):
        cut_path.write_bytes(whole[:cut])
        train(problem, data, run, tmp_path)
        again, before = read(cut_path), read(path)
        assert again.findings == before.findings


def test_a_file_cut_twice(real, tmp_path):
    """A second attempt can be cut short as well, in its first line too."""
    path, run = real
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    cut_path = path_of(tmp_path, run)
    cut_path.parent.mkdir()
    for earlier in (first // 2, first, first + 10, len(whole) - 20):
        torn = whole[:earlier] + b"\n" * (earlier != first)
        cut_path.write_bytes(torn + whole)
        for cut in reversed(range(len(whole))):
            os.truncate(cut_path, len(torn) + cut)
            record = read(cut_path)
            assert record is None or record.status in ("interrupted", "done"), (earlier, cut)
            attempt(tmp_path, run)
            assert read(cut_path).status == "done", (earlier, cut)


def test_a_tail_of_zero_bytes_is_torn(real, tmp_path):
    """File systems leave them after a power failure."""
    path, run = real
    cut_path = path_of(tmp_path, run)
    cut_path.parent.mkdir()
    whole = path.read_bytes()
    cut_path.write_bytes(whole[: len(whole) // 2] + b"\0" * 64)
    assert read(cut_path).status == "interrupted"
    attempt(tmp_path, run)
    assert read(cut_path).status == "done"


def test_loading_a_folder_skips_files_without_a_whole_line(real, tmp_path):
    path, run = real
    attempt(tmp_path, RUN)
    path_of(tmp_path, run).write_bytes(path.read_bytes()[:40])
    path_of(tmp_path, replace(RUN, seed=9)).touch()
    assert [record.run["problem"] for record in load(tmp_path)] == [RUN.problem]


@pytest.mark.parametrize(
    "garbage",
    [b"no JSON", b"[1]", b"42", b"{}", b'{"kind": "other"}', b"\xff\xfe", b"", b'{"kind": "ev'],
)
@pytest.mark.parametrize("number", [2, 4])
def test_garbage_inside_a_record_is_an_error_that_names_it(real, tmp_path, garbage, number):
    path, run = real
    lines = path.read_bytes().splitlines()
    lines[number - 1] = garbage
    spoilt = path_of(tmp_path, run)
    spoilt.parent.mkdir()
    spoilt.write_bytes(b"\n".join(lines) + b"\n")
    for reading in (lambda: read(spoilt), lambda: find(tmp_path, run), lambda: load(tmp_path)):
        with pytest.raises(RecordError) as caught:
            reading()
        assert str(spoilt) in str(caught.value)
        assert re.search(rf"line {number}\b", str(caught.value))
        assert "move it away" in str(caught.value)
        assert "\n" not in str(caught.value)


# --- folders


def test_no_records(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RecordError, match=r"no records in .*svag compare"):
            load(folder)


def test_a_folder_below_a_file_can_be_neither_read_nor_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for below in (file, file / "sub"):
        for act in (
            lambda folder: claim(folder).__enter__(),
            lambda folder: RecordWriter(folder, RUN),
        ):
            with pytest.raises(RecordError, match=r"^cannot write .*--out$") as caught:
                act(below)
            assert str(below / "records") in str(caught.value)
        with pytest.raises(RecordError, match="cannot read"):
            read(path_of(below, RUN))
        with pytest.raises(RecordError, match="no records"):
            load(below)
        assert find(below, RUN) is None


def test_a_folder_in_the_place_of_a_file(tmp_path):
    path_of(tmp_path, RUN).mkdir(parents=True)
    for act in (
        lambda: find(tmp_path, RUN),
        lambda: load(tmp_path),
        lambda: attempt(tmp_path, RUN),
    ):
        with pytest.raises(RecordError, match=RUN.id):
            act()


def test_a_claimed_folder_is_there_and_holds_no_record(tmp_path):
    with claim(tmp_path / "a" / "b"), pytest.raises(RecordError, match="no records"):
        load(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "records").is_dir()


def test_a_folder_is_claimed_once_at_a_time(tmp_path):
    with claim(tmp_path):
        with claim(tmp_path / "another"):
            pass
        with pytest.raises(RecordError, match=r"another process is recording in .*--out"):
            claim(tmp_path).__enter__()
        attempt(tmp_path, RUN)
        assert len(load(tmp_path)) == 1
    with pytest.raises(ZeroDivisionError), claim(tmp_path):
        raise ZeroDivisionError
    with claim(tmp_path):
        pass


def test_a_full_disk_is_a_record_error(tmp_path):
    """A limit on file sizes stands in for the disk: the same call fails, as it does there."""
    code = """
import resource, sys
from pathlib import Path
from svag.errors import RecordError
from svag.lab.records import RecordWriter
from svag.lab.run import Run
run = Run(problem="", version="", data="", method="m-sgd", anatomy="", beta=None, beta2=None,
          lr=0.1, seed=0, steps=1, batch_size=1, eval_every=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with RecordWriter(Path(sys.argv[1]), run) as recorder:
        for step in range(100):
            recorder.eval(step, train_loss=1.0, test_loss=1.0, test_accuracy=0.5)
except RecordError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot write ")


def test_folders_merge_by_copying(tmp_path):
    ours, theirs, merged = (tmp_path / name for name in ("ours", "theirs", "merged"))
    runs = [replace(RUN, seed=seed) for seed in range(6)]
    for run in runs[:4]:
        attempt(ours, run)
    for run in runs[3:]:
        attempt(theirs, run)
    for folder in (ours, theirs):
        shutil.copytree(folder, merged, dirs_exist_ok=True)
    assert sorted(record.run["seed"] for record in load(merged)) == list(range(6))
    assert all(find(merged, run).finished for run in runs)


def test_more_can_be_noted_without_a_change_of_identity(tmp_path):
    with RecordWriter(tmp_path, RUN, source="there.py:task", threads=3, hours=0.5):
        pass
    noted = find(tmp_path, RUN).run
    assert [noted[name] for name in ("source", "threads", "hours")] == ["there.py:task", 3, 0.5]


def test_a_run_line_that_lacks_a_field_is_an_error(real, tmp_path):
    path, run = real
    first, *others = path.read_bytes().splitlines(keepends=True)
    incomplete = path_of(tmp_path, run)
    incomplete.parent.mkdir()
    incomplete.write_bytes(first.replace(b'"lr"', b'"learning_rate"') + b"".join(others))
    with pytest.raises(RecordError, match="line 1: the field 'lr' is missing"):
        read(incomplete)


def test_environment_and_source_are_noted(tmp_path):
    with RecordWriter(tmp_path, RUN, source="there.py:task"):
        pass
    assert find(tmp_path, RUN).run["source"] == "there.py:task"
    noted = records.environment()
    assert list(noted) == ENVIRONMENT
    assert noted["python"] == sys.version.split()[0]


def test_each_attempt_notes_when_it_started(tmp_path):
    before = datetime.now(UTC).replace(microsecond=0)
    for _ in range(2):
        attempt(tmp_path, RUN)
    runs = [line for line in lines_of(path_of(tmp_path, RUN)) if line["kind"] == "run"]
    for line in runs:
        assert before <= datetime.fromisoformat(line["started"]) <= datetime.now(UTC)
    assert len(runs) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_device_without_room_is_a_record_error(tmp_path):
    path = path_of(tmp_path, RUN)
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with pytest.raises(RecordError, match=r"cannot write .*No space left"):
        attempt(tmp_path, RUN)
