"""The LaTeX table, the JSON, and the command that writes them."""

import csv
import json
import re

import pytest
from report.studies import LOSS, study

from svag.analysis.study import analyse
from svag.cli.reporting import as_data
from svag.entrants import entrant
from svag.export import folders, json_text
from svag.export.latex import _step_size, escaped, methods_table
from svag.lab.records import identity, load

SPECIAL = re.compile(r"(?<!\\)[#%_&~^$]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    study(place, seeds=3, diverging=["adam"])
    return place


def cells(table):
    """The cells of each row of a LaTeX table, its head first."""
    lines = [line.strip() for line in table.splitlines()]
    rows = [line.removesuffix(r"\\").strip() for line in lines if line.endswith(r"\\")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", row)] for row in rows]


def test_the_table_has_the_means_and_deviations_of_the_analysis(folder):
    analysis = analyse(folder)
    head, *rows = cells(methods_table(analysis))
    assert head[:4] == ["Method", "Step size", "$n$", "diverged"]
    assert head[4] == r"Test accuracy (\%)"
    assert {len(row) for row in rows} == {len(head)}
    by_name = {row[0]: row for row in rows}
    for result in analysis.methods.values():
        row = by_name[result.entrant.name]
        assert row[2:4] == [str(len(result.runs)), str(result.diverged)]
        final = result.final["test_accuracy"]
        if result.entrant.key == "adam":
            assert row[2:5] == ["0", "3", "--"]
            continue
        mean, sd = re.fullmatch(r"\$(.+) \\pm (.+)\$", row[4]).groups()
        assert float(mean) == pytest.approx(100 * final.mean, abs=0.005)
        assert float(sd) == pytest.approx(100 * final.sd, abs=0.005)


def test_no_run_diverged_and_one_seed_make_a_narrower_table(tmp_path):
    table = methods_table(study(tmp_path, searched=False, seeds=1))
    assert "diverged" not in table
    assert r"\pm" not in table
    assert len(cells(table)) == 5


def test_the_table_is_balanced_and_escaped_whatever_methods_are_called(tmp_path):
    methods = ("m-sgd", "m-svag", "m-ssd", "adam", "sign(m) * erf(1/sqrt(2 rho s/m^2))",
               "torch.optim.SGD(momentum=0.9, weight_decay=0.01)")  # fmt: skip
    keys = tuple(entrant(text).key for text in methods)
    analysis = study(tmp_path, keys, searched=False, seeds=2, problem="a_b-c", **LOSS)
    table = methods_table(analysis)
    assert table.count("{") - table.count(r"\{") == table.count("}") - table.count(r"\}")
    head, *rows = cells(table)
    assert len(rows) == len(methods)
    for name in (*(row[0] for row in rows), *head):
        assert not SPECIAL.search(re.sub(r"\$[^$]*\$", "", name))
    assert r"a\_b-c" in table
    assert r"weight\_decay" in table


@pytest.mark.parametrize("lr", [1e-5, 3e-4, 0.1, 30.0])
def test_step_sizes_are_written_as_powers_of_ten_where_python_does(lr):
    text = _step_size(lr).strip("$").replace(r" \times 10^{", "e").rstrip("}")
    assert float(text) == lr


def test_every_special_character_is_escaped():
    text = '\\ { } & % $ # _ ~ ^ < > | "'
    shown = escaped(text)
    assert not SPECIAL.search(shown)
    assert shown.split(" ") == [
        r"\textbackslash{}", r"\{", r"\}", r"\&", r"\%", r"\$", r"\#", r"\_",
        r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}",
        r"\textbar{}", r"\textquotedbl{}",
    ]  # fmt: skip


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_json_has_the_analysis_and_every_line_of_every_record(folder, svag):
    code, out, _ = svag("export", folder, "--format", "json")
    assert code == 0
    content = json.loads(out, parse_constant=refuse)
    runs = {run["run"]: run for run in content.pop("runs")}
    analysis = as_data(analyse(folder))
    assert content == json.loads(json_text.as_text(analysis))
    assert content["verdict"]
    records = {identity(record): record for record in load(folder)}
    read = folders.read(folder)
    assert runs.keys() == records.keys()
    for name, record in records.items():
        assert runs[name]["settings"] == record.run
        assert runs[name]["evaluations"] == record.evals
        assert runs[name]["end"] == record.end
        assert runs[name]["status"] == record.status
        assert runs[name]["role"] == read.role(name)


def test_numbers_that_are_not_finite_are_null():
    data = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (float("-inf"), 2)}}
    expected = {"a": None, "b": [1.0, None], "c": {"d": [None, 2]}}
    assert json.loads(json_text.as_text(data), parse_constant=refuse) == expected


def test_several_folders_make_one_json_and_a_table_each(folder, tmp_path, svag):
    other = tmp_path / "other"
    study(other, searched=False, seeds=2, problem="slope")
    code, out, err = svag("export", folder, other, "--format", "json")
    assert code == 0, err
    content = json.loads(out, parse_constant=refuse)
    assert [one["problem"] for one in content["problems"]] == ["ramp", "slope"]
    assert {run["folder"] for run in content["runs"]} == {str(folder), str(other)}
    code, out, _ = svag("export", folder, other, "--format", "latex")
    assert code == 0
    assert out.count(r"\begin{tabular}") == 2


def test_csv_goes_beside_the_records_or_where_it_is_told_to(folder, tmp_path, svag):
    assert svag("export", folder)[1].split() == [
        str(folder / "export.csv"), str(folder / "export-runs.csv"),
    ]  # fmt: skip
    out = tmp_path / "new" / "all.csv"
    code, printed, _ = svag("export", folder, "--out", out)
    assert code == 0
    assert printed.split() == [str(out), str(out.with_name("all-runs.csv"))]
    assert out.read_bytes() == (folder / "export.csv").read_bytes()
    with out.with_name("all-runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(load(folder))


def test_latex_and_json_go_to_a_file_too(folder, tmp_path, svag):
    for format in ("latex", "json"):
        shown = svag("export", folder, "--format", format)[1]
        code, printed, _ = svag("export", folder, "--format", format, "--out", tmp_path / "f")
        assert (code, printed.strip()) == (0, str(tmp_path / "f"))
        assert (tmp_path / "f").read_text() == shown


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("a.csv", b"folder,run"),
        ("a.parquet", b"PAR1"),
        ("a.tex", rb"\begin{table}"),
        ("A.JSON", b"{"),
    ],
)
def test_the_name_of_the_file_says_what_it_holds(folder, tmp_path, svag, name, begins):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    code, _, err = svag("export", folder, "--out", tmp_path / name)
    assert (code, err) == (0, "")
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent"], "there is no folder absent"),
        (["absent", "--format", "latex"], "no study"),
        (["absent", "--format", "json"], "no study"),
        (["FOLDER", "--format", "xlsx"], "xlsx"),
        (["FOLDER", "--out", "."], "is a folder"),
        (["FOLDER", "--out", "x.parquet", "--format", "csv"], "named as parquet, and --format"),
        (["FOLDER", "--out", "x.xlsx"], "let its name end with one of .csv"),
        (["FOLDER", "--format", "latex", "--study", "zzz"], "no one study is 'zzz'"),
        (["FOLDER", "--study", "abc"], "csv and parquet name the study"),
        (["FOLDER", "absent", "--study", "a", "--format", "latex"], "of one folder"),
        (["FOLDER", "FOLDER"], "give a file with --out"),
        (["FOLDER", "absent", "--out", "x.csv"], "there is no folder absent"),
        (["FOLDER", "absent", "--format", "json"], "there is no folder absent"),
        (["FOLDER", "--out", "/proc/x/y.csv"], "cannot write"),
        (["FOLDER", "--format", "latex", "--out", "/proc/x/y.tex"], "cannot write"),
        ([], "DIR"),
    ],
)
def test_bad_arguments_end_in_one_line(folder, tmp_path, monkeypatch, svag, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    code, _, err = svag("export", *[str(folder) if a == "FOLDER" else a for a in arguments])
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
