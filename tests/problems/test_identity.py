"""What makes another version of a user's code and what does not, on real trees of files."""

import importlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest

from svag.errors import ProblemError
from svag.problems import identity, user_code

Files = dict[str, str]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder for a tree of files, the working directory; what is imported is forgotten again."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    others = [entry for entry in sys.path if not entry.startswith(tempfile.gettempdir())]
    monkeypatch.setattr(sys, "path", others)  # without what other tests have left
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with_svag = set(sys.modules)
    yield folder
    forget(with_svag)


def forget(kept: set[str]) -> None:
    """Forget the modules of these tests, as if this process had just started."""
    lasting = (sys.prefix, sys.base_prefix, Path(identity.__file__).parents[2])
    for name in set(sys.modules) - kept:
        file = getattr(sys.modules[name], "__file__", None)
        if not (file and any(Path(file).is_relative_to(folder) for folder in lasting)):
            del sys.modules[name]


def write(folder: Path, files: Files) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")


def version(spec: str = "task.py:task", **more) -> str:
    """Return the version that a process would find that has just started."""
    kept, path = set(sys.modules), list(sys.path)
    try:
        module, name = user_code.resolve(spec)
        return identity.version(module, name, **more)
    finally:
        forget(kept)
        sys.path[:] = path


def version_elsewhere(spec: str, cwd: Path, **environment: str) -> str:
    """Return the version that another process finds."""
    code = (
        "import sys; from svag.problems import identity, user_code;"
        "print(identity.version(*user_code.resolve(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, spec],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


TASK = "\ndef task():\n    return 1\n"
PACKAGE = {"pkg/__init__.py": "", "pkg/sub/__init__.py": ""}
IN_PACKAGE = "pkg.sub.task:task"

# What is there, how the function is asked for, and the file whose X changes.
REACHED: dict[str, tuple[Files, str, str]] = {
    "the function": ({"task.py": "def task():\n    return X"}, "task.py:task", "task.py"),
    "a function of the same file": (
        {"task.py": "def task():\n    return helper()\n\ndef helper():\n    return X"},
        "task.py:task",
        "task.py",
    ),
    "a file beside it": (
        {"task.py": "from near import x" + TASK, "near.py": "x = X"},
        "task.py:task",
        "near.py",
    ),
    "a file of a file": (
        {"task.py": "import near" + TASK, "near.py": "import far", "far.py": "x = X"},
        "task.py:task",
        "far.py",
    ),
    "a package": (
        {"task.py": "import pkg" + TASK, "pkg/__init__.py": "x = X"},
        "task.py:task",
        "pkg/__init__.py",
    ),
    "a module of a package": (
        {"task.py": "from pkg.near import x" + TASK, "pkg/__init__.py": "", "pkg/near.py": "x = X"},
        "task.py:task",
        "pkg/near.py",
    ),
    "a module from a package": (
        {"task.py": "from pkg import near" + TASK, "pkg/__init__.py": "", "pkg/near.py": "x = X"},
        "task.py:task",
        "pkg/near.py",
    ),
    "import a.b as c": (
        {
            "task.py": "import pkg.near as n" + TASK,
            "pkg/__init__.py": "",
            "pkg/near.py": "x = X",
        },
        "task.py:task",
        "pkg/near.py",
    ),
    "the package on the way": (
        {
            "task.py": "from pkg.near import x" + TASK,
            "pkg/__init__.py": "y=X",
            "pkg/near.py": "x=1",
        },
        "task.py:task",
        "pkg/__init__.py",
    ),
    "the package of the function's module": (
        {**PACKAGE, "pkg/sub/task.py": TASK, "pkg/__init__.py": "x = X"},
        IN_PACKAGE,
        "pkg/__init__.py",
    ),
    "the package of a module that passes a function on": (
        {
            **PACKAGE,
            "pkg/sub/task.py": "from far import task",
            "far.py": TASK,
            "pkg/__init__.py": "X",
        },
        IN_PACKAGE,
        "pkg/__init__.py",
    ),
    "from .x": (
        {**PACKAGE, "pkg/sub/task.py": "from .near import x" + TASK, "pkg/sub/near.py": "x = X"},
        IN_PACKAGE,
        "pkg/sub/near.py",
    ),
    "from . import x": (
        {**PACKAGE, "pkg/sub/task.py": "from . import near" + TASK, "pkg/sub/near.py": "x = X"},
        IN_PACKAGE,
        "pkg/sub/near.py",
    ),
    "from ..x": (
        {**PACKAGE, "pkg/sub/task.py": "from ..far import x" + TASK, "pkg/far.py": "x = X"},
        IN_PACKAGE,
        "pkg/far.py",
    ),
    "from ..x, asked for by its file": (
        {**PACKAGE, "pkg/sub/task.py": "from ..far import x" + TASK, "pkg/far.py": "x = X"},
        "pkg/sub/task.py:task",
        "pkg/far.py",
    ),
    "from .. import x": (
        {**PACKAGE, "pkg/sub/task.py": "from .. import far" + TASK, "pkg/far.py": "x = X"},
        IN_PACKAGE,
        "pkg/far.py",
    ),
    "absolutely out of a subfolder": (
        {**PACKAGE, "pkg/sub/task.py": "from pkg.far import x" + TASK, "pkg/far.py": "x = X"},
        IN_PACKAGE,
        "pkg/far.py",
    ),
    "absolutely out of a subfolder, asked for by its file": (
        {**PACKAGE, "pkg/sub/task.py": "from pkg.far import x" + TASK, "pkg/far.py": "x = X"},
        "pkg/sub/task.py:task",
        "pkg/far.py",
    ),
    "inside a function": (
        {"task.py": "def task():\n    from near import x", "near.py": "x = X"},
        "task.py:task",
        "near.py",
    ),
    "inside a function of an imported file": (
        {
            "task.py": "import near" + TASK,
            "near.py": "def f():\n    import far",
            "far.py": "x = X",
        },
        "task.py:task",
        "far.py",
    ),
    "import_module of a name in a function": (
        {
            "task.py": "import importlib\ndef task():\n    importlib.import_module('pkg.near')",
            "pkg/__init__.py": "",
            "pkg/near.py": "x = X",
        },
        "task.py:task",
        "pkg/near.py",
    ),
    "import_module of a relative name in a function": (
        {
            **PACKAGE,
            "pkg/sub/task.py": "from importlib import import_module\n"
            "def task():\n    import_module('..far', __package__)",
            "pkg/far.py": "x = X",
        },
        IN_PACKAGE,
        "pkg/far.py",
    ),
    "a module held in a global": (
        {
            "task.py": "import importlib\ntool = importlib.import_module('ne' + 'ar')" + TASK,
            "near.py": "x = X",
        },
        "task.py:task",
        "near.py",
    ),
    "a function held in a global": (
        {
            "task.py": "import importlib\ntool = importlib.import_module('ne' + 'ar').f" + TASK,
            "near.py": "def f():\n    return X",
        },
        "task.py:task",
        "near.py",
    ),
    "an object in a dictionary": (
        {
            "task.py": "import importlib\ntools = {'a': importlib.import_module('ne' + 'ar').C()}"
            + TASK,
            "near.py": "class C:\n    x = X",
        },
        "task.py:task",
        "near.py",
    ),
    "a partial of a function": (
        {
            "task.py": "import importlib, functools\n"
            "tool = functools.partial(importlib.import_module('ne' + 'ar').f, 1)" + TASK,
            "near.py": "def f(y):\n    return X",
        },
        "task.py:task",
        "near.py",
    ),
    "a file loaded by its path": (
        {
            "task.py": "import importlib.util as u\n"
            "s = u.spec_from_file_location('plug', 'plugins/near.py')\n"
            "m = u.module_from_spec(s)\ns.loader.exec_module(m)" + TASK,
            "plugins/near.py": "x = X",
        },
        "task.py:task",
        "plugins/near.py",
    ),
    "plugins that a package finds": (
        {
            "task.py": "import pkg" + TASK,
            "pkg/__init__.py": "import importlib, pkgutil\n"
            "for found in pkgutil.iter_modules(__path__):\n"
            "    importlib.import_module(f'{__name__}.{found.name}')",
            "pkg/near.py": "x = X",
        },
        "task.py:task",
        "pkg/near.py",
    ),
    "import *": (
        {"task.py": "from near import *" + TASK, "near.py": "x = X"},
        "task.py:task",
        "near.py",
    ),
    "import * of modules": (
        {
            "task.py": "from pkg import *" + TASK,
            "pkg/__init__.py": "__all__ = ['near']",
            "pkg/near.py": "x = X",
        },
        "task.py:task",
        "pkg/near.py",
    ),
    "a folder without __init__.py": (
        {"task.py": "from space.near import x" + TASK, "space/near.py": "x = X"},
        "task.py:task",
        "space/near.py",
    ),
    "folders without __init__.py in a function": (
        {"task.py": "def task():\n    import space.deep.near", "space/deep/near.py": "x = X"},
        "task.py:task",
        "space/deep/near.py",
    ),
    "what is tried first": (
        {
            "task.py": "try:\n    import near\nexcept ImportError:\n    import far" + TASK,
            "near.py": "x = X",
        },
        "task.py:task",
        "near.py",
    ),
    "what is tried instead": (
        {
            "task.py": "try:\n    import no_such_module\nexcept ImportError:\n    import far"
            + TASK,
            "far.py": "x = X",
        },
        "task.py:task",
        "far.py",
    ),
    "a circle": (
        {
            "task.py": "import near" + TASK,
            "near.py": "import far",
            "far.py": "import near, task\nx = X",
        },
        "task.py:task",
        "far.py",
    ),
    "a module on sys.path": (
        {"task.py": "import near" + TASK, "library/near.py": "x = X"},
        "task.py:task",
        "library/near.py",
    ),
}


@pytest.mark.parametrize("case", REACHED)
def test_a_change_makes_another_version(case, home):
    files, spec, changed = REACHED[case]
    if any(name.startswith("library") for name in files):
        sys.path.append(str(home / "library"))
    versions = []
    for value in ("1", "2", "1"):
        write(home, {**files, changed: files[changed].replace("X", value)})
        versions.append(version(spec))
    assert versions[0] != versions[1]
    assert versions[0] == versions[2]


@pytest.mark.parametrize(
    "case",
    [
        "inside a function",
        "a module held in a global",
        "from ..x",
        "absolutely out of a subfolder, asked for by its file",
    ],
)
def test_another_process_finds_the_same_version(case, home):
    files, spec, changed = REACHED[case]
    write(home, {**files, changed: files[changed].replace("X", "1")})
    assert version_elsewhere(spec, home) == version(spec)


def test_a_module_on_pythonpath(home):
    write(home, {"task.py": "import near" + TASK, "library/near.py": "x = 1"})
    spec = f"{home / 'task.py'}:task"
    there = {"PYTHONPATH": str(home / "library"), "PYTHONDONTWRITEBYTECODE": ""}
    first = version_elsewhere(spec, home, **there)
    assert list((home / "library/__pycache__").glob("*.pyc"))
    assert version_elsewhere(spec, home.parent, **there) == first
    write(home, {"library/near.py": "x = 2"})
    assert version_elsewhere(spec, home, **there) != first


DOCUMENTED = '''"""What it is."""
import near

class C:
    """A class."""

    x: int = 1
    """An attribute."""

    def f(self):
        """Do nothing."""


def task():
    """Return 'one'."""
    y = "o" + 'n' + "e"; return (y, [1, 2], C)
'''
# The same in other words.
WRITTEN = {
    "comments": DOCUMENTED.replace("x: int = 1", "x: int = 1  # one\n    # more"),
    "blank lines": DOCUMENTED.replace("\n\n", "\n\n\n\n"),
    "docstrings changed": DOCUMENTED.replace("What it is", "It").replace("Do n", "N"),
    "docstrings away": """import near
class C:
    x: int = 1
    def f(self):
        pass
def task():
    y = "o" + 'n' + "e"; return (y, [1, 2], C)
""",
    "formatting": DOCUMENTED.replace(
        """    y = "o" + 'n' + "e"; return (y, [1, 2], C)""",
        """    y = (\n        'o'\n        + "n"\n        + 'e')\n    return y, [1, 2,], C""",
    ),
    "tabs": DOCUMENTED.replace("    ", "\t"),
    "Windows line ends": DOCUMENTED.replace("\n", "\r\n"),
    "a byte order mark": f"\ufeff{DOCUMENTED}",
    "an encoding": f"# -*- coding: utf-8 -*-\n{DOCUMENTED}",
}


@pytest.mark.parametrize("case", WRITTEN)
@pytest.mark.parametrize("place", ["task.py", "near.py"])
def test_how_it_is_written_does_not_count(case, place, home):
    here = {"task.py": DOCUMENTED, "near.py": DOCUMENTED.replace("import near", "")}
    write(home, here)
    first = version()
    text = WRITTEN[case]
    write(home, {place: text if place == "task.py" else text.replace("import near", "")})
    assert version() == first


def test_another_encoding_of_the_same_text(home):
    text = "x = 'Stra\u00dfe'" + TASK
    write(home, {"task.py": text})
    first = version()
    (home / "task.py").write_bytes(f"# coding: latin-1\n{text}".encode("latin-1"))
    assert version() == first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 'a'", "x = b'a'"),
        ("x = '1'", "x = 1"),
        ("x = None", "x = 'None'"),
        ("x = -1", "x = ~1"),
        ("if y: a(); b()", "if y: a()\nb()"),
        ("if y: pass\nelse: a()", "if y: a()"),
        ("f(a, [b])", "f(a, b)"),
        ("f(a, b)", "f([a, b])"),
        ("x = {**a, 'b': c}", "x = {'b': c, **a}"),
        ("x = 'one' 'two'", "x = 'one', 'two'"),
        ("def f(a, /): pass", "def f(a): pass"),
        ("x = f'{a!r}'", "x = f'{a}'"),
        ("import a as b", "import b as a"),
        ("from .a import b", "from ..a import b"),
        ("x: int = 1", "x: float = 1"),
        ("for x in y: pass\nelse: a()", "for x in y: a()"),
    ],
)
def test_code_that_differs_is_told_apart(one, other, home):
    def with_unused(code):  # it is read, not run
        write(home, {"task.py": "def task():\n    import near", "near.py": code})
        return version()

    assert with_unused(one) != with_unused(other)


def test_long_chains_of_operators(home):
    write(home, {"task.py": "x = " + " + ".join(["1"] * 900) + TASK})
    first = version()
    write(home, {"task.py": "x = " + " + ".join(["1"] * 899) + TASK})
    assert version() != first


def test_numbers_of_many_digits(home):
    write(home, {"task.py": "x = 0x" + "F" * 5000 + TASK})
    first = version()
    write(home, {"task.py": "x = 0x" + "E" * 5000 + TASK})
    assert version() != first


def test_moving_it_does_not_count(home):
    files, spec, _ = REACHED["a file of a file"]
    write(home, files | {"far.py": "x = 1"})
    first = version(spec)
    shutil.copytree(home, home.parent / "elsewhere" / "deep")
    assert version(f"{home.parent}/elsewhere/deep/task.py:task") == first
    (home / "task.py").rename(home / "renamed.py")
    assert version("renamed.py:task") == first


def test_the_working_directory_and_the_way_to_ask_do_not_count(home, monkeypatch):
    write(home, {"task.py": "import near" + TASK, "near.py": "import task"})
    write(home, {"pkg/__init__.py": "", "pkg/task.py": "from . import near" + TASK})
    write(home, {"pkg/near.py": "x = 1"})
    first, packaged = version("task.py:task"), version("pkg/task.py:task")
    assert version("task:task") == first
    assert version("pkg.task:task") == packaged
    monkeypatch.chdir(home.parent)
    assert version("home/task.py:task") == first
    assert version(f"{home}/pkg/task.py:task") == packaged


def test_a_link_is_what_it_points_to(home):
    write(home, {"real/task.py": "import near" + TASK, "real/near.py": "x = 1"})
    (home / "task.py").symlink_to("real/task.py")
    (home / "linked").symlink_to("real")
    first = version("real/task.py:task")
    assert version("task.py:task") == first
    assert version("linked/task.py:task") == first
    write(home, {"real/near.py": "x = 2"})
    assert version("task.py:task") != first


UNRELATED: dict[str, tuple[Files, str]] = {
    "a file beside it": ({"task.py": TASK}, "other.py"),
    "what only type checkers import": (
        {
            "task.py": "import typing as t\nfrom typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import other\nif t.TYPE_CHECKING:\n    import other" + TASK,
        },
        "other.py",
    ),
    "a module called as one of Python's own": (
        {"task.py": "import statistics" + TASK},
        "statistics.py",
    ),
    "a module called as one that is installed": ({"task.py": "import numpy" + TASK}, "numpy.py"),
    "another module of a package": (
        {"task.py": "import pkg.near" + TASK, "pkg/__init__.py": "", "pkg/near.py": ""},
        "pkg/other.py",
    ),
    "an installed package": (
        {"task.py": "import other" + TASK, "site-packages/other.py": "x = 1"},
        "site-packages/other.py",
    ),
    "a package that pip has put into a folder": (
        {"task.py": "import other" + TASK, "target/other.py": "x = 1", "target/o.dist-info/R": ""},
        "target/other.py",
    ),
}


@pytest.mark.parametrize("case", UNRELATED)
def test_what_is_not_reached_does_not_count(case, home):
    files, unrelated = UNRELATED[case]
    sys.path += [str(home / "site-packages"), str(home / "target")]
    write(home, files)
    first = version()
    write(home, {unrelated: "x = 2"})
    assert version() == first


def test_two_functions_of_one_file(home):
    write(home, {"task.py": "def task():\n    pass\n\nother = task"})
    assert version("task.py:task") != version("task.py:other")


def test_salt(home):
    write(home, {"task.py": TASK})
    assert len({version(salt="1"), version(salt="2"), version(salt="")}) == 3


def test_two_modules_that_change_places(home):
    write(home, {"task.py": "import near, far" + TASK, "near.py": "x = 1", "far.py": "x = 2"})
    first = version()
    write(home, {"near.py": "x = 2", "far.py": "x = 1"})
    assert version() != first


def test_two_modules_of_two_packages_that_change_places(home):
    write(home, {"task.py": "import one.near, two.near" + TASK})
    write(home, {"one/near.py": "x = 1", "two/near.py": "x = 2"})
    first = version()
    write(home, {"one/near.py": "x = 2", "two/near.py": "x = 1"})
    assert version() != first


def test_a_package_says_no_more_than_a_folder_where_its_file_is_empty(home):
    write(home, {"task.py": "import space.near" + TASK, "space/near.py": "x = 1"})
    first = version()
    write(home, {"space/__init__.py": '"""Nothing."""  # yet'})
    assert version() == first


def test_what_else_this_process_has_loaded_does_not_count(home):
    files = {
        "task.py": "import pkg\ndef task():\n    import late",
        "pkg/__init__.py": "",
        "pkg/other.py": "x = 1",
        "late.py": "import importlib\nfar = importlib.import_module('f' + 'ar')",
        "far.py": "x = 1",
    }
    write(home, files)
    first = version()
    sys.path.append(str(home))
    importlib.import_module("pkg.other")
    importlib.import_module("late")
    assert version() == first


def test_a_module_without_its_source(home):
    def compiled(code):
        write(home, {"source.py": code})
        py_compile.compile("source.py", "near.pyc", "near.py")
        (home / "source.py").unlink()
        return version()

    write(home, {"task.py": "import near" + TASK})
    assert compiled("x = 1") != compiled("x = 2")


def test_a_module_in_an_archive(home):
    def zipped(code):
        with zipfile.ZipFile("library.zip", "w") as archive:
            archive.writestr("near.py", code)
        sys.path_importer_cache.clear()
        return version()

    sys.path.append(str(home / "library.zip"))
    write(home, {"task.py": "import near" + TASK})
    assert zipped("x = 1") != zipped("x = 2")
    assert zipped("x = 1") == zipped("x = 1  # the same")


class Editable:
    """A finder as editable installs put it on ``sys.meta_path``."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.file) if name == self.name else None


@pytest.mark.parametrize("task", ["import mine" + TASK, "def task():\n    import mine"])
def test_an_editable_install(task, home, monkeypatch):
    write(home, {"task.py": task, "project/src/mine.py": "x = 1"})
    finder = Editable("mine", home / "project/src/mine.py")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    first = version()
    write(home, {"project/src/mine.py": "x = 2"})
    assert version() != first


def test_a_function_of_an_installed_package(home):
    sys.path.append(str(home / "site-packages"))
    write(home, {f"site-packages/{name}": text for name, text in PACKAGE.items()})
    write(home, {"site-packages/pkg/sub/task.py": "from ..far import x" + TASK})
    write(home, {"site-packages/pkg/far.py": "x = 1"})
    first = version(IN_PACKAGE)
    write(home, {"site-packages/pkg/far.py": "x = 2"})
    assert version(IN_PACKAGE) != first


def test_a_problem_of_another_file(home):
    get = "from svag.problems.user_code import resolve\nother = resolve('deep/other.py:f')"
    write(home, {"task.py": get + TASK, "deep/other.py": "def f():\n    return 1"})
    first = version()
    shutil.copytree(home, home.parent / "copy")
    os.chdir(home.parent / "copy")
    assert version() == first
    write(home.parent / "copy", {"deep/other.py": "def f():\n    return 2"})
    assert version() != first


# --- declared files


def test_declared_files(home, monkeypatch):
    write(home, {"task.py": TASK, "data/a.csv": "1", "data/deep/b.csv": "2", "c.csv": "3"})
    before = {
        paths: version(depends_on=paths) for paths in [("c.csv",), ("data",), ("data/a.csv",)]
    }
    assert len({*before.values(), version()}) == 4
    monkeypatch.chdir(home.parent)
    assert version("home/task.py:task", depends_on=("c.csv",)) == before["c.csv",]
    monkeypatch.chdir(home)
    assert version(depends_on=(home / "c.csv",)) == before["c.csv",]
    write(home, {"data/deep/b.csv": "4", "c.csv": "5"})
    after = {paths: version(depends_on=paths) for paths in before}
    assert [after[paths] == before[paths] for paths in before] == [False, False, True]


def test_a_declared_folder_has_its_links_followed_and_its_names_counted(home):
    write(home, {"task.py": TASK, "data/a.csv": "1", "elsewhere/b.csv": "2"})
    first = version(depends_on=("data",))
    (home / "data/link").symlink_to(home / "elsewhere")
    (home / "data/loop").symlink_to(home / "data")
    os.mkfifo(home / "data/pipe")
    second = version(depends_on=("data",))
    write(home, {"elsewhere/b.csv": "3"})
    third = version(depends_on=("data",))
    (home / "data/a.csv").rename(home / "data/d.csv")
    assert len({first, second, third, version(depends_on=("data",))}) == 4


def test_declared_files_lie_where_the_function_is_defined(home):
    write(home, {"pkg/__init__.py": "from pkg.deep.real import task", "pkg/deep/real.py": TASK})
    write(home, {"pkg/deep/a.csv": "1"})
    first = version("pkg:task", depends_on=("a.csv",))
    write(home, {"pkg/deep/a.csv": "2"})
    assert version("pkg:task", depends_on=("a.csv",)) != first


def test_a_declared_file_that_is_missing(home):
    write(home, {"task.py": TASK})
    with pytest.raises(ProblemError) as caught:
        version(depends_on=("a.csv",))
    assert f"no file or folder {home / 'a.csv'}" in str(caught.value)


# --- what is refused


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"x = 1\nx = = 1", "near.py:2 is not Python that can be read (invalid syntax)"),
        (b"x = '\0'", "near.py"),
        (b"x = '\xff'", "near.py"),
        (b"x = " + b"(" * 5000, "near.py"),
        (b"x = " + b"-" * 10_000 + b"1", "near.py"),
        (b"# coding: no-such-coding\n", "near.py"),
    ],
)
def test_a_file_that_is_not_python(code, words, home):
    write(home, {"task.py": "def task():\n    import near"})
    (home / "near.py").write_bytes(code)
    with pytest.raises(ProblemError, match="is not Python that can be read") as caught:
        version()
    assert words in str(caught.value)


def test_a_module_that_has_changed_since_it_was_imported(home):
    write(home, {"task.py": "import near" + TASK, "near.py": "x = 1"})
    target = user_code.resolve("task.py:task")
    first = identity.version(*target)
    write(home, {"near.py": "x = 1  # as before"})
    assert identity.version(*target) == first
    write(home, {"near.py": "x = 20"})
    with pytest.raises(ProblemError, match=r"near.py has changed since this process imported it"):
        identity.version(*target)
    importlib.reload(sys.modules["near"])
    assert identity.version(*target) != first


def test_two_modules_of_one_name(home):
    for folder in ("one", "two"):
        write(home, {f"{folder}/task.py": "import near" + TASK, f"{folder}/near.py": "x = 1"})
    one, two = (user_code.resolve(f"{folder}/task.py:task") for folder in ("one", "two"))
    assert identity.version(*one)
    with pytest.raises(ProblemError, match="rename one of them") as caught:
        identity.version(*two)
    assert str(home / "one/near.py") in str(caught.value)
    assert str(home / "two/near.py") in str(caught.value)
