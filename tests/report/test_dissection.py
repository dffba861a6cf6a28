"""The page of a dissection, made from the records of short real ones, and of changed ones."""

import copy
import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from svag.analysis.dissection_records import FILE, of_kind, read
from svag.cli import app
from svag.diagnosis.dissect import dissect
from svag.entrants import entrant
from svag.errors import RecordError
from svag.report import dissection
from svag.report.numbers import MINUS, NONE, significant

from .pages import Page, needs_chromium, opened, too_wide

Rows = list[dict[str, Any]]

OWN_STEP = Path(__file__).parents[2] / "examples" / "own_step.py"
OTHERS = ("sgd", "adam", "m-svag(beta=0.95)", "torch.optim.RMSprop")
CHARTS = {
    **{"noise": ("eta", "strip"), "heat": ("race", "finals")},
    "improvement": ("decrease", "rotated", "batches"),
}
HEADINGS = {
    "noise": "How noisy the gradient is",
    "improvement": "Other axes, larger batches",
    "race": "A short race",
    "curvature": "Curvature",
    "skipped": "What could not be measured",
    "conclusion": "The answer, half by half",
}
CURVATURE: Rows = [
    {
        "what": "density",
        "matrix": "hessian",
        "nodes": [-1.5, 0.0, 30.0],
        "weights": [0.1, 0.8, 0.1],
    },
    {"what": "density", "matrix": "ggn", "nodes": [0.0, 29.0, None], "weights": [0.9, 0.1, None]},
    {
        **{"what": "eigenvalue", "matrix": "hessian", "which": "largest", "value": 30.25},
        **{"residual": 0.012, "converged": True, "products": 20},
    },
    {
        **{"what": "eigenvalue", "matrix": "hessian", "which": "smallest", "value": -1.5},
        **{"residual": None, "converged": False, "products": 20},
    },
    {
        **{"what": "p_diag", "matrix": "hessian", "block": "all", "value": 0.254},
        **{"interval": [0.21, 0.31], "rows": 64, "of": 7490},
    },
    {
        **{"what": "p_diag", "matrix": "ggn", "block": "6.bias", "value": 0.444},
        **{"interval": None, "rows": 10, "of": 10},
    },
    {
        **{"what": "along", "method": "adam", "improvement_hessian": None, "lr_hessian": None},
        **{"improvement_ggn": 0.3127, "lr_ggn": 0.0123},
    },
]


def svag(*words: object) -> tuple[str, str]:
    """Run a command that succeeds; return what it prints on either stream."""
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real dissection of the problem ``digits``."""
    folder = tmp_path_factory.mktemp("dissected") / "digits"
    words = ("--budget", "2s", "--draws", 6, "--race-steps", 20, "--seed", 1)
    out, _ = svag("dissect", "digits", *words, "--out", folder)
    assert f"page: {folder / 'dissect.html'}" in out
    return folder


@pytest.fixture(scope="module")
def rows(digits: Path) -> Rows:
    """Its records, with variants, for which there is time or not, made of those on hand."""
    found = [row for row in read(digits) if row.get("track", "plain") == "plain"]
    for kind, track in itertools.product(
        ("improvement", "step effect"), ("rotated", "batch x 2", "batch x 4")
    ):
        found += [{**row, "track": track} for row in of_kind(found, kind) if row_is_plain(row)]
    return found


def row_is_plain(row: dict[str, Any]) -> bool:
    return bool(row["track"] == "plain")


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Rows], str]:
    """Return a function that writes records, and returns the page that is made of them."""
    folders = (tmp_path / str(n) for n in itertools.count())

    def written(rows: Rows) -> str:
        folder = next(folders)
        folder.mkdir()
        (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return dissection.write(folder).read_text(encoding="utf-8")

    return written


def charts_of(text: str) -> dict[str, Any]:
    """Return the page's charts; they hold no number that JSON does not have."""
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    assert found

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in a chart")

    charts: dict[str, Any] = json.loads(found[1], parse_constant=refuse)
    return charts


def without(rows: Rows, *kinds: str) -> Rows:
    return [row for row in rows if row["kind"] not in kinds]


# --- what is on the page


def test_every_part_is_there(rows: Rows, make: Callable[[Rows], str]) -> None:
    left_out = {"kind": "skipped", "text": "the moon, for want of a rocket <b>"}
    text = make([*rows, *({"kind": "curvature", **row} for row in CURVATURE), left_out])
    page = Page(text)
    assert page.files == [FILE]
    assert page.charts == [
        *("decrease", "race", "finals", "eta", "strip", "spectrum"),
        *("rotated", "batches", "effects"),
    ]
    assert set(page.charts) == charts_of(text).keys()
    assert len(page.ids) == len(set(page.ids))
    for title in HEADINGS.values():
        assert title in page.text
    assert "The moon, for want of a rocket <b>" in page.text


def test_every_method_and_every_answer(rows: Rows, make: Callable[[Rows], str]) -> None:
    page = Page(make(rows))
    (ended,) = of_kind(rows, "conclusion")
    for text in (ended["headline"], *ended["notes"], *(one["text"] for one in ended["statements"])):
        assert re.sub(r"(?<![\w.-])-(?=\d)", MINUS, text) in page.text
    for one in ended["suggestions"]:
        assert one["line"] in page.text
        assert entrant(one["method"]).name in page.text
    assert page.text.index(ended["suggestions"][0]["line"]) < page.text.index("The two halves")


def test_the_table_of_the_halves(rows: Rows, make: Callable[[Rows], str]) -> None:
    text = make(rows)
    square = Page(text[text.index('<table class="square">') :].split("</table>")[0] + "</table>")
    race = of_kind(rows, "race")[0]
    for row in of_kind(rows, "improvement"):
        if row_is_plain(row):
            low, high = map(significant, row["interval"])
            assert f"{significant(row['value'])} [{low}, {high}]" in square.text
    for key, lr in race["lrs"].items():
        assert (
            f"loss after {race['steps']} steps {significant(race['losses'][key], 4)} at lr {lr:g}"
            in square.text
        )
    for row in of_kind(rows, "race effect"):
        assert significant(row["estimate"], signed=True) in square.text
    for row in of_kind(rows, "worth"):
        if row["against"] == "m-sgd":
            assert re.search(rf"one step {row['ratio']:.2f}\d* × M-SGD's \[", square.text)
    order = [square.text.index(f"{name} one step") for name in ("M-SGD", "M-SVAG", "M-SSD", "Adam")]
    assert order == sorted(order)


def test_the_curvature_in_numbers(rows: Rows, make: Callable[[Rows], str]) -> None:
    measured = [row for row in rows if row["kind"] != "curvature"]
    text = make([*measured, *({"kind": "curvature", **row} for row in CURVATURE)])
    page = Page(text).text
    assert "Hessian largest 30.25 ± 0.012" in page
    assert f"Hessian smallest {MINUS}1.500 {NONE}, not converged" in page
    assert f"whole matrix 0.254 [0.210, 0.310] 64 of 7,490 rows {NONE}" in page
    assert f"6.bias {NONE} 0.444 10 of 10 rows" in page
    step = next(r for r in of_kind(rows, "improvement") if r["method"] == "adam")
    own = f"{significant(step['value'])} {significant(step['lr'])}"
    assert f"Adam {own} {NONE} {NONE} 0.313 0.012" in page
    stems = charts_of(text)["spectrum"]["data"]
    assert [trace["x"] for trace in stems if trace["mode"] == "markers"] == [
        [-1.5, 0.0, 30.0],
        [0.0, 29.0],
    ]


def test_the_curves_are_those_of_the_records(rows: Rows, make: Callable[[Rows], str]) -> None:
    charts = charts_of(make(rows))
    for row in of_kind(rows, "improvement"):
        if not row_is_plain(row):
            continue
        own = [t for t in charts["decrease"]["data"] if t["meta"] == row["method"]]
        line, dots, best = own
        count = len(dots["x"])
        assert dots["x"] == pytest.approx(row["lrs"][:count], rel=1e-5)
        assert dots["y"] == pytest.approx(row["curve"][:count], rel=1e-5)
        assert line["x"][0] == pytest.approx(row["lrs"][0], rel=1e-5)
        assert line["y"] == pytest.approx(row["fit"][: len(line["y"])], rel=1e-5)
        assert best["y"] == pytest.approx([row["value"]], rel=1e-5)
        reach = best["y"][0] + best["error_y"]["array"][0]
        assert reach == pytest.approx(row["interval"][1], rel=1e-4)
    bars, *curves = charts["eta"]["data"]
    histogram = of_kind(rows, "noise")[-1]["histogram"]
    assert sum(bars["y"][:-1]) == pytest.approx(100 * sum(histogram["shares"]), rel=1e-4)
    for x, svag_factor, adam in zip(curves[0]["x"], curves[0]["y"], curves[1]["y"], strict=True):
        assert svag_factor == pytest.approx(1 / (1 + x**2), rel=1e-4)
        assert adam == pytest.approx((1 + x**2) ** -0.5, rel=1e-4)


def test_how_it_was_measured(rows: Rows, digits: Path) -> None:
    page = Page((digits / "dissect.html").read_text(encoding="utf-8")).text
    setting = rows[0]
    words = "--budget 2s --draws 6 --seed 1 --out"
    assert re.sub(r"--race-steps 20 ", "", setting["command"]).endswith(f"{words} {digits}")
    assert setting["command"] in page
    assert f"svag report {digits}" in page
    for figure in ("parameters", "gradients", "evaluations"):
        assert f"{setting[figure]:,}" in page


# --- what is missing


@pytest.mark.parametrize("kind", ["noise", "improvement", "race", "heat", "conclusion"])
def test_a_part_that_is_missing_leaves_nothing(
    kind: str, rows: Rows, make: Callable[[Rows], str]
) -> None:
    gone = {
        "improvement": ("improvement", "step effect", "worth"),
        "race": ("race", "race effect", "heat"),
    }.get(kind, (kind,))
    text = make(without(rows, *gone))
    page = Page(text)
    for chart in CHARTS.get(kind, CHARTS["heat"] if kind == "race" else ()):
        assert chart not in page.ids
    if kind in HEADINGS:
        assert HEADINGS[kind] not in page.text
    for section in re.findall(r"<section.*?</section>", text, re.S):
        assert len(Page(section).text.split()) > 8
    for word in ("None", "nan", "inf", "null"):
        assert word not in re.split(r"\W+", page.text)


def test_nothing_but_a_setting(rows: Rows, make: Callable[[Rows], str]) -> None:
    text = make([rows[0]])
    assert "Plotly" not in text
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == ["How it was measured, and how to repeat it"]


def test_numbers_that_are_null(rows: Rows, make: Callable[[Rows], str]) -> None:
    rows = copy.deepcopy(rows)
    for row in rows:
        if row["kind"] == "improvement" and row["method"] == "adam":
            row["curve"][-2:] = [None, None]
            row["errors"][-2:] = [None, None]
            row["interval"], row["lr_interval"] = [None, None], [None, None]
        if row["kind"] == "improvement" and row["method"] == "m-ssd":
            row["value"], row["fit"] = -1.0, []
        if row["kind"] in ("step effect", "worth"):
            row["ratio"], row["interval"] = None, None
        if row["kind"] == "race effect":
            row["interval"] = None
        if row["kind"] == "race":
            row["lrs"]["m-sgd"], row["losses"]["m-sgd"] = None, None
        if row["kind"] == "heat" and row["method"] == "m-sgd":
            row["loss"] = None
    noise = of_kind(rows, "noise")
    noise[0] |= {"eta": [0.5, 1.0, None, None, None], "grad_sq": -1.0, "noise_scale": None}
    noise[1] |= {"eta": [None] * 5, "still": 1.0, "variance": 0.0, "grad_sq": 0.0}
    noise[2] |= {"noise_scale": None}
    text = make(rows)
    page, charts = Page(text).text, charts_of(text)
    for word in ("None", "nan", "inf", "null"):
        assert word not in re.split(r"\W+", page)
    assert f"{noise[0]['entries']} ∞ 0.50 1.0 ∞ ∞ ∞" in page
    assert f"{noise[1]['entries']} {NONE} {NONE} {NONE}" in page
    assert f"{significant(noise[2]['variance'] / noise[2]['grad_sq'])} batches" in page
    assert "M-SGD" in page
    assert "diverged" in page
    crosses = [t for t in charts["race"]["data"] if t["marker"].get("symbol") == "x"]
    assert {t["meta"] for t in crosses} == {"m-sgd"}
    strip = charts["strip"]["data"][0]
    assert [row[0] for row in strip["z"]][2:] == [1.0] * 3  # infinite: as noisy as the key goes
    assert [row[1] for row in strip["z"]] == [None] * 5
    best = {t["meta"] for t in charts["decrease"]["data"] if "error_x" in t}
    assert best == {"m-sgd", "m-svag", "adam"}


def test_records_that_cannot_be_read(tmp_path: Path) -> None:
    begun = '{"kind": "dissection"'
    for text in (
        *(None, "", "x", "[]", "[" * 100_000, '{"kind": "noise"}', f"{begun}}}\n{{}}"),
        *(f"{begun}}}", f'{begun}, "methods": null}}', f'{begun}, "methods": [], "cells": 3}}'),
    ):
        if text is not None:
            (tmp_path / FILE).write_text(text)
        with pytest.raises(RecordError, match=FILE):
            dissection.write(tmp_path)


# --- other dissections


def test_the_race_alone(tmp_path: Path) -> None:
    words = (f"{OWN_STEP}:own_step", "--budget", "1s", "--race-steps", 12, "--out", tmp_path)
    svag("dissect", *words, "--methods", "m-sgd,adam")
    text = (tmp_path / "dissect.html").read_text(encoding="utf-8")
    assert Page(text).charts == ["race", "finals"]
    assert "The problem has a training step of its own" in Page(text).text
    assert "One step" not in re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert charts_of(text)["race"]["layout"]["yaxis"]["title"]["text"].startswith("Figure")


def test_methods_other_than_the_four(tmp_path: Path) -> None:
    words = ("quadratic", "--methods", ",".join(OTHERS), "--budget", "1s", "--draws", 6)
    svag("dissect", *words, "--race-steps", 12, "--out", tmp_path)
    page = Page((tmp_path / "dissect.html").read_text(encoding="utf-8"))
    assert "The two halves of Adam" not in page.text
    assert "Some are missing here" in page.text
    for key in OTHERS:
        assert entrant(key).name in page.text
    assert "times SGD" in page.text
    assert "strip" not in page.charts  # there is one parameter only


def test_names_with_characters_of_html(tmp_path: Path) -> None:
    name = "<b>bold</b>&amp;"
    model = torch.nn.Sequential(OrderedDict({name: torch.nn.Linear(4, 3)}))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, inputs.argmax(dim=1).clamp(max=2))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    loss_fn = torch.nn.functional.cross_entropy
    dissect(model, loss_fn, loader, budget="1s", draws=6, race=False, out=tmp_path)
    text = dissection.write(tmp_path).read_text(encoding="utf-8")
    assert "<b>bold" not in text
    assert f"1 {name}.weight 12" in Page(text).text
    strip = charts_of(text)["strip"]
    assert strip["data"][0]["customdata"][0] == [
        "&lt;b&gt;bold&lt;/b&gt;&amp;amp;.weight",
        "&lt;b&gt;bold&lt;/b&gt;&amp;amp;.bias",
    ]
    assert "svag.dissect(model, loss_fn" in Page(text).text


@pytest.fixture
def many(rows: Rows) -> Rows:
    """Records with 300 parameters of long names."""
    noise = of_kind(rows, "noise")
    names = [f"model.decoder.layers.{n // 6}.self_attention.part_{n % 6}" for n in range(300)]
    layers = [{**noise[n % (len(noise) - 1)], "name": name} for n, name in enumerate(names)]
    head, *rest = without(rows, "noise")
    return [head, *layers, noise[-1], *rest]


def test_three_hundred_layers(many: Rows, make: Callable[[Rows], str]) -> None:
    text = make(many)
    strip = charts_of(text)["strip"]["data"][0]
    assert len(strip["x"]) == len(strip["z"][0]) == 300
    assert "texttemplate" not in strip
    details = text[text.index("<details") :].split("</details>")[0]
    assert not details.startswith("<details open")
    for row in of_kind(many, "noise")[:-1]:
        assert row["name"] in details


# --- the command line


def test_the_page_again(digits: Path, tmp_path: Path) -> None:
    before = (digits / "dissect.html").read_bytes()
    (digits / "dissect.html").unlink()
    out, err = svag("report", digits)
    assert of_kind(read(digits), "conclusion")[0]["headline"] in out
    assert f"page: {digits / 'dissect.html'}" in err
    assert (digits / "dissect.html").read_bytes() == before
    out, _ = svag("report", digits, "--json", "--out", tmp_path / "away")
    assert json.loads(out) == read(digits)
    page = Page((tmp_path / "away" / "dissect.html").read_text(encoding="utf-8"))
    (link,) = page.files
    assert (tmp_path / "away" / link).resolve() == (digits / FILE).resolve()


def test_a_page_that_cannot_be_written(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="choose another folder with --out"):
        dissection.write(digits, tmp_path / "file")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (11124.74, "11,100"),
        (0.000244377, "0.000244"),
        (9.996, "10.0"),
        (0.0, "0"),
        (-0.04268, f"{MINUS}0.0427"),
        (2.39e-5, f"2.39e{MINUS}05"),
        (999_900.0, "1.00e+06"),
        (float("nan"), NONE),
    ],
)
def test_numbers_of_any_size(value: float, text: str) -> None:
    assert significant(value) == text


# --- in a browser


@needs_chromium
def test_in_a_browser(many: Rows, make: Callable[[Rows], str], tmp_path: Path) -> None:
    """Nothing is loaded, every chart is drawn, and nothing sticks out on a phone."""
    text = make([*many, *({"kind": "curvature", **row} for row in CURVATURE)])
    seen, console = opened(text, tmp_path)
    assert console == []
    assert f'data-drawn="{len(Page(text).charts)}"' in seen
    assert '<button type="button" class="copy">Copy</button>' in seen
    assert too_wide(text, tmp_path, 360) == (360, "")
