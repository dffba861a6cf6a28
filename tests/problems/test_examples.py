"""The example files run, and problems among them can be trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab.made import run_of

from svag.lab.records import find
from svag.lab.train import train
from svag.problems import get, load

EXAMPLES = Path(__file__).parents[2] / "examples"
PROBLEM_FILES = {
    "breast_cancer.py": "breast_cancer",
    "diabetes.py": "diabetes",
    "own_step.py": "own_step",
    "transformer_text.py": "transformer_text",
}
SCRIPTS = {path.name for path in EXAMPLES.glob("*.py")} - set(PROBLEM_FILES)


@pytest.mark.parametrize("file", PROBLEM_FILES)
def test_problem(file, tmp_path):
    """Some steps of a real run, from the loaded data to the record, learn something."""
    problem = get(f"{EXAMPLES / file}:{PROBLEM_FILES[file]}")
    data = load(problem)
    run = run_of(problem, data, steps=40, eval_every=20)
    train(problem, data, run, tmp_path)
    record = find(tmp_path, run)
    assert record.status == "done", record.end
    assert record.merit > record.merit_at_start
    assert f"validation_{problem.judged_by(data).name}" in record.end


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
