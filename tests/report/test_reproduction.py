"""``docs/make_reproduction.py``: what it says of finished studies, and of those on their way."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from svag.analysis.published import PAPER, PUBLISHED
from svag.errors import RecordError

from .studies import study

SCRIPT = Path(__file__).parents[2] / "docs" / "make_reproduction.py"


@pytest.fixture(scope="module")
def page() -> Any:
    return runpy.run_path(str(SCRIPT))["page"]


def results(folder: Path, **settings: dict[str, object]) -> Path:
    """A folder of studies, each in a folder of its problem's name."""
    for name, one in settings.items():
        problem = name.replace("_", "-")
        (folder / problem).mkdir()
        study(folder / problem, **{"problem": problem, **one})  # type: ignore[arg-type]
    (folder / "README.md").write_text("no results")
    return folder


def cells(text: str, title: str, first: str) -> list[str]:
    """The cells of a row of the table below a title."""
    section = text[text.index(f"## {title}") :].split("\n## ")[0]
    row = next(line for line in section.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_departures_come_first_and_the_paper_beside(page: Any, tmp_path: Path) -> None:
    text = page(results(tmp_path, ramp={}, fmnist_2c2d={}))
    table = text[text.index("## 2. ") :].splitlines()[4:9]
    assert table[0] == "|  | P1 fmnist-2c2d | ramp |"
    assert table[2].startswith("| departures | 100 steps of 6,000 (the paper's appendix), 3 seeds")
    said = PAPER["fmnist-2c2d"].said[1]
    assert said
    assert cells(text, "2. ", "the paper")[1:] == [f"**{said.outcome}**: {said.words}", "-"]
    assert "[" in cells(text, "2. ", "here")[1]
    assert "not a problem of the paper: 100 steps, 3 seeds" in cells(text, "1. ", "departures")[2]


def test_what_is_not_finished_is_counted_and_never_judged(page: Any, tmp_path: Path) -> None:
    folder = results(tmp_path, ramp={}, tolstoi_char_lstm={})
    records = sorted((folder / "tolstoi-char-lstm" / "records").glob("*.jsonl"))
    last = [path for path in records if '"seed": 1003' in path.read_text().splitlines()[0]]
    last[0].unlink()
    text = page(folder)
    state = cells(text, "Runs", "P4 tolstoi-char-lstm")[-1]
    assert state.startswith(f"not finished: {len(records) - 1} of about ")
    assert cells(text, "1. ", "here")[1] == f"not judged ({state})"
    assert cells(text, "Runs", "P2 cifar10-3c3d")[-1] == "no runs yet"
    for path in records:
        path.unlink(missing_ok=True)
    records[0].parent.joinpath(last[0].name).write_text("")
    with pytest.raises(RecordError, match="no records in"):
        page(folder)


def test_a_study_with_searches_alone(page: Any, tmp_path: Path) -> None:
    folder = results(tmp_path, ramp={}, cifar10_3c3d={})
    for path in (folder / "cifar10-3c3d" / "records").glob("*.jsonl"):
        if '"seed": 0,' not in path.read_text().splitlines()[0]:
            path.unlink()
    text = page(folder)
    assert cells(text, "Runs", "P2 cifar10-3c3d")[-1].startswith("not finished: ")
    assert cells(text, "3. ", "here")[1].startswith("not judged (not finished: ")


def test_too_short_for_the_paper(page: Any, tmp_path: Path) -> None:
    text = page(results(tmp_path, ramp={}, cifar100_wrn404={}))
    here = cells(text, "4. ", "here")[1]
    assert here.startswith("not judged (finished, not judged: its 100 steps are too few")


def test_no_results(page: Any, tmp_path: Path) -> None:
    text = page(tmp_path)
    assert text.count("no runs yet") == 4
    assert "## 1. " not in text


def test_published_accuracies_stand_beside_runs_of_their_length(page: Any, tmp_path: Path) -> None:
    folder = results(tmp_path, fmnist_2c2d={})
    assert "published" not in page(folder)
    from . import studies

    steps = PUBLISHED["fmnist-2c2d"].steps
    (folder / "longer").mkdir()
    before, studies.STEPS = studies.STEPS, steps
    try:
        (folder / "longer" / "p1").mkdir()
        study(folder / "longer" / "p1", problem="fmnist-2c2d", steps=steps)
    finally:
        studies.STEPS = before
    text = page(folder / "longer")
    assert cells(text, "Test accuracy on fmnist-2c2d", "departures")[1].startswith("6,000 steps, ")
    assert cells(text, "Test accuracy on fmnist-2c2d", "Adam")[2] == "91.80 %"


def test_notes_are_taken_in(page: Any, tmp_path: Path) -> None:
    folder = results(tmp_path, ramp={})
    assert "and why" not in page(folder)
    (folder / "ramp" / "note.md").write_text("Shorter than the paper's.\n")
    assert "**ramp.** Shorter than the paper's." in page(folder)


def test_two_folders_of_one_problem(page: Any, tmp_path: Path) -> None:
    folder = results(tmp_path, ramp={}, hill={"problem": "ramp"})
    with pytest.raises(RecordError, match="two of the folders hold studies of 'ramp'"):
        page(folder)
