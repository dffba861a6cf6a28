"""The report's files, made from real analyses of written records."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from svag.anatomy import METHODS, PAPER_METHODS
from svag.errors import RecordError
from svag.lab.analysis import Analysis, Effect, Spread
from svag.lab.verdict import observations, verdict
from svag.report import style, tables, write
from svag.report.axes import axis, drawn
from svag.report.figures import spaced
from svag.report.page import command, typeset
from svag.report.style import MINUS

from .studies import study

INLINE = {"span", "code", "strong"}
VOID = {"meta", "link", "line", "br", "img", "input"}


RGB = {
    key: tuple(int(look.color[at : at + 2], 16) for at in (1, 3, 5))
    for key, look in style.STYLES.items()
}


class Page(HTMLParser):
    """Collects a page's visible text and resources, and checks that its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.resources: list[str] = []
        self.ids: list[str] = []
        self.headers: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.resources += [known[name] or "" for name in ("src", "href") if name in known]
        self.ids += [known["id"] or ""] if "id" in known else []
        if tag == "th":
            self.headers.append(known)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            raise AssertionError(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
            self.words += [] if tag in INLINE else [" "]

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def report(analysis: Analysis, folder: Path) -> Page:
    path = write(analysis, folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """A sentence as the page's text has it, of which only spaces and minus signs differ."""
    return " ".join(text.replace(" -", f" {MINUS}").replace("[-", f"[{MINUS}").split())


CASES = {
    "four methods": {},
    "all methods": {"methods": tuple(METHODS)},
    "one seed": {"seeds": 1},
    "given step sizes": {"searched": False},
    "two methods": {"methods": ("m-sgd", "adam")},
    "one of its seeds diverged": {"one_lost": ("m-ssd",)},
    "one method diverged": {"diverging": ("m-ssd",)},
    "all diverged": {"diverging": PAPER_METHODS},
    "one seed, all diverged, not searched": {
        "diverging": PAPER_METHODS,
        "seeds": 1,
        "searched": False,
    },
    "validation": {"select": "validation"},
    "a linear loss": {"floor": 2.0},
    "an awkward name": {"problem": "<b>&amp; $\\x_1$ </script>"},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def analysis(request: pytest.FixtureRequest, tmp_path: Path) -> Analysis:
    return study(tmp_path, **request.param)


def test_page_says_everything_and_loads_nothing(analysis: Analysis, tmp_path: Path) -> None:
    page = report(analysis, tmp_path)
    assert plain(verdict(analysis)) in page.text
    for key, result in analysis.methods.items():
        assert METHODS[key].name in page.text
        assert str(METHODS[key].anatomy) in page.text
        assert style.step_size(result.lr) in page.text
    for row in tables.rows(analysis).values():
        for values in (row.final, row.best):
            for value in values.values():
                assert " ".join(value.split()) in page.text
    for effects in tables.margins(analysis).values():
        for margin in effects.values():
            assert " ".join(f"{margin.value} {margin.interval}".split()) in page.text
    for observation in observations(analysis):
        assert observation.claim in page.text
        assert observation.outcome in page.text
        assert plain(observation.detail) in page.text
    for found in analysis.versions.values():
        assert all(version in page.text for version in found)
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text.split()
    assert all(resource.startswith(("data:", "#")) for resource in page.resources)
    assert len(page.ids) == len(set(page.ids))
    assert all("scope" in header for header in page.headers)


def test_figure_can_be_read_back(analysis: Analysis, tmp_path: Path) -> None:
    write(analysis, tmp_path)
    with Image.open(tmp_path / "figure5.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= 1600
    colours = {tuple(c) for c in pixels.reshape(-1, 3)[::7].tolist()}
    for key in drawn(analysis, "train_loss"):
        assert RGB[key] in colours, METHODS[key].name
    root = ElementTree.parse(tmp_path / "figure5.svg").getroot()
    assert root.tag.endswith("svg")


def test_same_analysis_same_bytes(tmp_path: Path) -> None:
    analysis = study(tmp_path)
    files = ("figure5.png", "figure5.svg", "report.html")
    write(analysis, tmp_path)
    first = [(tmp_path / name).read_bytes() for name in files]
    write(analysis, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in files] == first


def test_missing_cells_are_named(tmp_path: Path) -> None:
    page = report(study(tmp_path, ("m-sgd", "adam")), tmp_path)
    assert "no sign, variance-adapted: SVAG or M-SVAG" in page.text
    assert "sign, not adapted: SSD or M-SSD" in page.text
    assert "Effect of the sign" not in page.text


def test_a_method_that_diverged_is_why_a_cell_is_missing(tmp_path: Path) -> None:
    page = report(study(tmp_path, diverging=("m-ssd",)), tmp_path)
    assert "SSD or M-SSD (M-SSD has no run that did not diverge)" in page.text
    assert "Without a run that did not diverge: M-SSD." in page.text
    assert "Not in these figures: M-SSD, of which every replication diverged." in page.text


def test_one_seed_has_no_deviation_and_no_interval(tmp_path: Path) -> None:
    page = report(study(tmp_path, seeds=1), tmp_path)
    assert "Some method has one seed only, so no effect has an interval" in page.text
    assert "One seed, so no standard deviation." in page.text
    assert "± 0" not in page.text
    assert "95 % bootstrap" not in page.text


def test_given_step_sizes_are_said_to_be(tmp_path: Path) -> None:
    analysis = study(tmp_path, searched=False)
    assert (
        "The step sizes were given and nothing was searched for" in report(analysis, tmp_path).text
    )
    assert "--lr adam=0.001" in command(analysis, tmp_path)


def test_command_names_what_was_run(tmp_path: Path) -> None:
    analysis = study(tmp_path, problem="my problem", one_lost=("adam",))
    assert command(analysis, Path("out")) == (
        "svag compare 'my problem' --methods m-sgd,m-ssd,m-svag,adam --steps 100 --seeds 3 "
        "--select test --out out"
    )


def test_charts_are_json_with_every_method(tmp_path: Path) -> None:
    write(study(tmp_path, tuple(METHODS)), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    assert found
    charts = json.loads(found[1], parse_constant=lambda name: pytest.fail(name))
    for chart in ("train_loss", "test_accuracy", "sensitivity"):
        assert {trace["meta"] for trace in charts[chart]["data"]} == set(METHODS)
    crosses = [t for t in charts["sensitivity"]["data"] if t["mode"] == "markers"]
    assert [t["marker"]["symbol"] for t in crosses] == ["x"] * len(METHODS)
    assert charts["train_loss"]["layout"]["yaxis"]["type"] == "log"


def test_axes_show_late_differences(tmp_path: Path) -> None:
    analysis = study(tmp_path)
    curves = list(drawn(analysis, "test_accuracy").values())
    shown = axis(curves, "test_accuracy")
    assert curves[0].mean[0] < 0.2 < 0.8 < shown.low
    assert all(shown.low < curve.mean[-1] < shown.high for curve in curves)
    assert axis(list(drawn(analysis, "train_loss").values()), "train_loss").log


def test_a_loss_of_small_range_is_linear(tmp_path: Path) -> None:
    analysis = study(tmp_path, floor=2.0)
    assert not axis(list(drawn(analysis, "train_loss").values()), "train_loss").log


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0, 0.0], [0.0, 0.1, 0.2]),
        ([1.0, 1.0, 1.0], [0.8, 0.9, 1.0]),
    ],
)
def test_labels_keep_apart(heights: list[float], expected: list[float]) -> None:
    assert spaced(heights, 0.1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "figure", "decimals", "expected"),
    [
        (Spread(0.98667, 0.0031, 3), "test_accuracy", 2, "98.67 ±\N{NO-BREAK SPACE}0.31 %"),
        (Spread(0.98667, np.nan, 1), "test_accuracy", 2, "98.67 %"),
        (Spread(0.01765, 0.00426, 3), "train_loss", 4, "0.0176 ± 0.0043"),
        (Spread(2e-9, 3e-10, 3), "train_loss", 6, f"2.0e{MINUS}09 ± 3.0e{MINUS}10"),
        (Spread(0.0, 0.0, 3), "train_loss", 3, "0.000 ± 0.000"),
        (Spread(np.nan, np.nan, 0), "train_loss", 3, style.NONE),
    ],
)
def test_spreads_read_well(value: Spread, figure: str, decimals: int, expected: str) -> None:
    text = style.spread(value, figure, decimals)  # type: ignore[arg-type]
    assert " ".join(text.split()) == " ".join(expected.split())


def test_effects_have_signs_and_points() -> None:
    effect = Effect(-0.0036, (-0.0052, 0.001))
    assert " ".join(style.effect(effect, "test_accuracy", 2).split()) == f"{MINUS}0.36 pp"
    assert style.interval(effect, "test_accuracy", 2) == f"[{MINUS}0.52, +0.10]"
    assert style.interval(Effect(0.1, None), "train_loss", 2) == ""


def test_decimals_show_two_digits_of_the_smallest_deviation() -> None:
    spreads = [Spread(0.0177, 0.0043, 3), Spread(0.0010, 0.00044, 3)]
    assert style.decimals(spreads, "train_loss") == 5
    assert style.decimals([Spread(2.5, np.nan, 1)], "train_loss") == 3
    assert style.decimals([], "train_loss") == 3


def test_typesetting_leaves_hyphens_alone() -> None:
    assert typeset("M-SGD by -0.1 on x-1") == f"M-SGD by {MINUS}0.1 on x-1"
    assert typeset("-1 [-2, +3] <b>") == (
        f'{MINUS}1 <span class="interval">[{MINUS}2, +3]</span> &lt;b&gt;'
    )


def test_every_method_has_its_own_style() -> None:
    assert set(style.STYLES) == set(METHODS)
    assert len(set(style.STYLES.values())) == len(METHODS)
    for key, row in METHODS.items():
        assert (style.STYLES[key].dash == "solid") == row.anatomy.adapted
        red, _, blue = RGB[key]
        assert (red > blue) == row.anatomy.sign


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    analysis = study(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="choose another folder") as caught:
        write(analysis, tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_importing_the_report_imports_no_torch() -> None:
    code = (
        "import sys, svag.report; "
        "print([m for m in ('torch', 'matplotlib.pyplot', 'svag.problems') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
