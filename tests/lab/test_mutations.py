"""Records changed by hand or by a bug: each is read, or refused by an error that names the file.

Every field of every line of valid records is removed, mistyped, made extreme and renamed, and
every line dropped, doubled and swapped. Nothing else than a record or a ``RecordError`` comes out.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest

from lab import synthetic
from svag.errors import RecordError
from svag.lab.record_format import FINISHED, Status
from svag.lab.records import Record, find, load, path_of, read
from svag.lab.run import Run

Line = dict[str, object]

RUN, LOSS_RUN = (replace(run, eval_every=10) for run in (synthetic.RUN, synthetic.LOSS_RUN))

LITERALS = (
    *("null", "true", "false", '""', '"text"', '"0.5"', "[]", "[0.5]", "{}", '{"a": {"b": 1}}'),
    *("-1", "0", "1", "0.5", "1.5", "-0.0", "1e-320", "1e308", "-1e308", "1e999", "1" + "0" * 30),
    *("NaN", "Infinity", "-Infinity", "-" + "9" * 400, "9" * 5000, "[" * 2000 + "]" * 2000),
    *('"' + "long" * 5000 + '"', '"\\u0000\\u001b[31m\\n"', '"\\ud800"', '"\u2028"', '"\x07"'),
)
"""JSON, and what is none, in the place of any value."""

NOTED = {
    "svag": "1.0",
    "torch": "2.13.0",
    "commit": None,
    "started": "2026-01-31T12:00:00+00:00",
    "source": "task.py:task",
    "threads": 2,
}
HELD_OUT = {"validation_loss": 0.7, "validation_accuracy": 0.6}


def lines(
    run: Run, *, status: str | None = "done", agreement: bool = False, **more: object
) -> list[Line]:
    """The lines of an attempt with three evaluations."""
    metric = {} if run.metric == "loss" else {"train_accuracy": 0.9, "test_accuracy": 0.75}
    made: list[Line] = [{"kind": "run", **asdict(run), **NOTED}]
    for step in (0, 10, 20) if status in ("done", "diverged") else (0, 10):
        figures = {"train_loss": 1.0 - step / 50, "test_loss": 1.5, **metric}
        figures |= HELD_OUT if run.select == "validation" else {}
        made.append({"kind": "eval", "step": step, **figures})
        if agreement:
            correlation = None if step == 0 else 0.5
            fields = {"step": step, "parameter": "weight", "correlation": correlation}
            made.append({"kind": "agreement", **fields})
    if status is not None:
        finished = {"step": 20, **figures} if status == "done" else {}
        made.append({"kind": "end", "status": status, **finished, "wall_time": 1.5, **more})
    return made


VALIDATED = replace(RUN, select="validation")
RECORDS: dict[str, tuple[Run, list[Line]]] = {
    "done": (RUN, lines(RUN)),
    "diverged": (RUN, lines(RUN, status="diverged", step=17)),
    "interrupted": (RUN, lines(RUN, status="interrupted")),
    "killed": (RUN, lines(RUN, status=None)),
    "error": (RUN, lines(RUN, status="error", message="RuntimeError: why")),
    "validation": (VALIDATED, lines(VALIDATED)),
    "loss": (LOSS_RUN, lines(LOSS_RUN)),
    "agreement": (RUN, lines(RUN, agreement=True)),
    "two attempts": (RUN, lines(RUN, status="error", message="why") + lines(RUN)),
}


def replaced(line: Line, name: str, literal: str) -> str:
    """The line as text, with a literal in the place of a field's value."""
    return json.dumps({**line, name: "VALUE"}).replace('"VALUE"', literal)


def mutated_fields(made: list[Line]) -> Iterator[tuple[str, list[str]]]:
    """Every change of one field, and what it is."""
    texts = [json.dumps(line) for line in made]
    for number, line in enumerate(made):
        before, after = texts[:number], texts[number + 1 :]
        for name in line:
            others = {key: value for key, value in line.items() if key != name}
            changed = {
                "removed": json.dumps(others),
                "renamed": json.dumps({**others, f"{name}_": line[name]}),
                "in capitals": json.dumps({**others, name.upper(): line[name]}),
                "twice": f"{json.dumps(line)[:-1]}, {json.dumps(name)}: 0.25}}",
                **{literal[:20]: replaced(line, name, literal) for literal in LITERALS},
            }
            for what, text in changed.items():
                yield f"line {number + 1}, {name}: {what}", [*before, text, *after]


def mutated_lines(made: list[Line]) -> Iterator[tuple[str, list[str]]]:
    """Every line dropped, doubled, torn, and swapped with every other."""
    texts = [json.dumps(line) for line in made]
    for i, text in enumerate(texts):
        yield f"line {i + 1} dropped", texts[:i] + texts[i + 1 :]
        yield f"line {i + 1} doubled", [*texts[: i + 1], *texts[i:]]
        yield f"line {i + 1} torn", [*texts[:i], text[: len(text) // 2], *texts[i + 1 :]]
        for j in range(i):
            swapped = list(texts)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            yield f"lines {j + 1} and {i + 1} swapped", swapped


def outcome(path: Path, texts: list[str]) -> Record | RecordError | None:
    """Write a file and read it; any other exception passes."""
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    try:
        return read(path)
    except RecordError as error:
        return error


def check_downstream(record: Record, what: str) -> None:
    """What is accepted can be used: nothing raises, and every number is one."""
    assert record.status in get_args(Status), what
    assert record.finished == (record.status in FINISHED), what
    done = record.status == "done"
    assert math.isfinite(record.merit) if done else record.merit == -math.inf, what
    assert record.merit_at_start < math.inf, what
    for line in (*record.evals, *record.agreements, record.end or {}):
        for name, value in line.items():
            if name.startswith(("train_", "test_", "validation_", "correlation")):
                assert value is None or math.isfinite(value), (what, name)


@pytest.fixture(params=RECORDS)
def valid(request, tmp_path):
    """The file of a run, and the lines of a valid record of it."""
    run, made = RECORDS[request.param]
    path = path_of(tmp_path, run)
    path.parent.mkdir()
    return path, made


def test_the_records_are_valid(valid):
    path, made = valid
    texts = [json.dumps(line) for line in made]
    record = outcome(path, texts)
    last = made[max(n for n, line in enumerate(made) if line["kind"] == "run") :]
    by_kind = {
        kind: [line for line in last if line["kind"] == kind]
        for kind in ("run", "eval", "agreement", "end")
    }
    assert [record.run] == by_kind["run"]
    assert (record.evals, record.agreements) == (by_kind["eval"], by_kind["agreement"])
    assert record.end == (by_kind["end"] or [None])[0]
    check_downstream(record, "valid")


@pytest.mark.parametrize("mutations", [mutated_fields, mutated_lines])
def test_a_mutation_gives_a_record_or_an_error_with_the_file(valid, mutations):
    path, made = valid
    refused = accepted = 0
    for what, texts in mutations(made):
        result = outcome(path, texts)
        if isinstance(result, RecordError):
            refused += 1
            assert str(path) in str(result), what
            assert len(str(result).splitlines()) == 1, what
            assert str(result).isprintable(), what
            assert len(str(result)) < len(str(path)) + 700, what
        elif result is not None:
            accepted += 1
            check_downstream(result, what)
    assert refused > 0
    assert accepted > 0


def test_a_mutated_field_that_determines_the_run_is_refused(valid):
    """The file is named after them, so that no record can pass for one of another run."""
    path, made = valid
    texts = [json.dumps(line) for line in made]
    different = {
        **dict.fromkeys(("problem", "version", "data", "anatomy", "optimizer"), '"other"'),
        **dict.fromkeys(("method", "device", "autocast"), '"other"'),
        **dict.fromkeys(("beta", "beta2", "lr", "weight_decay"), "0.125"),
        **dict.fromkeys(("seed", "batch_size", "eval_every", "eval_examples"), "77"),
        "channels_last": "true",
        "steps": "20000",
        "metric": '"f1"',
        "select": '"validation"' if made[0]["select"] == "test" else '"test"',
    }
    described = {"metric_better", "metric_unit", "metric_low", "metric_high"}
    assert different.keys() | described == asdict(RUN).keys()
    last = max(n for n, line in enumerate(made) if line["kind"] == "run")
    for name, literal in different.items():
        for number in {0, last}:
            changed = [*texts]
            changed[number] = replaced(made[number], name, literal)
            assert isinstance(outcome(path, changed), RecordError), name


def test_a_final_figure_cannot_be_changed_alone(valid):
    path, made = valid
    if made[-1].get("status") != "done":
        pytest.skip("a run without final figures")
    texts = [json.dumps(line) for line in made]
    for name in made[-1]:
        if name.startswith(("train_", "test_", "validation_")):
            changed = outcome(path, [*texts[:-1], replaced(made[-1], name, "0.625")])
            assert isinstance(changed, RecordError), name


def test_a_folder_with_one_wrong_record_is_refused(tmp_path):
    """It is not left out without a word."""
    for run in (RUN, LOSS_RUN):
        path = path_of(tmp_path, run)
        path.parent.mkdir(exist_ok=True)
        outcome(path, [json.dumps(line) for line in lines(run)])
    assert len(load(tmp_path)) == 2
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    for reading in (lambda: load(tmp_path), lambda: find(tmp_path, LOSS_RUN)):
        with pytest.raises(RecordError, match=LOSS_RUN.id):
            reading()
