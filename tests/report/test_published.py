"""Published figures stand beside ours where, and only where, the runs are comparable."""

from dataclasses import replace
from pathlib import Path

from svag.analysis.published import PUBLISHED
from svag.anatomy import METHODS
from svag.report import write
from svag.report.numbers import number

from .studies import study


def test_they_stand_beside_runs_of_the_same_length(tmp_path: Path) -> None:
    analysis = study(tmp_path, problem="fmnist-2c2d")
    longer = replace(analysis.study, base=replace(analysis.study.base, steps=6000))
    comparable = replace(analysis, study=longer)
    text = write(comparable, tmp_path).read_text()
    known = PUBLISHED["fmnist-2c2d"]
    section = text[text.index("Beside the published figures") :]
    for key, accuracy in known.test_accuracy.items():
        row = section[section.index(f'<th scope="row">{METHODS[key].name}</th>') :]
        row = row[: row.index("</tr>")]
        assert f"{100 * accuracy:.1f}" in row
        assert number(100 * analysis.methods[key].final["test_accuracy"].mean, 2) in row
    assert "Published: Adam &gt; M-SSD &gt; M-SVAG &gt; M-SGD" in section


def test_they_do_not_stand_beside_others(tmp_path: Path) -> None:
    for problem in ("fmnist-2c2d", "ramp"):
        folder = tmp_path / problem
        folder.mkdir()
        text = write(study(folder, problem=problem), folder).read_text()
        assert "Beside the published figures" not in text
