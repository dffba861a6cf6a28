"""The report's files, made from real analyses of written records."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from svag.analysis.contrasts import Effect
from svag.analysis.results import TRAIN_LOSS, Spread
from svag.analysis.study import Analysis
from svag.analysis.verdict import verdict
from svag.anatomy import METHODS, PAPER_METHODS
from svag.entrants import entrant
from svag.errors import RecordError
from svag.quantity import ACCURACY, Quantity
from svag.quantity import LOSS as A_LOSS
from svag.report import line_styles, numbers, tables, write
from svag.report.axis_limits import axis, drawn
from svag.report.content import command
from svag.report.numbers import MINUS
from svag.report.panels import spaced
from svag.report.templates import typeset

from .pages import Page
from .studies import LOSS, study


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[at : at + 2], 16) for at in (1, 3, 5))


def report(analysis: Analysis, folder: Path) -> Page:
    path = write(analysis, folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """A sentence as the page's text has it, of which only spaces and minus signs differ."""
    return " ".join(re.sub(r"(?<=[ \[])-(?=\d)", MINUS, text).split())


ERF = "sign(m) * erf(1/sqrt(2 rho s/m^2))"

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
    "the paper's protocol": {"protocol": "paper"},
    "a linear loss": {"floor": 2.0},
    "judged by the loss": LOSS,
    "another metric": {"metric": "error_rate", "metric_better": "smaller", "metric_unit": "bits"},
    "others": {"methods": (*PAPER_METHODS, "m-svag(beta=0.5)", "torch.optim.RMSprop", ERF)},
    "an awkward name": {"problem": "<b>&amp; $\\x_1$ </script>"},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def analysis(request: pytest.FixtureRequest, tmp_path: Path) -> Analysis:
    return study(tmp_path, **request.param)


def test_page_says_everything_and_loads_nothing(analysis: Analysis, tmp_path: Path) -> None:
    page = report(analysis, tmp_path)
    assert plain(verdict(analysis)) in page.text
    for key, result in analysis.methods.items():
        assert entrant(key).name in page.text
        assert result.entrant.anatomy is None or str(result.entrant.anatomy) in page.text
        assert numbers.step_size(result.lr) in page.text
    for row in tables.rows(analysis).values():
        for values in (row.final, row.best):
            for value in values.values():
                assert " ".join(value.split()) in page.text
    for effects in tables.margins(analysis).values():
        for margin in effects.values():
            assert " ".join(f"{margin.value} {margin.interval}".split()) in page.text
    for title, claim in tables.claims(analysis):
        assert title in page.text
        assert " ".join(f"{claim.value} {claim.interval}".split()) in page.text
    for observation in analysis.observations:
        assert observation.claim in page.text
        assert observation.outcome in page.text
        assert plain(observation.detail) in page.text
    for found in analysis.versions.values():
        assert all(version in page.text for version in found)
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text.split()
    assert all((tmp_path / link).is_file() for link in page.files)
    assert {Path(link).name for link in page.files} == {
        path.name for path in (tmp_path / "records").glob("*.jsonl")
    }
    assert len(page.ids) == len(set(page.ids))
    assert all("scope" in header for header in page.headers)


def test_figure_can_be_read_back(analysis: Analysis, tmp_path: Path) -> None:
    write(analysis, tmp_path)
    with Image.open(tmp_path / "figure5.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= 1600
    places = np.array([2**16, 2**8, 1])
    colours = np.unique(pixels.reshape(-1, 3)[::7] @ places)
    lines = line_styles.styles(result.entrant for result in analysis.methods.values())
    for key in drawn(analysis, TRAIN_LOSS):
        assert int(lines[key].color[1:], 16) in colours, key
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
    assert "Not in these figures: M-SSD, of which every final run diverged." in page.text
    assert page.text.index("Runs diverged at the step sizes that were settled on") < 400


def test_one_seed_has_no_deviation_and_no_interval(tmp_path: Path) -> None:
    page = report(study(tmp_path, seeds=1), tmp_path)
    assert "Some method has one seed only, so no effect has an interval" in page.text
    assert "One seed, so no standard deviation." in page.text
    assert "± 0" not in page.text
    assert "simultaneous" not in page.text


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
        "--select test --batch-size 32 --weight-decay 0.0 --device cpu --autocast off "
        "--no-channels-last --eval-examples all --out out"
    )
    paper = study(tmp_path / "paper", protocol="paper")
    assert "--protocol paper" in command(paper, Path("out"))


def test_what_is_exploratory_is_said_and_never_bold(tmp_path: Path) -> None:
    analysis = study(tmp_path)
    margins = tables.margins(analysis)
    assert {name for name, by in margins.items() if by["test_accuracy"].counts} <= {
        "sign",
        "adaptation",
        "interaction",
    }
    assert not any(by["train_loss"].counts for by in margins.values())
    assert any(claim.counts for _, claim in tables.claims(analysis))
    text = report(analysis, tmp_path).text
    assert "All others are exploratory: single 95 % intervals" in text


def test_the_papers_protocol_says_what_its_intervals_leave_out(tmp_path: Path) -> None:
    text = report(study(tmp_path, protocol="paper"), tmp_path).text
    assert "One seed chose each step size, as in the paper, and the intervals do not" in text

    given = study(tmp_path / "given", protocol="paper", searched=False)
    assert "One seed chose each step size" not in report(given, tmp_path / "given").text


def test_others_are_compared_with_the_four(tmp_path: Path) -> None:
    analysis = study(tmp_path, (*PAPER_METHODS, "torch.optim.RMSprop"))
    ((name, effects),) = tables.others(analysis)
    assert name == "RMSprop"
    assert len(effects) == 4
    means = {key: r.final["test_accuracy"].mean for key, r in analysis.methods.items()}
    difference = 100 * (means["torch.optim.RMSprop"] - means["m-sgd"])
    assert effects[0].value.startswith(numbers.number(difference, 2, signed=True))


def test_the_metric_is_called_by_its_name(tmp_path: Path) -> None:
    analysis = study(
        tmp_path,
        metric="perplexity",
        metric_better="smaller",
        metric_unit="",
        metric_low=None,
        metric_high=None,
    )
    text = report(analysis, tmp_path).text
    assert "the final test perplexity" in text
    assert "accuracy" not in text.lower()
    assert "points" not in text
    assert "a smaller test perplexity and a smaller training loss are improvements" in text


def test_step_sizes_set_aside_are_named(tmp_path: Path) -> None:
    text = report(study(tmp_path, one_lost=("adam",)), tmp_path).text
    assert "Set aside because a run diverged: " in text
    assert re.search(r"Set aside because a run diverged: .*Adam 0\.0003 and 0\.001\.", text)


def test_the_axis_of_the_search_shows_what_decides(tmp_path: Path) -> None:
    from svag.report.charts import sensitivity

    analysis = study(tmp_path)
    low, high = sensitivity(analysis)["layout"]["yaxis"]["range"]
    finals = [100 * r.final["test_accuracy"].mean for r in analysis.methods.values()]
    assert low < min(finals) < max(finals) < high
    assert high - low < 40


def test_charts_are_json_with_every_method(tmp_path: Path) -> None:
    write(study(tmp_path, tuple(METHODS)), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    assert found
    charts = json.loads(found[1], parse_constant=lambda name: pytest.fail(name))
    for chart in ("train_loss", "judged", "sensitivity"):
        assert {trace["meta"] for trace in charts[chart]["data"]} == set(METHODS)
    crosses = [t for t in charts["sensitivity"]["data"] if t["mode"] == "markers"]
    assert [t["marker"]["symbol"] for t in crosses] == ["x"] * len(METHODS)
    assert len({t["y"][0] for t in crosses}) == len(METHODS)
    assert charts["train_loss"]["layout"]["yaxis"]["type"] == "log"


def test_axes_show_late_differences(tmp_path: Path) -> None:
    analysis = study(tmp_path)
    curves = list(drawn(analysis, analysis.judged).values())
    shown = axis(curves, analysis.judged)
    assert curves[0].mean[0] < 0.2 < 0.8 < shown.low
    assert all(shown.low < curve.mean[-1] < shown.high for curve in curves)
    assert axis(list(drawn(analysis, TRAIN_LOSS).values()), TRAIN_LOSS).log


def test_a_loss_of_small_range_is_linear(tmp_path: Path) -> None:
    analysis = study(tmp_path, floor=2.0)
    assert not axis(list(drawn(analysis, TRAIN_LOSS).values()), TRAIN_LOSS).log


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
    ("value", "quantity", "decimals", "expected"),
    [
        (Spread(0.98667, 0.0031, 3), ACCURACY, 2, "98.67 ±\N{NO-BREAK SPACE}0.31 %"),
        (Spread(0.98667, np.nan, 1), ACCURACY, 2, "98.67 %"),
        (Spread(0.01765, 0.00426, 3), A_LOSS, 4, "0.0176 ± 0.0043"),
        (Spread(2e-9, 3e-10, 3), A_LOSS, 6, f"2.0e{MINUS}09 ± 3.0e{MINUS}10"),
        (Spread(0.0, 0.0, 3), A_LOSS, 3, "0.000 ± 0.000"),
        (Spread(np.nan, np.nan, 0), A_LOSS, 3, numbers.NONE),
    ],
)
def test_spreads_read_well(value: Spread, quantity: Quantity, decimals: int, expected: str) -> None:
    text = numbers.spread(value, quantity, decimals)
    assert " ".join(text.split()) == " ".join(expected.split())


def test_effects_have_signs_and_points() -> None:
    effect = Effect(-0.0036, (-0.0052, 0.001))
    assert " ".join(numbers.effect(effect, ACCURACY, 2).split()) == f"{MINUS}0.36 pp"
    assert numbers.interval(effect, ACCURACY, 2) == f"[{MINUS}0.52, +0.10]"
    assert numbers.interval(Effect(0.1, None), A_LOSS, 2) == ""


def test_decimals_show_two_digits_of_the_smallest_deviation() -> None:
    spreads = [Spread(0.0177, 0.0043, 3), Spread(0.0010, 0.00044, 3)]
    assert numbers.decimals(spreads, A_LOSS) == 5
    assert numbers.decimals([Spread(2.5, np.nan, 1)], A_LOSS) == 3
    assert numbers.decimals([], A_LOSS) == 3


def test_typesetting_leaves_hyphens_alone() -> None:
    assert typeset("M-SGD by -0.1 on x-1") == f"M-SGD by {MINUS}0.1 on x-1"
    assert typeset("-1 [-2, +3] <b>") == (
        f'{MINUS}1 <span class="interval">[{MINUS}2, +3]</span> &lt;b&gt;'
    )


def test_every_method_has_its_own_style() -> None:
    assert set(line_styles.STYLES) == set(METHODS)
    assert len(set(line_styles.STYLES.values())) == len(METHODS)
    for key, row in METHODS.items():
        assert (line_styles.STYLES[key].dash == "solid") == row.anatomy.adapted
        red, _, blue = rgb(line_styles.STYLES[key].color)
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
