"""Tables of records: what they hold reads back as it was recorded."""

import csv
import json
import math
import random
import struct
import sys
from dataclasses import replace

import pytest
from report.studies import BASE, study

from svag.errors import InvalidOption, RecordError
from svag.export import files, folders, tables
from svag.lab.records import RecordWriter, load

AWKWARD = (0.1 + 0.2, 5e-324, 1.7e307, -0.0, 1 / 3, 123456789.123456789, 1e22, 2**53 + 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    study(place, seeds=2, diverging=["adam"])
    return place


def csv_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(table, path):
    files.write_csv(table, path)
    return csv_rows(path)


def drawn(count, seed=0):
    """Finite doubles of all sizes: random bits."""
    rng = random.Random(seed)
    while count:
        (value,) = struct.unpack("d", rng.randbytes(8))
        if math.isfinite(value) and abs(value) < 1e307:
            count -= 1
            yield value


def test_every_figure_of_every_record_is_a_row_with_its_exact_value(folder, tmp_path):
    rows = written(tables.evaluations([folders.read(folder)]), tmp_path / "e.csv")
    there = {
        (row["run"], row["kind"], int(row["step"]), f"{row['split']}_{row['figure']}"): row["value"]
        for row in rows
    }
    assert len(there) == len(rows)
    expected = {}
    for record in load(folder):
        for line in (*record.evals, record.end):
            for name, value in line.items():
                if name.startswith(("train_", "test_")):
                    key = (folders.identity(record), line["kind"], line["step"], name)
                    expected[key] = value
    assert there.keys() == expected.keys()
    assert len(expected) > 1000
    for key, value in expected.items():
        assert (value is None and there[key] == "") or float(there[key]) == value


def test_any_double_reads_back_to_the_bit(tmp_path):
    values = [*AWKWARD, *drawn(2000)]
    run = replace(BASE, metric="loss", metric_better="smaller", metric_unit="",
                  metric_low=None, metric_high=None, method="sgd", lr=0.1 + 0.2,
                  steps=len(values), eval_every=1)  # fmt: skip
    with RecordWriter(tmp_path, run) as recorder:
        for step, value in enumerate(values):
            recorder.eval(step, train_loss=value, test_loss=-value)
    table = tables.evaluations([folders.read(tmp_path)])
    read = written(table, tmp_path / "e.csv")
    back = [float(row["value"]) for row in read if row["split"] == "train"]
    assert struct.pack(f"{len(values)}d", *back) == struct.pack(f"{len(values)}d", *values)
    assert {float(row["lr"]) for row in read} == {0.1 + 0.2}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    files.write_parquet(table, tmp_path / "e.parquet")
    columns = parquet.read_table(str(tmp_path / "e.parquet")).to_pydict()
    kept = [v for v, split in zip(columns["value"], columns["split"], strict=True)
            if split == "train"]  # fmt: skip
    assert struct.pack(f"{len(values)}d", *kept) == struct.pack(f"{len(values)}d", *values)


def test_a_run_is_one_row_with_all_that_determines_it(folder, tmp_path):
    rows = {row["run"]: row for row in written(tables.runs([folders.read(folder)]), tmp_path / "r")}
    records = {folders.identity(record): record for record in load(folder)}
    assert rows.keys() == records.keys()
    for name, record in records.items():
        row = rows[name]
        assert row["status"] == record.status
        assert row["method"] == record.run["method"]
        assert (float(row["lr"]), int(row["seed"])) == (record.run["lr"], record.run["seed"])
        assert int(row["eval_examples"] or 0) == (record.run["eval_examples"] or 0)
        assert row["channels_last"] == str(record.run["channels_last"])
        final = record.end["test_accuracy"] if record.status == "done" else None
        assert row["test_accuracy"] == ("" if final is None else repr(final))
    assert {row["role"] for row in rows.values()} >= {"search", "selection", "final"}
    assert any(row["status"] == "diverged" for row in rows.values())


def test_parquet_has_the_same_cells_with_types(folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    for make in (tables.evaluations, tables.runs):
        table = make([folders.read(folder)])
        files.write_parquet(table, tmp_path / "t.parquet")
        back = parquet.read_table(str(tmp_path / "t.parquet"))
        assert back.column_names == list(table.types)
        assert [list(row.values()) for row in back.to_pylist()] == [list(r) for r in table.rows]
        types = {name: str(back.schema.field(name).type) for name in back.column_names}
        assert types["lr"] == "double"
        assert types["seed"] == "int64"
        assert types["method"] == "string"
        assert types.get("channels_last", "bool") == "bool"


def test_a_figure_that_was_not_finite_is_empty(tmp_path):
    with RecordWriter(tmp_path, BASE_RUN) as recorder:
        recorder.eval(0, train_loss=math.inf, test_loss=1.0, test_accuracy=0.5)
        recorder.end("diverged", step=3, train_loss=math.nan, test_loss=2.0)
    rows = written(tables.evaluations([folders.read(tmp_path)]), tmp_path / "e.csv")
    values = {(row["kind"], row["split"], row["figure"]): row["value"] for row in rows}
    assert values == {
        ("eval", "train", "loss"): "",
        ("eval", "test", "loss"): "1.0",
        ("eval", "test", "accuracy"): "0.5",
        ("end", "train", "loss"): "",
        ("end", "test", "loss"): "2.0",
    }


BASE_RUN = replace(BASE, method="sgd", lr=1e-3, seed=4)


def test_texts_with_commas_quotes_and_line_ends_come_back(tmp_path):
    message = 'ValueError: "a, b";\n next\r line; \N{SNOWMAN}'
    with RecordWriter(tmp_path, BASE_RUN) as recorder:
        recorder.end("error", message=message, traceback="long")
    (row,) = written(tables.runs([folders.read(tmp_path)]), tmp_path / "r.csv")
    assert row["message"] == message
    assert "traceback" not in row
    assert (row["status"], row["role"], row["study"]) == ("error", "", "")


def test_half_a_surrogate_pair_is_escaped(tmp_path):
    with RecordWriter(tmp_path, BASE_RUN) as recorder:
        recorder.end("error", message="\ud800 odd")
    table = tables.runs([folders.read(tmp_path)])
    (row,) = written(table, tmp_path / "r.csv")
    assert row["message"] == "\\ud800 odd"
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files.write_parquet(table, tmp_path / "r.parquet")


def test_whole_numbers_among_floats_make_no_mixed_column(tmp_path):
    for seed, value in ((1, 1), (2, 0.5)):
        with RecordWriter(tmp_path, replace(BASE_RUN, seed=seed)) as recorder:
            figures = {"train_loss": value, "test_loss": value, "test_accuracy": value}
            for step in range(0, BASE.steps + 1, BASE.eval_every):
                recorder.eval(step, **figures)
            recorder.end("done", step=BASE.steps, **figures)
    table = tables.runs([folders.read(tmp_path)])
    assert sorted(table.column("test_accuracy")) == [0.5, 1.0]
    assert {type(cell) for cell in table.column("test_accuracy")} == {float}
    assert {type(cell) for cell in table.column("step")} == {int}


def test_two_folders_are_told_apart_and_one_named_twice_counts_once(folder, tmp_path):
    other = tmp_path / "other"
    study(other, searched=False, seeds=1)
    both = folders.read_all([folder, other, folder / "." / "records" / ".."])
    table = tables.runs(both)
    assert len(table.rows) == len(load(folder)) + len(load(other))
    assert set(table.column("folder")) == {str(folder), str(other)}


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_records_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=rf"{name}.*svag compare"):
        folders.read(tmp_path / name)


def test_without_pyarrow_parquet_is_refused_in_a_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidOption, match=r"pip install 'svag\[export\]', or choose csv"):
        files.write_parquet(tables.runs([folders.read(folder)]), tmp_path / "r.parquet")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_and_leaves_the_old_file(folder, tmp_path):
    table = tables.runs([folders.read(folder)])
    blocked = tmp_path / "file"
    blocked.write_text("kept")
    with pytest.raises(RecordError, match=r"cannot write .*r\.csv: .*--out"):
        files.write_csv(table, blocked / "r.csv")
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(RecordError, match=r"cannot write"):
        files.write_csv(table, tmp_path / "r.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "r.csv"}
    assert blocked.read_text() == "kept"


def test_a_record_of_another_format_is_refused_with_its_line(folder, tmp_path):
    (tmp_path / "records").mkdir()
    name = next((folder / "records").glob("*.jsonl"))
    lines = name.read_text().splitlines()
    lines[1] = json.dumps({"kind": "eval", "step": -1})
    (tmp_path / "records" / name.name).write_text("\n".join(lines))
    with pytest.raises(RecordError, match="line 2"):
        folders.read(tmp_path)
