"""The results of each method of a study, from its records: figures, curves, search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from svag.analysis.contrasts import Array, Candidate, Sample
from svag.entrants import Entrant, entrant
from svag.lab.protocol import Outcome
from svag.lab.records import Record
from svag.quantity import LOSS, Quantity


@dataclass(frozen=True)
class Figure:
    """A figure in records: a quantity on a split.

    Attributes:
        name: its field in records, such as ``test_accuracy``.
        title: its name in a sentence, such as ``test accuracy``.
        quantity: the quantity that it measures.
    """

    name: str
    title: str
    quantity: Quantity


TRAIN_LOSS = Figure("train_loss", "training loss", LOSS)
TEST_LOSS = Figure("test_loss", "test loss", LOSS)


def judged(quantity: Quantity) -> Figure:
    """Return the figure by which methods are compared: the metric on the test data."""
    return Figure(f"test_{quantity.name}", f"test {quantity.title}", quantity)


def figures_of(quantity: Quantity) -> tuple[Figure, ...]:
    """Return the figures of a study: the losses, and the metric unless it is the loss."""
    if quantity.name == LOSS.name:
        return (TRAIN_LOSS, judged(quantity))
    trained = Figure(f"train_{quantity.name}", f"training {quantity.title}", quantity)
    return (TRAIN_LOSS, TEST_LOSS, trained, judged(quantity))


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (divided by n - 1; NaN for one value) of n values."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Curve:
    """A figure over training: mean and standard deviation of the final runs at each step."""

    steps: Array
    mean: Array
    sd: Array


@dataclass(frozen=True)
class Trial:
    """A step size that was tried before the final runs.

    Attributes:
        lr: step size.
        searched: final figures of the search's run; None if the search did not try it.
        selected: final figures of the selection runs.
        diverged: number of these runs that diverged.
        runs: number of these runs.
    """

    lr: float
    searched: Mapping[str, float] | None
    selected: Sequence[Mapping[str, float]]
    diverged: int
    runs: int

    def mean(self, figure: Figure) -> float:
        """Mean of a figure over the runs that did not diverge; NaN if there are none."""
        every = [*self.selected, *([self.searched] if self.searched else [])]
        values = [one[figure.name] for one in every if figure.name in one]
        return float(np.mean(values)) if values else math.nan


@dataclass(frozen=True)
class MethodResult:
    """The results of a method at its step size.

    Attributes:
        entrant: the method.
        outcome: the search for its step size, and its final runs.
        runs: the final runs that did not diverge.
        final: figures at the end of the runs, by name.
        best: best value of each run's figure at any evaluation, by name.
        gap: the final figure on the test data minus that on the training data, by quantity.
        curves: figures over training, by name.
        trials: the step sizes tried in search and selection, in ascending order.
    """

    entrant: Entrant
    outcome: Outcome
    runs: Sequence[Record]
    final: Mapping[str, Spread]
    best: Mapping[str, Spread]
    gap: Mapping[str, Spread]
    curves: Mapping[str, Curve]
    trials: Sequence[Trial]

    @property
    def lr(self) -> float:
        """The step size of the final runs; NaN if no stable one exists or none is found yet."""
        return self.outcome.lr

    @property
    def diverged(self) -> int:
        """Number of final runs that diverged; means leave them out."""
        return self.outcome.diverged

    @property
    def many(self) -> int:
        """Number of final runs."""
        return len(self.outcome.final)

    @property
    def all_diverged(self) -> bool:
        """Whether every step size that was tried diverged."""
        return self.outcome.complete and math.isnan(self.lr)


def method_result(key: str, outcome: Outcome, figures: Sequence[Figure]) -> MethodResult:
    """Compute a method's results.

    Args:
        key: key of the method.
        outcome: outcome of its plan.
        figures: the figures to compute.
    """
    runs = outcome.survivors
    ends = [record.end or {} for record in runs]
    return MethodResult(
        entrant=entrant(key),
        outcome=outcome,
        runs=runs,
        final={f.name: spread([value(end, f.name) for end in ends]) for f in figures},
        best={f.name: spread([_best(record, f) for record in runs]) for f in figures},
        gap={name: spread(_gaps(name, ends)) for name in {f.quantity.name: 0 for f in figures}},
        curves={f.name: _curve(f.name, runs) for f in figures},
        trials=_trials(outcome),
    )


def sample(outcome: Outcome, figure: str) -> Sample:
    """Return a method's final values of a figure, with the runs that chose its step size."""
    values = np.array([value(record.end or {}, figure) for record in outcome.survivors])
    candidates = {}
    for lr, selected in outcome.selection.items():
        tried = [*selected, *(outcome.lost.get(lr, ()))]
        if any(record.status == "done" for record in selected):
            candidates[lr] = _candidate(selected, tried, figure)
    start = _start(outcome.survivors, figure)
    if outcome.lr not in candidates:
        return Sample(values, start=start)
    chosen = replace(candidates[outcome.lr], survival=1.0)
    candidates[outcome.lr] = chosen
    return Sample(values, list(candidates.values()), list(candidates).index(outcome.lr), start)


def _start(records: Sequence[Record], figure: str) -> float:
    """Return the mean of a figure before the first step."""
    first = [record.evals[0] for record in records if record.evals]
    values = [value(line, figure) for line in first if line.get("step") == 0]
    return float(np.mean(values)) if values else math.nan


def _candidate(selected: Sequence[Record], tried: Sequence[Record], figure: str) -> Candidate:
    """Summarise a step size's selection runs, with the chance that none diverges another time."""
    done = [record for record in selected if record.status == "done"]
    lost = sum(record.status == "diverged" for record in tried)
    return Candidate(
        np.array([record.merit for record in done]),
        np.array([value(record.end or {}, figure) for record in done]),
        (1 - lost / (len(tried) + 1)) ** len(tried),
    )


def value(line: Mapping[str, Any], figure: str) -> float:
    """Return a figure of a line; NaN if it was not finite or is not recorded."""
    return math.nan if line.get(figure) is None else float(line[figure])


def spread(values: Sequence[float]) -> Spread:
    """Return mean and deviation of values; NaN if there are none, or one of them is NaN."""
    if not values:
        return Spread(math.nan, math.nan, 0)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), sd, len(values))


def _trials(outcome: Outcome) -> list[Trial]:
    searched = {float(record.run["lr"]): record for record in outcome.search.values()}
    trials = []
    for lr in sorted({*searched, *outcome.selection}):
        selected = outcome.selection.get(lr, [])
        every = [*selected, *([searched[lr]] if lr in searched else [])]
        trials.append(
            Trial(
                lr,
                _finite(searched[lr]) if lr in searched else None,
                [_finite(record) for record in selected if record.status == "done"],
                sum(record.status == "diverged" for record in every),
                len(every),
            )
        )
    return trials


def _finite(record: Record) -> dict[str, float]:
    """Return the final figures of a run; empty if it diverged."""
    if record.status != "done" or record.end is None:
        return {}
    return {
        name: float(figure)
        for name, figure in record.end.items()
        if name.startswith(("train_", "test_", "validation_")) and figure is not None
    }


def _best(record: Record, figure: Figure) -> float:
    lines = [line for line in record.evals if line.get(figure.name) is not None]
    values = [value(line, figure.name) for line in lines]
    choose = max if figure.quantity.larger_is_better else min
    return choose(values, default=math.nan)


def _gaps(quantity: str, ends: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return test minus training for each run; NaN if the training figure is not recorded."""
    return [value(end, f"test_{quantity}") - value(end, f"train_{quantity}") for end in ends]


def _curve(figure: str, records: Sequence[Record]) -> Curve:
    steps = sorted({int(line["step"]) for r in records for line in r.evals})
    values = np.full((len(records), len(steps)), np.nan)
    place = {step: column for column, step in enumerate(steps)}
    for row, record in enumerate(records):
        for line in record.evals:
            values[row, place[int(line["step"])]] = value(line, figure)
    sd = values.std(axis=0, ddof=1) if len(records) > 1 else np.zeros(len(steps))
    mean = values.mean(axis=0) if len(records) else np.zeros(0)
    return Curve(np.array(steps, float), mean, sd)
