"""Figures, tables, the page to explore and the docs page: they are drawn, whole, and up to date."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from svag.errors import UnknownName
from svag.theory.figure2 import figure2_panels
from svag.theory.figures import (
    FIGURES,
    draw,
    explorer,
    figure2_picture,
    figure4_picture,
    p_diag_picture,
    tables,
    theorem1_picture,
    wilson_picture,
)

DOCS = Path(__file__).parents[2] / "docs"


def make_theory():
    spec = importlib.util.spec_from_file_location("make_theory", DOCS / "make_theory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(figure):
    """Every text but the numbers on axes."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        found += [child for child in axes.get_children() if isinstance(child, Text)]
    return [text for text in found if text.get_text()]


@pytest.fixture(autouse=True)
def inside(monkeypatch):
    """Hold every drawn text against the edges of its picture."""
    save = Figure.savefig

    def checked(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        figure.canvas.draw()
        for text in written(figure):
            box = text.get_window_extent(figure.canvas.get_renderer())
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text

    monkeypatch.setattr(Figure, "savefig", checked)


def names(files):
    return {file.name for file in files}


def drawn_as(stem):
    return {f"{stem}.{suffix}" for suffix in ("png", "svg", "csv", "md")}


@pytest.fixture(scope="module")
def panels():
    return figure2_panels(seeds=40)


@pytest.fixture(scope="module")
def grid():
    return explorer.compute((0.0, 1.0), (0.0, 1.0), (0.0, 0.1), seeds=2, steps=10, dimension=20)


def test_the_figures_are_the_papers_and_a_correction():
    assert set(FIGURES) == {"2", "3", "4", "theorem1", "wilson", "p-diag"}


def test_an_unknown_figure_is_an_error_that_names_the_known(tmp_path):
    with pytest.raises(UnknownName, match=r"no figure 'theorem'.*Did you mean 'theorem1'"):
        draw("theorem", tmp_path)


def test_importing_the_figures_loads_nothing_that_draws():
    code = (
        "import sys, svag.theory.figures; "
        "print([m for m in ('matplotlib', 'plotly', 'jinja2', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["3", "4"])
def test_the_same_bytes_each_time_in_a_folder_it_makes(name, tmp_path):
    first, second = draw(name, tmp_path / "a" / "b"), draw(name, tmp_path / "c")
    assert names(first) == drawn_as(f"figure{name}")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_figure4_has_the_papers_numbers():
    found = figure4_picture.example()
    assert found.eta_sq.tolist() == [0.25, 2.25]
    assert np.allclose(found.factor, [1 / 1.25, 1 / 3.25])
    assert found.after < found.before == 3.25


def test_figure2_its_table_and_the_table_by_scale(panels, tmp_path):
    scales = figure2_picture.by_scale((1.0, 100.0), seeds=2)
    files = figure2_picture.draw(tmp_path, panels, scales, page=False)
    assert names(files) == drawn_as("figure2") | drawn_as("figure2-scale")
    with (tmp_path / "figure2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["SGD/SSD"]) for row in rows] == [panel.ratio for panel in panels]
    assert {row["agrees"] for row in rows} == {"yes"}
    with (tmp_path / "figure2-scale.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_the_verdict_says_why_a_panel_is_outside_the_band():
    few = figure2_panels(seeds=2, steps=1, dimension=5)
    outside = [verdict for verdict in figure2_picture.verdicts(few) if not verdict.agrees]
    assert outside
    assert all(verdict.why for verdict in outside)


def test_rates_are_drawn_with_slopes_and_constants(tmp_path):
    cases = (("well-conditioned", False, 0.1), ("ill-conditioned", True, 0.1))
    found = theorem1_picture.measure(cases, steps=1000, seeds=2)
    assert names(theorem1_picture.draw(tmp_path, found)) == drawn_as("theorem1")
    assert abs(found[0].slope("SGD")) < 0.3
    assert found[0].slope("idealised SVAG") < -0.7
    noise = 0.1**2 * np.sum(found[0].problem.eigenvalues ** 2)
    assert found[0].constants.M_v == pytest.approx(noise, rel=1e-12)
    assert f"| {tables.text(found[0].constants.M_v)} |" in (tmp_path / "theorem1.md").read_text()


def test_wilson_errors_of_the_sign_methods_are_those_of_the_majority(tmp_path):
    found = wilson_picture.measure((5, 20), sets=2, steps=60)
    followed = wilson_picture.paths(10, steps=20)
    assert names(wilson_picture.draw(tmp_path, found, followed)) == drawn_as("wilson")
    for row in found:
        assert row.low <= row.failed / row.sets <= row.high
        if row.method not in ("gd", "m-svag"):
            assert row.failed == row.sets == 2
            assert abs(row.mean - (1 - wilson_picture.MAJORITY)) < 0.02
    for course in followed:
        proportional = bool(course.distances.max() < 1e-8)
        assert proportional == (course.method not in ("gd", "m-svag"))


def test_diagonal_mass_is_above_its_bound_and_drawn(tmp_path):
    found = p_diag_picture.measure((10, 100), rotations=20)
    assert names(p_diag_picture.draw(tmp_path, found)) == drawn_as("p-diag")
    for row in found:
        assert row.bound < row.exact
    large = [row for row in found if row.d == 100]
    assert all(abs(row.bound / (np.pi / 2) - 1) < 0.05 for row in large)
    assert all(abs(row.exact / row.closed_form - 1) < 0.05 for row in large)


def test_the_grid_ends_at_figure2s_problems(grid):
    assert len(grid.cells) == 2 * 2 * 2
    assert grid.p_diag[0][0] == grid.p_diag[1][0] == 1.0
    assert 0 < grid.p_diag[1][1] < 0.5
    for at, cell in enumerate(grid.cells):
        sgd, exact, bound = (np.array(curve) for curve in cell["at SGD"])
        assert (exact >= bound - 1).all()
        assert len(sgd) == len(grid.steps)
        if at % 4 == 1:  # axis-aligned with noise
            assert (np.abs(exact - bound) <= 1).all()


def test_the_page_needs_no_network(grid, tmp_path):
    file = explorer.write(tmp_path, grid)
    text = file.read_text()
    outer = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://|@import|url\(", outer)
    found = json.loads(re.search(r'id="grid">(.*?)</script>', text, re.S)[1])
    assert found["grid"]["cells"] == grid.cells
    assert found["noise"] == list(explorer.NOISE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.7141, "0.714"),
        (444.4, "444"),
        (1864.0, "1,860"),
        (4.9e-16, "4.9e-16"),
        (2.04e15, "2.0e15"),
        (12, "12"),
        (10.0, "10.0"),
    ],
)
def test_numbers_read_well(value, text):
    assert tables.text(value) == text


def test_the_docs_page_is_what_the_code_gives():
    module, page = make_theory(), (DOCS / "theory.md").read_text()
    for name in module.CHEAP:
        assert module.block(name).strip() in page, f"{name}: run python docs/make_theory.py"


def test_what_the_docs_page_refers_to_is_there():
    page = (DOCS / "theory.md").read_text()
    pictures = re.findall(r"\]\((theory/[^)]+)\)", page)
    assert {DOCS / picture for picture in pictures} == set((DOCS / "theory").iterdir())
    assert set(re.findall(r"`svag figure ([\w-]+)`", page)) == set(FIGURES)
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", page, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors
