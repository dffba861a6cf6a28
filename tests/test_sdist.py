"""What the source distribution holds: the package whole, and no test without what it needs."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the archive, built from a copy, without the folder they are in."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "svag", tree / "svag", ignore=ignore)
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def test_every_file_of_the_package_is_there(names: set[str]) -> None:
    kept = (".py", ".typed", ".j2")
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "svag").rglob("*")
        if path.suffix in kept and "__pycache__" not in path.parts
    }
    assert package <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_no_test_is_there_alone(names: set[str]) -> None:
    assert not {name for name in names if name.startswith("tests/")}
