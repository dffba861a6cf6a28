"""The site: every public name has a page and an example, every link leads somewhere, it builds."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from svag.theory.figures import explorer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = {page.stem: page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))}

PUBLIC = ("svag", "svag.theory", "svag.problems", "svag.report", "svag.jax")
"""Packages with a page of the reference."""
SHORTCUTS = ("svag.optim", "svag.variance", "svag.variance.per_example", "svag.report.dissection")
"""Packages with an ``__all__`` of names that have their pages elsewhere."""


def documented() -> set[str]:
    """Full names of everything that the pages of the reference list."""
    found = set()
    for text in REFERENCE.values():
        package, listing = "", False
        for line in text.splitlines():
            directive = re.match(r"\.\. ([\w:]+):: ?(\S*)", line)
            if directive:
                kind, target = directive.groups()
                package = target if kind in ("currentmodule", "automodule") else package
                listing = kind == "autosummary"
                if kind in ("py:data", "autofunction", "autoclass", "autoexception"):
                    found.add(target if target.startswith("svag.") else f"{package}.{target}")
            elif line.startswith("```"):
                listing = False
            elif listing and (name := re.fullmatch(r"   (\w+)", line)):
                found.add(f"{package}.{name[1]}")
    return found


def exported(package: str) -> list[str]:
    """Return the package's ``__all__``, from its text if what it needs is not installed."""
    try:
        return list(importlib.import_module(package).__all__)
    except ImportError:
        text = (ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
        return list(ast.literal_eval(text.partition("__all__ = ")[2]))


def names() -> list[str]:
    return [f"{package}.{name}" for package in PUBLIC for name in exported(package)]


def test_the_reference_lists_what_is_public_and_nothing_else() -> None:
    listed = {name for name in documented() if name.rpartition(".")[0] in PUBLIC}
    assert listed == set(names())


def test_every_package_with_public_names_is_in_the_reference() -> None:
    files = (ROOT / "svag").rglob("__init__.py")
    public = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in files
        if re.search(r"^__all__ = ", file.read_text(encoding="utf-8"), re.M)
    }
    assert public == {*PUBLIC, *SHORTCUTS}


def test_shortcuts_have_no_name_of_their_own() -> None:
    elsewhere = {name for package in PUBLIC for name in exported(package)}
    for package in SHORTCUTS:
        assert set(exported(package)) - elsewhere <= {"CHECK_EVERY", "PAGE"}, package


def test_every_exception_is_in_the_reference() -> None:
    errors = importlib.import_module("svag.errors")
    classes = {f"svag.errors.{name}" for name, one in vars(errors).items() if inspect.isclass(one)}
    raised = {name for name in classes if issubclass(getattr(errors, name[12:]), Exception)}
    assert raised <= documented()


@pytest.mark.parametrize("name", names())
def test_every_public_name_has_an_example(name: str) -> None:
    package, _, attribute = name.rpartition(".")
    if package == "svag.jax":
        pytest.importorskip("optax", reason="svag.jax needs jax and optax: pip install 'svag[jax]'")
    one = getattr(importlib.import_module(package), attribute)
    if callable(one):
        assert any(test.examples for test in doctest.DocTestFinder().find(one, name))
    else:  # a constant, whose example is on the page
        page = REFERENCE[package.rpartition(".")[2]]
        assert re.search(rf"^   >>> .*\b{attribute}\b", page, re.M)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_guide_is_in_a_table_of_contents() -> None:
    listed = re.findall(r"^[\w-]+(?:/[\w-]+)?$", (DOCS / "index.md").read_text(), re.M)
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert pages <= set(listed)


PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")
    ),
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "reference").glob("*.md")),
]


def places(page: Path) -> set[str]:
    """Names of a page's headings as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"\]\(.*?\)", "", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        if "gallery_pages" in path:  # written while the site is built
            target = DOCS / "gallery" / "README.rst"
        assert target.exists(), link
        assert not place or place in places(target), link


SLOW = ("plot_2_dissected_model", "plot_4_figure_2")
SCRIPTS = [
    pytest.param(script, id=script.stem, marks=[pytest.mark.slow] * (script.stem in SLOW))
    for script in sorted((DOCS / "gallery").glob("plot_*.py"))
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_gallery_runs(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(explorer.compute.__kwdefaults__, "steps", 20)  # a fifth of `make docs`
    pyplot.switch_backend("agg")
    runpy.run_path(str(script), run_name="__main__")
    drawn = [pyplot.figure(number).axes for number in pyplot.get_fignums()]
    pyplot.close("all")
    assert drawn or list(tmp_path.rglob("*.html"))
    assert all(axes.lines or axes.collections for figure in drawn for axes in figure)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sphinx_gallery") is None or importlib.util.find_spec("furo") is None,
    reason="Sphinx is not installed (extra docs); `make docs` builds the site",
)
def test_the_site_builds(tmp_path: Path) -> None:
    """Without the gallery's pictures, which the test above draws. Warnings are errors."""
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-D", "plot_gallery=0"]
    done = subprocess.run(
        [*build, "-d", str(tmp_path / "cache"), str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checked = runpy.run_path(str(DOCS / "check_links.py"))
    assert list(checked["broken"](tmp_path / "site")) == []
