"""The format of records: lines that no run writes are refused, with file, field and remedy."""

import codecs
import json
import math
import os
from dataclasses import asdict, replace

import pytest

from lab.synthetic import LOSS_RUN, RUN
from svag.errors import RecordError
from svag.lab.records import Record, RecordWriter, find, path_of, read

FINAL = {"train_loss": 1.0, "test_loss": 2.0, "test_accuracy": 0.5}
RUN_LINE = {"kind": "run", **asdict(RUN)}
EVAL_LINE = {"kind": "eval", "step": 0, **FINAL}
LAST_LINE = {"kind": "eval", "step": RUN.steps, **FINAL}
END_LINE = {"kind": "end", "status": "done", "step": RUN.steps, **FINAL, "wall_time": 1.0}
CORRELATION = {"kind": "agreement", "step": 0, "parameter": "weight", "correlation": 0.5}
WHOLE = (RUN_LINE, EVAL_LINE, LAST_LINE, END_LINE)


def filed(folder, *lines, name=None):
    """Write lines, as objects or as text, into the file of a run."""
    path = path_of(folder, RUN) if name is None else folder / "records" / name
    path.parent.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def refused(path, *said):
    """Reading is refused, in one line that names the file, what is wrong and the remedy."""
    with pytest.raises(RecordError) as caught:
        read(path)
    text = str(caught.value)
    for part in (str(path), "move it away to have its run repeated", *said):
        assert part in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 600


def test_a_whole_record_is_read(tmp_path):
    assert read(filed(tmp_path, *WHOLE)).merit == 0.5


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (1, {"lr": 0}, "lr=0; it is a number above 0"),
        (1, {"steps": True}, "steps=True; it is "),
        (1, {"beta": 1.0}, "beta=1.0; it is a number in [0, 1)"),
        (1, {"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        (1, {"method": ""}, "method=''"),
        (1, {"select": "train"}, "select='train'; it is one of test, validation"),
        (1, {"metric": "Top 1"}, "metric name 'Top 1'"),
        (1, {"metric_low": 2}, "bounds low=2"),
        (1, {"started": "today"}, "started='today'"),
        (1, {"threads": "two"}, "threads='two'"),
        (1, {"noted": ["a"]}, "noted=['a']"),
        (2, {"step": 1.0}, "step=1.0; it is a whole number"),
        (2, {"test_accuracy": 1.5}, "test_accuracy=1.5; accuracy is at least 0 at most 1"),
        (2, {"train_accuracy": "0.5"}, "train_accuracy='0.5'"),
        (2, {"test_f1": "0.5"}, "test_f1='0.5'"),
        (3, {"step": 0}, "step=0"),
        (3, {"step": 21}, "step=21"),
        (4, {"status": "finished"}, "status='finished'; it is one of done, diverged"),
        (4, {"step": 19}, "step=19"),
        (4, {"test_loss": None}, "test_loss=null"),
        (4, {"test_accuracy": 0.75}, "test_accuracy=0.75; the evaluation after the last step has"),
        (4, {"wall_time": -1}, "wall_time=-1"),
        (4, {"message": 3}, "message=3"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, number, change, said):
    lines = list(WHOLE)
    lines[number - 1] = {**lines[number - 1], **change}
    refused(filed(tmp_path, *lines), f"line {number}: ", said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 1}, "step=1"),
        ({"parameter": None}, "parameter=None"),
        ({"correlation": -1.1}, "correlation=-1.1; it is a number in [-1, 1]"),
    ],
)
def test_a_wrong_correlation_is_named(tmp_path, change, said):
    ends = (LAST_LINE, END_LINE)
    path = filed(tmp_path, RUN_LINE, EVAL_LINE, CORRELATION, *ends)
    assert read(path).agreements == [CORRELATION]
    filed(tmp_path, RUN_LINE, EVAL_LINE, {**CORRELATION, **change}, *ends)
    refused(path, "line 3: ", said)


def test_round_off_of_a_bound_is_no_fault(tmp_path):
    above = {name: 1 + 1e-9 if name == "test_accuracy" else value for name, value in FINAL.items()}
    last, end = ({**line, **above} for line in (LAST_LINE, END_LINE))
    path = filed(tmp_path, RUN_LINE, EVAL_LINE, last, end)
    assert read(path).merit == 1 + 1e-9


def test_selection_by_validation_demands_its_figures(tmp_path):
    run = replace(RUN, select="validation")
    held_out = {"validation_loss": 1.0, "validation_accuracy": 0.25}
    first = {"kind": "run", **asdict(run)}
    lines = [{**line, **held_out} for line in (EVAL_LINE, LAST_LINE, END_LINE)]
    assert read(filed(tmp_path, first, *lines, name=f"{run.id}.jsonl")).merit == 0.25
    del lines[2]["validation_accuracy"]
    path = filed(tmp_path, first, *lines, name=f"{run.id}.jsonl")
    refused(path, "line 4: the field 'validation_accuracy' is missing")


def test_a_metric_that_is_the_loss(tmp_path):
    figures = {"train_loss": 1.0, "test_loss": 2.0}
    with RecordWriter(tmp_path, LOSS_RUN) as recorder:
        recorder.eval(0, **figures)
        recorder.eval(LOSS_RUN.steps, **figures)
        recorder.end("done", step=LOSS_RUN.steps, **figures)
    record = find(tmp_path, LOSS_RUN)
    assert (record.merit, record.merit_at_start) == (-2.0, -2.0)
    path = path_of(tmp_path, LOSS_RUN)
    path.write_text(path.read_text().replace('"smaller"', '"larger"'))
    refused(path, "metric_better='larger'")


def test_a_merit_at_start_is_of_the_start(tmp_path):
    assert read(filed(tmp_path, *WHOLE)).merit_at_start == 0.5
    assert Record(RUN_LINE, [LAST_LINE], END_LINE).merit_at_start == -math.inf


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ((0, 2, 3, 4), "line 2: step=10; evaluations are of steps 0, 10, 20 and so on to 25"),
        ((0, 1, 3, 4), "line 3: step=20; evaluations are of steps 0, 10"),
        ((0, 1, 2, 3, 2), "line 5: step=10"),
        ((0, 1, 2, 3, 4, 4), "line 6: step=25"),
        ((0, 1, 2, 3, 5), "line 5: status='done'; the evaluation after the last step is missing"),
    ],
)
def test_an_evaluation_that_is_missing_or_comes_twice(tmp_path, left, said):
    """Figures over training are means over the runs at each step, so that none may be missing."""
    run = replace(RUN, steps=25, eval_every=10)
    evals = [{**EVAL_LINE, "step": step} for step in (0, 10, 20, 25)]
    lines = [{"kind": "run", **asdict(run)}, *evals, {**END_LINE, "step": 25}]
    name = f"{run.id}.jsonl"
    assert read(filed(tmp_path, *lines, name=name)).finished
    assert not read(filed(tmp_path, *lines[:3], name=name)).finished
    refused(filed(tmp_path, *(lines[index] for index in left), name=name), said)


@pytest.mark.parametrize("name", ["copy.jsonl", f"{LOSS_RUN.id}.jsonl"])
def test_a_file_of_another_name_is_of_no_run(tmp_path, name):
    refused(filed(tmp_path, *WHOLE, name=name), "line 1: ", RUN.id, name)


def test_two_files_put_together_are_none(tmp_path):
    other = {"kind": "run", **asdict(LOSS_RUN)}
    refused(filed(tmp_path, other, *WHOLE), "line 1: ", LOSS_RUN.id)


@pytest.mark.parametrize("line", [EVAL_LINE, LAST_LINE, END_LINE, CORRELATION])
def test_nothing_follows_the_end_of_an_attempt(tmp_path, line):
    refused(filed(tmp_path, *WHOLE, line), "line 5: ", "follows a line of kind 'end'")
    assert read(filed(tmp_path, *WHOLE, *WHOLE)).status == "done"


def test_a_field_that_stands_twice(tmp_path):
    text = json.dumps(END_LINE)
    twice = text.replace('"test_accuracy": 0.5', '"test_accuracy": 0.5, "test_accuracy": 0.5')
    path = filed(tmp_path, RUN_LINE, EVAL_LINE, LAST_LINE, twice)
    refused(path, "line 4: ", "'test_accuracy' stands there twice")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("name", ["train_loss", "extra"])
def test_what_is_no_json_is_refused(tmp_path, constant, name):
    line = json.dumps({**EVAL_LINE, name: 7}).replace(": 7", f": {constant}")
    path = filed(tmp_path, RUN_LINE, line, LAST_LINE, END_LINE)
    refused(path, "line 2: ", f"holds {constant}, which is no JSON")


@pytest.mark.parametrize("value", ["9" * 5000, "1e999", "[" * 100_000, "[" * 99 + "]" * 99, "{}"])
def test_a_value_beyond_all_bounds(tmp_path, value):
    line = json.dumps({**EVAL_LINE, "train_loss": 7}).replace(": 7", f": {value}")
    refused(filed(tmp_path, RUN_LINE, EVAL_LINE, line), "line 3: ")


@pytest.mark.parametrize("line", ["[1]", "42", "null", "true", '"text"', "[]"])
def test_a_last_line_that_is_whole_but_none_of_a_record(tmp_path, line):
    """It is not torn: what stands before a cut is never JSON."""
    refused(filed(tmp_path, RUN_LINE, EVAL_LINE, line), "line 3: ", "a line is a JSON object")


def test_a_long_text_is_kept_and_shortened_in_messages(tmp_path):
    long = "é" * 1_000_000
    error = {"kind": "end", "status": "error", "message": long}
    assert read(filed(tmp_path, RUN_LINE, EVAL_LINE, error)).end["message"] == long
    for name in ("status", "step", long, "kind"):
        refused(filed(tmp_path, RUN_LINE, EVAL_LINE, {**END_LINE, name: [long]}), "line 3: ")
    refused(filed(tmp_path, {**RUN_LINE, "metric": long}), "line 1: ")


def test_a_byte_order_mark_is_an_error(tmp_path):
    path = filed(tmp_path, *WHOLE)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    refused(path, "line 1: begins with a byte order mark")


def test_a_line_that_is_not_utf_8_counts_as_torn(tmp_path):
    path = filed(tmp_path, *WHOLE)
    path.write_bytes(path.read_bytes().replace(b"done", b"d\xf6ne"))
    assert read(path).status == "interrupted"
    path.write_bytes(path.read_bytes().replace(b'"step": 0', b'"st\xe9p": 0'))
    refused(path, "line 3: follows line 2, which is torn")


def test_line_breaks_of_windows(tmp_path):
    path = filed(tmp_path, *WHOLE)
    whole = read(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(path) == whole


def test_an_empty_file_holds_no_record(tmp_path):
    assert read(filed(tmp_path)) is None
    assert find(tmp_path, RUN) is None


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    path = path_of(tmp_path, RUN)
    path.parent.mkdir()
    os.mkfifo(path)
    refused(path, "it is no regular file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(path, "it is no regular file")
    path.unlink()
    path.mkdir()
    refused(path, "it is no regular file")
