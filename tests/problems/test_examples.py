"""The example files run, and problems among them can be trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svag.problems import get

EXAMPLES = Path(__file__).parents[2] / "examples"
PROBLEM_FILES = {"breast_cancer.py": "breast_cancer"}
SCRIPTS = {path.name for path in EXAMPLES.glob("*.py")} - set(PROBLEM_FILES)


@pytest.mark.parametrize("file", PROBLEM_FILES)
def test_problem(file):
    problem = get(f"{EXAMPLES / file}:{PROBLEM_FILES[file]}")
    data = problem.load(None)
    assert len(data.train) > len(data.test) > 0
    outputs = problem.model()(data.train.inputs[: problem.batch_size])
    assert problem.loss(outputs, data.train.targets[: problem.batch_size]).item() > 0


@pytest.mark.parametrize("file", sorted(SCRIPTS))
def test_script(file):
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / file],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    accuracy = float(run.stdout.split()[-1].rstrip("%"))
    assert accuracy > 95
