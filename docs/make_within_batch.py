"""Write ``docs/within_batch.md`` from the records in ``results/within-batch``.

Run ``python docs/make_within_batch.py`` from the repository's root; it takes a second.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from svag.analysis.results import Trial
from svag.analysis.study import analyse
from svag.entrants import entrant
from svag.lab.records import Record, load
from svag.report.tables import rows

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE.parent / "results" / "within-batch"
PAGE: Final = HERE / "within_batch.md"

_INTRODUCTION = """\
# Two estimates of the gradient's variance

Adam, SVAG and M-SVAG estimate the variance of a gradient from its moving averages, over time.
The examples of one mini-batch hold the same variance (§4.1 of the paper), and
`variance="within-batch"` takes it from there. While such a method trains, the lab notes how
alike the factors gamma are that the two estimates lead to: Pearson's correlation over the
entries of each parameter, with m the same for both.

What the tables show:

- Both variants train, at step sizes that are alike. On digits the within-batch variant ends
  where the moving averages do at 0.3, and swings more at 1, which its search prefers; on P1
  after 1,000 steps the two variants of either method are within a point at 0.3.
- In the layers next to the output the two factors agree, and more so at the smaller step size.
- Further from the output they agree in some evaluations and not at all in others. These tables do
  not say which of the two is closer to the truth at such a step.

What each of the two is on average is known (`svag.theory.drift`,
[theory.md](theory.md#drift-and-dependence)), and neither is the variance of m where gradients
change or depend on one another:

- Moving averages count drift as noise: E[s] = sigma^2 + (weighted variance of the path of the true
  gradient)/(1 - rho). A gradient that changes by b a step adds 95 b^2 at beta = 0.9, so that a
  change of a tenth of sigma a step doubles s. Where the gradient has no noise at all they still see
  some, and shorten the step: Wilson et al.'s data.
- A mini-batch sees the noise of its step only. r_t, the sum of c_s^2 s_s, is the variance of m if
  successive gradients are independent. It is too large where they take back each other's noise:
  1.8 times along a stationary path of SGD with step size times curvature 0.1, though 0.997 times
  along that of M-SGD; and where epochs are drawn without replacement, 2.2 times with 20
  mini-batches an epoch, 1.2 times with 100, 1.02 times with the 938 of P1. r_t too large by k
  makes the factor 1/(1 + k eta^2) instead of 1/(1 + eta^2): steps come out shorter, never longer.
  And r_t does not include drift: m lags behind a gradient that changes, and nothing shortens the
  step for that.

Written by `docs/make_within_batch.py` from `results/within-batch`; `results/README.md` has the
commands.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_INTRODUCTION, *(_section(folder) for folder in sorted(RESULTS.iterdir()))])


def _section(folder: Path) -> str:
    records = load(folder)
    analysis = analyse(folder)
    base = analysis.study.base
    outcome = [
        (row.name, row.lr, row.n, row.final["test_accuracy"], row.final["train_loss"])
        for row in rows(analysis).values()
    ]
    tried = [
        (result.entrant.name, f"{trial.lr:g}", *_ended(trial))
        for result in analysis.methods.values()
        for trial in result.trials
    ]
    parts = [
        f"## {base.problem}, {base.steps} steps",
        _table(("method", "step size", "seeds", "test accuracy", "training loss"), outcome),
    ]
    if tried:
        parts += [
            "Every step size of the search, one seed each:",
            _table(("method", "step size", "ended as", "test accuracy"), tried),
        ]
    for record in _watched(records):
        parts += [
            f"Agreement of gamma in {entrant(record.run['method']).name} at step size "
            f"{record.run['lr']:g}, seed {record.run['seed']}:",
            _agreement(record),
        ]
    return "\n\n".join(parts) + "\n"


def _watched(records: Iterable[Record]) -> list[Record]:
    """Return one finished run for every method and step size that was replicated."""
    chosen: dict[tuple[str, float], Record] = {}
    for record in sorted(records, key=lambda r: int(r.run["seed"])):
        if record.agreements and record.status == "done" and record.run["seed"] > 0:
            chosen.setdefault((record.run["method"], record.run["lr"]), record)
    return list(chosen.values())


def _agreement(record: Record) -> str:
    noted = sorted({int(line["step"]) for line in record.agreements})
    shown = [noted[round(i * (len(noted) - 1) / 4)] for i in range(5)]
    values = {
        (line["parameter"], int(line["step"])): line["correlation"] for line in record.agreements
    }
    names = list(dict.fromkeys(line["parameter"] for line in record.agreements))
    table = [(name, *(_number(values.get((name, step))) for step in shown)) for name in names]
    return _table(("parameter", *(f"step {step}" for step in shown)), table)


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _ended(trial: Trial) -> tuple[str, str]:
    """Say how a step size's run of the search ended, and with which accuracy."""
    if trial.diverged:
        return "diverged", "-"
    return "done", f"{100 * (trial.searched or {})['test_accuracy']:.1f} %"


def _table(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
