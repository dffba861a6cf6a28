"""Problems by name, file and module, and what is said when that fails."""

import pickle
import re
import subprocess
import sys

import pytest

from svag.errors import ProblemError, UnknownName
from svag.problems import PROBLEMS, Problem, get

GOOD = """
from torch import nn
from svag.problems import Problem

def mine():
    return Problem(name="mine", description="", model=build, load=None,
                   batch_size=BATCH, steps=1, quick_steps=1)

def build():
    return nn.Linear(1, 1)

BATCH = 2
"""


@pytest.fixture
def write(tmp_path):
    def write(source, name="task.py"):
        path = tmp_path / name
        path.write_text(source)
        return path

    return write


def message(spec, error=ProblemError):
    with pytest.raises(error) as caught:
        get(spec)
    text = str(caught.value)
    assert "\n" not in text
    assert spec in text
    return text


@pytest.mark.parametrize("name", PROBLEMS)
def test_built_in(name):
    problem = get(name)
    assert problem.name == name
    assert problem.version == get(PROBLEMS[name]).version == Problem.version
    assert problem.description
    assert isinstance(problem.model().state_dict(), dict)


def test_file(write, monkeypatch):
    path = write(GOOD)
    problem = get(f"{path}:mine")
    assert (problem.name, problem.batch_size) == ("mine", 2)
    assert re.fullmatch("[0-9a-f]{12}", problem.version)
    assert pickle.loads(pickle.dumps(problem)) == problem
    monkeypatch.chdir(path.parent)
    assert get("task.py:mine").version == problem.version


def test_an_edit_takes_effect_at_once_and_changes_the_version(write):
    path = write(GOOD)
    before = get(f"{path}:mine")
    write(GOOD.replace("BATCH = 2", "BATCH = 3"))
    after = get(f"{path}:mine")
    assert after.batch_size == 3
    assert after.version != before.version


def test_file_with_a_helper_beside_it(write, monkeypatch):
    write("BATCH = 5", "helper_of_task.py")
    path = write("from helper_of_task import BATCH" + GOOD.replace("BATCH = 2", ""))
    assert get(f"{path}:mine").batch_size == 5


def test_module(write, monkeypatch):
    path = write(GOOD, "task_as_module.py")
    monkeypatch.chdir(path.parent)
    problem = get("task_as_module:mine")
    assert problem.version == get(f"{path}:mine").version


def test_unknown_name():
    text = message("digit", UnknownName)
    assert "Did you mean 'digits'?" in text
    assert all(name in text for name in PROBLEMS)
    assert "path/to/file.py:function" in text
    assert "Did you mean" not in message("zzz", UnknownName)


@pytest.mark.parametrize("spec", ["", ":", "file.py", "file.py:", ":function"])
def test_incomplete_spec(spec):
    assert "file.py:function" in message(spec, UnknownName)


def test_missing_file(tmp_path):
    assert f"there is no file {str(tmp_path / 'no.py')!r}" in message(f"{tmp_path}/no.py:mine")


@pytest.mark.parametrize("module", ["no_such_module", "svag.no_such_module", "svag.errors.no"])
def test_missing_module(module):
    text = message(f"{module}:mine")
    assert f"there is no module {module!r}" in text
    assert "path/to/file.py:function" in text


def test_folder_as_module(tmp_path, monkeypatch):
    (tmp_path / "folder_of_tasks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "is a folder" in message("folder_of_tasks:mine")


def test_missing_function(write):
    text = message(f"{write(GOOD)}:mime")
    assert "'mime' does not exist" in text
    assert "Did you mean 'mine'? Functions there: mine, build" in text
    assert "'BATCH' is not a function" in message(f"{write(GOOD)}:BATCH")


def test_function_raises(write):
    path = write("import json\n\ndef mine():\n    return json.loads('{')\n")
    text = message(f"{path}:mine")
    assert "JSONDecodeError: Expecting property name" in text
    assert f"({path}:4)" in text  # the user's line, not json's
    with pytest.raises(ProblemError) as caught:
        get(f"{path}:mine")
    assert isinstance(caught.value.__cause__, ValueError)


def test_problem_with_a_wrong_value(write):
    path = write(GOOD.replace("steps=1,", "steps=0,"))
    text = message(f"{path}:mine")
    assert "InvalidOption: steps=0" in text
    assert f"({path}:6)" in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("x = 1\nimport no_such_module\n", "ModuleNotFoundError: No module named"),
        ("x = 1\nraise SystemExit('bye')\n", "SystemExit: bye"),
        ("x = 1\ndef mine(:\n", "SyntaxError: invalid syntax"),
    ],
)
def test_file_raises(write, source, words):
    path = write(source)
    text = message(f"{path}:mine")
    assert "the file could not be run" in text
    assert words in text
    assert f"({path}:2)" in text


def test_module_raises(write, monkeypatch):
    path = write("import no_such_module\n", "task_that_raises.py")
    monkeypatch.chdir(path.parent)
    text = message("task_that_raises:mine")
    assert "could not be imported: ModuleNotFoundError: No module named 'no_such_module'" in text
    assert f"({path}:1)" in text


def test_something_else_returned(write):
    assert "returned dict instead of svag.problems.Problem" in message(
        f"{write('def mine(): return {}')}:mine"
    )


TASK = """
from helper import CLASSES
from svag.problems import get

def task():
    from dataclasses import replace
    return replace(get("digits"), name=f"digits of {CLASSES}", version=VERSION)

VERSION = "1"
"""


def test_the_version_covers_what_the_file_imports_and_nothing_else(tmp_path):
    file = tmp_path / "task.py"
    file.write_text(TASK)
    (tmp_path / "helper.py").write_text("from deeper import CLASSES")
    (tmp_path / "deeper.py").write_text("CLASSES = 10")
    (tmp_path / "other.py").write_text("")

    def version():
        code = f"from svag.problems import get; print(get({f'{file}:task'!r}).version)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return done.stdout

    first = version()
    assert version() == first
    (tmp_path / "other.py").write_text("1")
    assert version() == first
    (tmp_path / "deeper.py").write_text("CLASSES = 9 + 1")
    second = version()
    assert second != first
    file.write_text(TASK.replace('"1"', '"2"'))
    assert version() not in (first, second)
