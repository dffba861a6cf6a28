"""What the documents show works: examples in docstrings and on pages, files in examples/."""

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

import svag
from svag import METHODS
from svag.analysis.study import analyse
from svag.report.tables import rows

ROOT = Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(svag.__path__, "svag."))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_docstring_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # some read results/
    if name == "svag.jax":
        pytest.importorskip("optax", reason="svag.jax needs jax and optax: pip install 'svag[jax]'")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_method_has_an_example_and_its_equation() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    for row in METHODS.values():
        make = getattr(svag, row.optimizer)
        assert any(test.examples for test in finder.find(make)), row.optimizer
        assert "theta <- theta - lr *" in make.__doc__


PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "reference").glob("*.md")),
    )
}
ELSEWHERE = {"docs/trainers.md"}
"""Pages whose code another test runs: ``tests/integrations/test_page.py``."""
BLOCKS = [
    (page, block)
    for page in sorted(PAGES.keys() - ELSEWHERE)
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.S)
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_python_on_pages_runs(page: str, block: str) -> None:
    if "jax" in block:
        pytest.importorskip("optax", reason="svag.jax needs jax and optax: pip install 'svag[jax]'")
    exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/reference/")])
def test_examples_of_constants(page: str) -> None:
    assert doctest.testfile(str(ROOT / page), module_relative=False).failed == 0


def test_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    names = set(re.findall(r"[\w/]+\.py\b", text))
    assert len(names) > 50
    every = [
        str(path.relative_to(ROOT))
        for top in ("svag", "tests")
        for path in (ROOT / top).rglob("*.py")
    ]
    missing = [n for n in names if not any(path == n or path.endswith(f"/{n}") for path in every)]
    assert missing == []


def test_readme_lists_the_table_as_it_is() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| `(\w+)` \|.*\| ([\d.]+) \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert rows == [(row.key, row.optimizer, f"{row.lr:g}") for row in METHODS.values()]


def test_readme_commands_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^    make (\w+)", text, re.M)) == {"demo", "test"} <= set(targets)
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^make .*$", ci, re.M) == ["make test"]


def test_the_page_on_performance_shows_p1_as_recorded() -> None:
    folder = ROOT / "results" / "paper-step-sizes" / "fmnist-2c2d"
    analysis = analyse(folder)
    text = (ROOT / "docs" / "performance.md").read_text()
    for row in rows(analysis).values():
        cells = (row.name, row.lr, str(row.n), row.final["test_accuracy"], row.final["train_loss"])
        assert re.search(r"^    " + r"\s+".join(map(re.escape, cells)), text, re.M), row.name


def test_the_page_on_both_estimates_is_what_the_records_say() -> None:
    page = ROOT / "docs" / "within_batch.md"
    script = runpy.run_path(str(ROOT / "docs" / "make_within_batch.py"))
    assert page.read_text() == script["page"]()


COMMANDS = [
    (page, command)
    for page, text in PAGES.items()
    for command in [
        *re.findall(r"^ {4,}(?:\.venv/bin/)?(svag (?:[^\n]*\\\n)*[^\n]*)$", text, re.M),
        *re.findall(r"`(svag [a-z][^`]*)`", text),
    ]
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_on_pages_have_options_that_exist(page: str, command: str) -> None:
    from svag.cli import app

    words = shlex.split(command.replace("\\\n", " "), comments=True)[1:]
    found = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found = found.commands[words.pop(0)]
    assert not hasattr(found, "commands"), f"no command {words[0]!r}"
    found.make_parser(found.context_class(found)).parse_args([*words, "VALUE"])


def test_the_pages_show_commands_and_misspelt_ones_would_be_found() -> None:
    assert len(COMMANDS) > 30
    with pytest.raises(Exception, match="budgets"):
        test_commands_on_pages_have_options_that_exist("", "svag compare digits --budgets full")
