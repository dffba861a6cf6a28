"""Makes the records of docs/dissect.md: what training says, and what a dissection predicts.

For every problem a study (``svag compare``) and three dissections (``svag dissect``): at
initialisation, and after 5 % and 25 % of training with M-SGD at the step size that the study chose.
What is there is not made again, so the same command goes on after an interruption:

    python results/dissect/run.py WORK [NAME ...]

WORK is a folder for the studies' records, which are large; the results are next to this file:
NAME/compare.json and NAME/at-0, at-5, at-25/dissect.jsonl.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from svag.analysis.study import Analysis, analyse

HERE = Path(__file__).parent
PAPER_STEP_SIZES = {"fmnist_2c2d": HERE.parent / "paper-step-sizes" / "fmnist-2c2d"}
"""Studies that are there already, at step sizes that the paper's authors searched for."""
OWN = (
    "wine",
    "iris_linear",
    "digits_dense",
    "digits_transformer",
    "digits_autoencoder",
    "picture",
)
PROBLEMS = {
    "digits": "digits",
    "stdlib_chars": "stdlib-chars",
    "breast_cancer": "examples/breast_cancer.py:breast_cancer",
    "diabetes": "examples/diabetes.py:diabetes",
    **{name: f"results/dissect/problems.py:{name}" for name in OWN},
    "fmnist_2c2d": "fmnist-2c2d",
    **{f"quadratic_{n:02d}": f"results/dissect/problems.py:quadratic_{n:02d}" for n in range(20)},
}
POINTS = (0, 5, 25)
BUDGET, DRAWS = "3m", "24"
RACE = 5  # a training of the race has at most a fifth of the steps


def svag(*words: str) -> str:
    """Run a command of svag and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "svag", *words], stdout=subprocess.PIPE, check=True, text=True
    )
    return done.stdout


def study(name: str, work: Path) -> dict[str, Any]:
    """Return the outcome of a problem's study, which is made if it is not there."""
    path = HERE / name / "compare.json"
    if not path.exists():
        if name in PAPER_STEP_SIZES:
            found = outcome(analyse(PAPER_STEP_SIZES[name]))
        else:
            quiet = ("--workers", "1", "--device", "cpu", "--quiet", "--json")
            text = svag("compare", PROBLEMS[name], *quiet, "--out", str(work / name))
            told = json.loads(text)
            found = {**outcome(analyse(work / name, told["study"])), **told}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def outcome(analysis: Analysis) -> dict[str, Any]:
    """Return what predictions are held against."""
    return {
        "study": analysis.study.id,
        "steps": analysis.study.base.steps,
        "methods": {key: {"lr": one.lr} for key, one in analysis.methods.items()},
        "on_train_loss": {
            effect: {"estimate": one.estimate, "interval": one.interval}
            for effect, one in analysis.effects["train_loss"].items()
        },
    }


def dissect(name: str, point: int, told: dict[str, Any]) -> None:
    """Dissect a problem at a point of training, in percent, unless that is there."""
    out = HERE / name / f"at-{point}"
    lr = told["methods"]["m-sgd"]["lr"]
    if (out / "dissect.jsonl").exists() or lr is None:
        return
    steps = round(point / 100 * told["steps"])
    points = ("--after", str(steps), "--with", "m-sgd", "--lr", str(lr)) if steps else ()
    lengths = ("--steps", str(told["steps"]), "--race-steps", str(told["steps"] // RACE))
    measured = ("--budget", BUDGET, "--draws", DRAWS, "--no-variants", "--device", "cpu")
    svag("dissect", PROBLEMS[name], *points, *lengths, *measured, "--out", str(out), "--quiet")
    (out / "dissect.html").unlink()  # it can be made again from the records


def main() -> None:
    """Make what is missing."""
    work, names = Path(sys.argv[1]), sys.argv[2:] or list(PROBLEMS)
    outcomes = {}
    for name in names:
        print(name, flush=True)
        outcomes[name] = study(name, work)
        for point in POINTS:
            dissect(name, point, outcomes[name])


if __name__ == "__main__":
    main()
