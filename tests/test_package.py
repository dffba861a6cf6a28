"""What is published: the source archive holds what its tests need, and one version is named."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import svag

ROOT = Path(__file__).parents[1]
FOLDERS = (".ci", "docs", "examples", "release", "results", "svag", "tests")
FILES = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile"),
    *("README.md", "constraints.txt", "pyproject.toml"),
)
MADE = ("__pycache__", ".claim", "*.egg-info", "gallery_pages", "explorer", "names")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that building leaves nothing in it."""
    tree = tmp_path_factory.mktemp("project")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(*MADE))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def names(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the source archive, without the folder they are in."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def test_the_archive_holds_everything_that_tests_read(tree: Path, names: set[str]) -> None:
    there = {
        str(path.relative_to(tree))
        for name in (*FOLDERS, *FILES)
        for path in ((tree / name).rglob("*") if (tree / name).is_dir() else [tree / name])
        if path.is_file() and "egg-info" not in str(path)
    }
    assert there <= names
    assert len(there) > 500


def test_every_extra_is_tried_in_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "release")
    import try_install

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(declared["project"]["optional-dependencies"])
    assert set(try_install.CHECKS) | set(try_install.LEFT_OUT) == {"", *extras}
    joined = declared["project"]["optional-dependencies"]["all"][0]
    assert extras - set(try_install.LEFT_OUT) == set(joined[len("svag[") : -1].split(","))


@pytest.mark.slow
def test_an_extra_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "release")
    import try_install

    lost = tmp_path / "svag-0-py3-none-any.whl"
    outcomes = try_install.try_python(tmp_path, lost, sys.executable, ["fast", "lab"])
    assert outcomes == {"": "fails", "fast": "fails", "lab": "fails"}
    assert not any(tmp_path.iterdir())


def test_the_table_of_what_was_tried_has_a_cell_for_every_extra_and_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "release")
    import try_install

    outcomes = {"Python 3.11.7": {"": "works", "jax": "fails"}, "Python 3.12.1": {"": "works"}}
    assert try_install.table(outcomes).splitlines() == [
        "| extra | Python 3.11.7 | Python 3.12.1 |",
        "| --- | --- | --- |",
        "| (none) | works | works |",
        "| jax | fails | not tried |",
    ]


def test_one_version_is_named() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    released = re.findall(r"^## \[([0-9.]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert cited is not None
    assert svag.__version__ == cited[1] == released[0]
