"""The report on several problems, made from real analyses of written records."""

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from svag.analysis.forest import on_the_loss, on_the_metric
from svag.analysis.overview import overview
from svag.analysis.published import PAPER
from svag.analysis.several_problems import Several, how_far, together, why_not_judged
from svag.analysis.study import Analysis, analyse
from svag.analysis.wording import listed
from svag.anatomy import METHODS, PAPER_METHODS
from svag.errors import RecordError
from svag.lab.protocol import expected_runs
from svag.lab.records import load
from svag.report import overview_tables, write_several
from svag.report.effect_charts import side_by_side

from .pages import Page
from .studies import LOSS, study


def several(folder: Path, *settings: dict[str, object]) -> tuple[Several, list[Path]]:
    """Studies of problems named p0, p1, ... unless they have a name, in folders of their own."""
    folders = [folder / f"{number}" for number in range(len(settings))]
    analyses = []
    for number, (place, one) in enumerate(zip(folders, settings, strict=True)):
        place.mkdir()
        analyses.append(study(place, **{"problem": f"p{number}", **one}))  # type: ignore[arg-type]
    return together(analyses), folders


def report(folder: Path, *settings: dict[str, object]) -> tuple[Several, Page, str]:
    found, folders = several(folder, *settings)
    text = write_several(found, folder / "out", folders).read_text(encoding="utf-8")
    return found, Page(text), text


TWO: tuple[dict[str, object], ...] = ({}, {"turned": True})


def test_the_page_has_every_problem_and_every_record(tmp_path: Path) -> None:
    found, page, text = report(tmp_path, *TWO, {"problem": "fmnist-2c2d", **LOSS})
    for analysis in found.analyses:
        assert analysis.study.base.problem in page.text
    for sentence in overview(found):
        assert sentence.split(" (")[0] in page.text
    for check in found.checks:
        assert check.claim in page.text
        assert check.because in page.text
    assert len(page.ids) == len(set(page.ids))
    linked = {(tmp_path / "out" / link).resolve() for link in page.files}
    assert linked == {path.resolve() for path in tmp_path.glob("*/records/*.jsonl")}
    charts = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    assert charts
    assert sorted(json.loads(charts[1])) == sorted(page.charts)
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text.split()
    assert all("scope" in header for header in page.headers)


def test_what_the_paper_says_stands_beside(tmp_path: Path) -> None:
    _, page, _ = report(tmp_path, {"problem": "fmnist-2c2d"}, {})
    assert "fmnist-2c2d (P1)" in page.text
    assert "helps: sign-based methods clearly outperform the others in training loss" in page.text
    assert "100 steps of 6,000 (the paper's appendix), 3 seeds where the paper has 10" in page.text
    (tmp_path / "others").mkdir()
    _, page, _ = report(tmp_path / "others", {}, {"turned": True})
    assert "In the paper" not in page.text


def test_opposite_effects_confirm_the_second_observation(tmp_path: Path) -> None:
    found, _ = several(tmp_path, {"seeds": 8}, {"seeds": 8, "turned": True})
    readings = found.checks[1].readings
    assert [readings[name].outcome for name in ("p0", "p1")] == ["helps", "hurts"]
    assert found.checks[1].outcome == "confirmed"
    numbers = [str(n) for n, c in enumerate(found.checks, 1) if c.outcome == "confirmed"]
    assert "2" in numbers
    said = "is confirmed" if len(numbers) == 1 else "are confirmed"
    assert f"{listed(numbers)} {said}" in overview(found)[2]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"methods": ("m-sgd", "adam")}, "no method stands in one of the four cells"),
        ({"one_lost": ("adam",)}, "final runs diverged"),
        ({"seeds": 1}, "a method has one seed only"),
        (
            {"problem": "cifar100-wrn404"},
            "its 100 steps are too few for the paper's 78,200",
        ),
    ],
)
def test_what_is_not_judged(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    found, page, _ = report(tmp_path, {}, settings)
    (problem,) = found.not_judged
    assert found.not_judged == {problem: reason}
    assert list(found.families) == ["p0"]
    assert f"Without a part in the conclusions: {problem} ({reason})." in page.text
    assert f"not judged {reason[0].upper()}{reason[1:]}." in page.text


def test_a_study_that_is_not_finished_is_not_judged(tmp_path: Path) -> None:
    analysis = study(tmp_path)
    last = max((r for r in load(tmp_path) if r.run["method"] == "adam"), key=_seed)
    path = next(p for p in (tmp_path / "records").glob("*.jsonl") if _is_of(p, last.run))
    path.unlink()
    again = analyse(tmp_path)
    assert why_not_judged(again) == "runs have not finished"
    done, about = how_far(again.study, load(tmp_path))
    assert done == len(load(tmp_path))
    assert about == max(done, expected_runs(again.study))
    assert why_not_judged(analysis) == ""


def _seed(record: object) -> int:
    return int(record.run["seed"])  # type: ignore[attr-defined]


def _is_of(path: Path, run: object) -> bool:
    line = json.loads(path.read_text().splitlines()[0])
    return all(line[name] == run[name] for name in ("method", "seed", "lr"))  # type: ignore[index]


def test_nothing_is_judged_yet(tmp_path: Path) -> None:
    found, page, _ = report(tmp_path, {"seeds": 1}, {"seeds": 1})
    assert "Nothing is decided yet on any of these problems." in page.text
    assert {check.outcome for check in found.checks} == {"not decided"}
    assert found.ranks is None


def test_two_studies_of_one_problem_would_count_twice(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="two of the folders hold studies of 'same'"):
        several(tmp_path, {"problem": "same"}, {"problem": "same"})


def test_a_mean_is_of_one_metric(tmp_path: Path) -> None:
    found, _ = several(tmp_path, {}, {"turned": True}, dict(LOSS))
    accuracy, loss = on_the_metric(found.analyses)
    assert list(accuracy.effects) == ["p0", "p1"]
    estimates = [by["sign"].estimate for by in accuracy.effects.values()]
    assert accuracy.means["sign"] == pytest.approx(np.mean(estimates))
    assert loss.means == {}
    assert found.on_the_loss is not None
    assert found.on_the_loss.means == {}


def test_an_improvement_is_to_the_right(tmp_path: Path) -> None:
    """A smaller loss is better, so that effects on it are turned."""
    found, _ = several(tmp_path, dict(LOSS), {})
    loss = found.on_the_metric[0].effects["p0"]["sign"]
    claims = found.analyses[0].claims
    assert claims is not None
    assert loss.estimate == -claims.effects["sign"].estimate
    chart = side_by_side(found.on_the_metric[0])
    low, high = chart["layout"]["xaxis"]["range"]
    assert all(low < x < high for trace in chart["data"] for x in trace["x"])


def test_ranks_and_what_is_known_of_them(tmp_path: Path) -> None:
    found, page, _ = report(tmp_path, *TWO)
    assert found.ranks is not None
    for problem, analysis in zip(("p0", "p1"), found.analyses, strict=True):
        means = {key: r.final["test_accuracy"].mean for key, r in analysis.methods.items()}
        best = max(means, key=lambda key: means[key])
        rank = found.ranks.by_method[best][problem]
        assert rank.rank == 1
        for one in (by[problem] for by in found.ranks.by_method.values()):
            assert 1 <= one.best <= one.rank <= one.worst <= 4
    assert sum(found.ranks.means.values()) == pytest.approx(10)
    assert "Ranks ignore how large differences are" in page.text


def test_tiles_hold_the_four_cells(tmp_path: Path) -> None:
    found, _ = several(tmp_path, {}, {"methods": ("m-sgd", "adam")})
    full, partial = overview_tables.tiles(found)
    assert [cell.name for cell in full.cells.values()] == ["M-SGD", "M-SVAG", "M-SSD", "Adam"]
    assert {0.0, 1.0} <= {cell.tint for cell in full.cells.values()}
    assert partial.cells == {}
    assert partial.note == "Not judged: no method stands in one of the four cells."


@pytest.mark.parametrize("many", range(2, 8))
def test_figure_5_has_a_column_a_problem(tmp_path: Path, many: int) -> None:
    one = study(tmp_path, tuple(METHODS) if many == 3 else PAPER_METHODS)
    analyses = [_named(one, f"p{number}") for number in range(many)]
    write_several(together(analyses), tmp_path, [tmp_path] * many)
    root = ElementTree.parse(tmp_path / "figure5.svg").getroot()
    axes = [g for g in root.iter() if (g.get("id") or "").startswith("axes_")]
    assert len(axes) == 2 * many
    with Image.open(tmp_path / "figure5.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] == round(200 * (0.62 + 3.3 * min(many, 6)))
    assert (pixels[:, -20:] > 250).all()  # nothing is cut at the right edge
    assert (pixels[-8:] > 250).all()


def _named(analysis: Analysis, problem: str) -> Analysis:
    base = replace(analysis.study.base, problem=problem)
    return replace(analysis, study=replace(analysis.study, base=base))


def test_same_analyses_same_bytes(tmp_path: Path) -> None:
    found, folders = several(tmp_path, *TWO)
    out, files = tmp_path / "out", ("figure5.png", "figure5.svg", "report.html")
    write_several(found, out, folders)
    first = [(out / name).read_bytes() for name in files]
    write_several(found, out, folders)
    assert [(out / name).read_bytes() for name in files] == first


def test_what_the_paper_says_is_of_its_four_problems() -> None:
    assert [one.name for one in PAPER.values()] == ["P1", "P2", "P3", "P4"]
    assert all(len(one.said) == 4 for one in PAPER.values())
    outcomes = {one.said[1].outcome for one in PAPER.values() if one.said[1]}
    assert outcomes == {"helps", "hurts"}  # or the paper's second observation would not stand


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    found, folders = several(tmp_path, *TWO)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="choose another folder with --out"):
        write_several(found, tmp_path / "file", folders)


AWKWARD: dict[str, dict[str, object]] = {
    "a name of HTML": {"problem": "<b>&amp; $\\x_1$ </script>"},
    "a long name": {"problem": "a-problem-whose-name-goes-on-and-on-" * 3},
    "a name in another script": {"problem": "字符-模型"},
    "given step sizes": {"searched": False},
    "all diverged": {"diverging": PAPER_METHODS},
    "others": {"methods": (*PAPER_METHODS, "torch.optim.RMSprop", "m-svag(beta=0.5)")},
    "another metric": {"metric": "error_rate", "metric_better": "smaller", "metric_unit": "bits"},
    "validation": {"select": "validation"},
    "the paper's protocol": {"protocol": "paper"},
    "two seeds": {"seeds": 2},
}


@pytest.mark.parametrize("settings", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_problems_beside_a_usual_one(tmp_path: Path, settings: dict[str, object]) -> None:
    found, page, _ = report(tmp_path, {}, settings)
    for analysis in found.analyses:
        assert analysis.study.base.problem in page.text
    assert len(page.ids) == len(set(page.ids))
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text.split()


def test_folders_whose_names_need_quoting(tmp_path: Path) -> None:
    folders = [tmp_path / "50 % of #1?", tmp_path / "é & <b>"]
    analyses = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        analyses.append(study(folder, problem=f"p{number}"))
    text = write_several(together(analyses), tmp_path / "out", folders).read_text(encoding="utf-8")
    links = [unquote(link) for link in Page(text).files]
    assert len(links) == len(list(tmp_path.glob("*/records/*.jsonl")))
    assert all((tmp_path / "out" / link).is_file() for link in links)


def test_losses_below_0_have_no_shares(tmp_path: Path) -> None:
    found, _ = several(tmp_path, *TWO)
    shifted = {name: replace(one, loss_level=-1.0) for name, one in found.families.items()}
    assert on_the_loss(shifted) is None
    half = {**found.families, "p1": shifted["p1"]}
    forest = on_the_loss(half)
    assert forest is not None
    assert list(forest.effects) == ["p0"]


def test_twelve_problems(tmp_path: Path) -> None:
    one = study(tmp_path)
    analyses = [_named(one, f"p{number}") for number in range(12)]
    found = together(analyses)
    text = write_several(found, tmp_path, [tmp_path] * 12).read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(f"p{number}" in page.text for number in range(12))


def test_intervals_are_corrected_for_the_problems_that_are_judged(tmp_path: Path) -> None:
    found, _ = several(tmp_path, *TWO, {"seeds": 1})
    alone = together(found.analyses[:1]).families["p0"].loss["sign"].interval
    both = found.families["p0"].loss["sign"].interval
    assert alone is not None
    assert both is not None
    assert both[1] - both[0] > 1.05 * (alone[1] - alone[0])
    again = together(found.analyses[:2]).families["p0"].loss["sign"].interval
    assert again == both  # one that is not judged costs nothing
