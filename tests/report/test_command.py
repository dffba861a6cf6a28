"""``svag report`` of several folders: what is skipped, what is refused, and what is printed."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from svag.cli import app
from svag.errors import SvagError

from .studies import study


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(found):
        folder.mkdir()
        study(folder, problem=f"p{number}", turned=bool(number), seeds=5)
    return found


def run(*words: object) -> tuple[int, str, str]:
    """Run ``svag report``; an error of svag's is its exit code 2 and its message."""
    done = CliRunner().invoke(app, ["report", *map(str, words)])
    if isinstance(done.exception, SvagError):
        return 2, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_the_page_goes_where_the_folders_are(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "empty").mkdir()
    code, out, err = run(*sorted(tmp_path.iterdir()))
    assert code == 0
    for name in ("report.html", "figure5.png", "figure5.svg"):
        assert (tmp_path / name).is_file()
    assert "skipped" in err
    assert "README.md: no records" in err
    assert "empty: no records" in err
    assert "2. Whether the sign helps depends on the problem." in out


def test_data_for_scripts(folders: list[Path], tmp_path: Path) -> None:
    code, out, _ = run(*folders, "--json", "--out", tmp_path / "page")
    assert code == 0
    data = json.loads(out)
    assert [one["problem"] for one in data["problems"]] == ["p0", "p1"]
    assert len(data["observations"]) == 4
    assert set(data["observations"][1]["problems"]) == {"p0", "p1"}
    assert set(data["effects_on_training_loss"]) == {"p0", "p1"}
    assert len(data["mean_ranks"]) == 4
    assert (tmp_path / "page" / "report.html").is_file()


def test_a_folder_that_is_named_twice_counts_once(folders: list[Path], tmp_path: Path) -> None:
    assert run(*folders, folders[0])[0] == 0
    assert run(folders[0], folders[0], "--out", tmp_path / "page")[0] == 0


def test_a_study_without_final_runs_is_skipped(folders: list[Path]) -> None:
    for path in (folders[1] / "records").glob("*.jsonl"):
        if '"seed": 0,' not in path.read_text().splitlines()[0]:
            path.unlink()
    code, out, err = run(*folders)
    assert code == 0
    assert "no final run yet, " in err
    assert "p1" not in out


def test_folders_apart_need_a_place(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    moved = folders[1].rename(tmp_path / "deeper" / "two")
    code, _, err = run(folders[0], moved)
    assert code == 2
    assert "say where their page goes with --out" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--study", "abc"), "--study abc applies to one folder only"),
        (("--target", "0.9"), "--target 0.9 applies to one folder only"),
        (("missing",), "there is no folder missing"),
    ],
)
def test_refused(
    folders: list[Path], words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[0].parent)
    code, _, err = run(*folders, *words)
    assert code == 2
    assert message in err


def test_folders_without_anything(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    code, _, err = run(tmp_path / "a", tmp_path / "b")
    assert code == 2
    assert err.startswith("none of the 2 folders has a study with final runs")


def test_two_studies_of_one_problem(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "three").mkdir()
    study(tmp_path / "three", problem="p0")
    code, _, err = run(*folders, tmp_path / "three")
    assert code == 2
    assert "two of the folders hold studies of 'p0', which would count twice" in err


def test_a_record_that_is_damaged_is_named(folders: list[Path]) -> None:
    path = next((folders[1] / "records").glob("*.jsonl"))
    path.write_text(path.read_text().replace('"step": 10', '"step": "x"'))
    code, _, err = run(*folders)
    assert code == 2
    assert path.name in err


def test_a_target_of_one_folder(folders: list[Path]) -> None:
    assert run(folders[0], "--target", "0.5")[0] == 0
    text = (folders[0] / "report.html").read_text()
    assert "Test accuracy ≥ 50 %" in text
    assert "The target in test accuracy was given" in text
    code, _, err = run(folders[0], "--target", "90")
    assert code == 2
    assert "percentages are fractions, 90 % is 0.9" in err


def test_a_place_that_cannot_be_written(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(*folders, "--out", tmp_path / "file")
    assert code == 2
    assert "choose another folder with --out" in err
    assert os.linesep not in err


def test_the_papers_problems_come_first_in_its_order(tmp_path: Path) -> None:
    names = ("a-problem", "cifar10-3c3d", "fmnist-2c2d")
    for name in names:
        (tmp_path / name).mkdir()
        study(tmp_path / name, problem=name)
    code, out, _ = run(*(tmp_path / name for name in names), "--json")
    assert code == 0
    assert [one["problem"] for one in json.loads(out)["problems"]] == [
        "fmnist-2c2d",
        "cifar10-3c3d",
        "a-problem",
    ]
