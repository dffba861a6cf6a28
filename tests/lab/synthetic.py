"""Made-up runs: a merit for each step size and seed, or none, without any training."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from svag.analysis.results import Figure, figures_of
from svag.lab.protocol import Outcome, plan
from svag.lab.records import Record
from svag.lab.run import Run
from svag.lab.studies import Study

RUN = Run(
    problem="made-up",
    version="1",
    data="0123456789abcdef",
    method="m-sgd",
    anatomy="m",
    beta=0.9,
    beta2=None,
    lr=0.1,
    seed=0,
    steps=20,
    batch_size=8,
    eval_every=20,
)

LOSS_RUN = replace(
    RUN, metric="loss", metric_better="smaller", metric_unit="", metric_low=None, metric_high=None
)

Merit = Callable[[float, int], float | None]
"""Value of the metric from step size and seed; None for a run that diverges."""


def figures(run: Run, value: float) -> dict[str, float]:
    """All figures of a run whose metric is ``value`` everywhere."""
    named: dict[str, float] = {}
    for figure in figures_of(run.quantity):
        metric = figure.name.partition("_")[2] == run.metric
        named[figure.name] = value if metric else 1.0
    if run.select == "validation":
        named[f"validation_{run.metric}"] = value
    return named


def record(run: Run, value: float | None, *, start: float = 0.1, **changed: float) -> Record:
    """A run that ends with ``value``, or diverges; ``changed`` sets other figures."""
    lines: list[dict[str, Any]] = [{"kind": "eval", "step": 0, **figures(run, start), **changed}]
    if value is None:
        return Record({"kind": "run", **asdict(run)}, lines, {"kind": "end", "status": "diverged"})
    final = {**figures(run, value), **changed}
    lines.append({"kind": "eval", "step": run.steps, **final})
    end = {"kind": "end", "status": "done", "step": run.steps, **final, "wall_time": 1.0}
    return Record({"kind": "run", **asdict(run)}, lines, end)


def follow(
    study: Study, key: str, merit: Merit, *, start: float = 0.1
) -> tuple[Outcome, list[Run]]:
    """Carry a method's plan out; return what it found, and the runs in the order asked for."""
    outcome, runs = Outcome(key), []
    steps = plan(study, key, outcome)
    request = next(steps, None)
    while request is not None:
        runs += request.needed
        answers = {
            run.id: record(run, merit(run.lr, run.seed), start=start) for run in request.needed
        }
        try:
            request = steps.send(answers)
        except StopIteration:
            request = None
    return outcome, runs


def study_of(*methods: str, **settings: Any) -> Study:
    settings = {"base": RUN, "seeds": 3, "starts": dict.fromkeys(methods, 0), **settings}
    return Study(methods=methods, **settings)


def all_records(study: Study, merits: dict[str, Merit], **changed: float) -> list[Record]:
    """Records of a whole study of made-up methods."""
    found: dict[str, Record] = {}
    for key in study.methods:
        _, runs = follow(study, key, merits[key])
        for run in runs:
            found[run.id] = record(run, merits[key](run.lr, run.seed), **changed)
    return list(found.values())


def named(figures: tuple[Figure, ...]) -> list[str]:
    return [figure.name for figure in figures]
