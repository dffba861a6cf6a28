"""Problems by name, file and module, and what is said when that fails."""

import pickle
import re

import pytest

from svag.errors import InvalidOption, ProblemError, UnknownName
from svag.problems import PROBLEMS, get, load
from svag.problems.names import check_name

GOOD = """
from torch import nn
from svag.problems import Problem

def mine():
    return Problem(name="mine", description="", model=build, load=read,
                   batch_size=BATCH, steps=1, quick_steps=1)

def build():
    return nn.Linear(1, 1)

def read(folder):
    raise SystemExit("no data")

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
    assert problem.version == get(PROBLEMS[name]).version
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
    assert "Did you mean 'mine'? Functions there: mine, build, read" in text
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


def test_a_version_that_is_raised_changes_the_identity(write):
    versions = set()
    for number in ("1", "2"):
        path = write(GOOD.replace("steps=1,", f"steps=1, version='{number}',", 1))
        versions.add(get(f"{path}:mine").version)
    assert len(versions) == 2


def test_one_problem_of_two_functions(write):
    path = write(GOOD + "\ndef other():\n    return mine()\n")
    one, other = get(f"{path}:mine"), get(f"{path}:other")
    assert one.name == other.name
    assert one.version != other.version


DRAWN = """
import random
import numpy as np
import torch
from torch import nn
from svag.problems import Data, Problem, Split

AT_IMPORT = torch.rand(3)

def draw():
    return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])

def task():
    in_function = draw()

    def read(folder):
        return Data(Split(draw(), AT_IMPORT), Split(draw(), in_function))

    return Problem(name="drawn", description="", model=lambda: nn.Linear(1, 1), load=read,
                   batch_size=1, steps=1, quick_steps=1)
"""


def test_what_is_drawn_without_a_seed_is_the_same_at_every_call(write):
    path = write(DRAWN)
    fingerprints = set()
    for _ in range(2):
        problem = get(f"{path}:task")
        fingerprints |= {load(problem).fingerprint for _ in range(2)}
    assert len(fingerprints) == 1


def test_data_that_cannot_be_loaded(write):
    path = write(GOOD)
    with pytest.raises(ProblemError) as caught:
        load(get(f"{path}:mine"))
    assert str(caught.value) == (
        f"the data of 'mine' could not be loaded: SystemExit: no data ({path}:13)"
    )


@pytest.mark.parametrize("by_file", [True, False])
def test_an_error_inside_torch_names_the_line_of_the_user(by_file, write, monkeypatch):
    source = "import torch\n\ndef mine():\n    return torch.nn.Linear(2, -1)"
    path = write(source, f"own_line_{by_file}.py")
    monkeypatch.chdir(path.parent)
    assert f"({path}:4)" in message(f"{path if by_file else path.stem}:mine")


def test_an_error_of_a_helper_names_the_line_of_the_helper(write):
    helper = write("import json\n\ndef f():\n    return json.loads('{')", "helper_that_raises.py")
    path = write("from helper_that_raises import f as mine")
    assert f"({helper}:4)" in message(f"{path}:mine")


def test_a_relative_import_of_a_file_in_no_package(write):
    text = message(f"{write('from . import near')}:mine")
    assert "attempted relative import with no known parent package" in text
    assert "its folder has no __init__.py; add one" in text


def test_a_declared_file_is_part_of_the_version(write):
    path = write(GOOD.replace("steps=1,", "steps=1, depends_on=('table.csv',),", 1))
    assert "no file or folder" in message(f"{path}:mine")
    table = write("1", "table.csv")
    before = get(f"{path}:mine").version
    assert get(f"{path}:mine").version == before
    table.write_text("2")
    assert get(f"{path}:mine").version != before


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", "con/..", ".hidden", "a\x1b[31m", "a\nb", "a\0", " a", "a.", "a ", "-a",
     "a:b", "x" * 81, "\U0001d54f" * 60, "\u202e", "\ud800", None, 3],
)  # fmt: skip
def test_a_name_that_no_folder_can_have(name, write):
    with pytest.raises(InvalidOption) as caught:
        check_name(name)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith("name=")
    assert len(text) < 400
    path = write(GOOD.replace('"mine"', repr(name)))
    assert "InvalidOption: name=" in message(f"{path}:mine")


@pytest.mark.parametrize("name", ["a", "_", "7", "CIFAR-10 wide", "a+b_c.d", "Straße", "x" * 80])
def test_a_name_that_a_folder_can_have(name, write):
    path = write(GOOD.replace('"mine"', repr(name)))
    assert get(f"{path}:mine").name == name
