"""Records -> tables and effects. Reads records only; knows neither torch nor how runs are made.

The paper's Figure 1 is a 2x2 factorial design: sign or not, variance-adapted or not. Its effects,
on the final training loss and test accuracy y of the four cells, are

    sign:         mean over both adaptations of y[sign] - y[no sign]
    adaptation:   mean over both directions of  y[adapted] - y[not adapted]
    interaction:  half of (adaptation's effect with the sign - its effect without)

and adaptation's effect with and without the sign each by itself. Their intervals are percentile
bootstraps over seeds, stretched about the estimate by sqrt(n/(n-1)) t/z (the 97.5 % quantiles of
Student's t with n - 1 degrees of freedom and of the normal distribution), because the plain
percentile interval of five seeds covers 84 % instead of 95 %.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from svag.anatomy import PAPER_METHODS, in_order, method
from svag.errors import RecordError
from svag.lab.records import SEARCH_SEED, STUDY, Record

Figure = Literal["train_loss", "test_loss", "test_accuracy"]
FIGURES: tuple[Figure, ...] = ("train_loss", "test_loss", "test_accuracy")

Cell: TypeAlias = tuple[bool, bool]
"""(sign, adapted)."""

Array: TypeAlias = NDArray[np.float64]

_RESAMPLES = 10_000
_CELLS: tuple[Cell, ...] = ((False, False), (False, True), (True, False), (True, True))
EFFECTS: Mapping[str, Array] = {
    "sign": np.array([-0.5, -0.5, 0.5, 0.5]),
    "adaptation": np.array([-0.5, 0.5, -0.5, 0.5]),
    "interaction": np.array([0.5, -0.5, -0.5, 0.5]),
    "adaptation without sign": np.array([-1.0, 1.0, 0.0, 0.0]),
    "adaptation with sign": np.array([0.0, 0.0, -1.0, 1.0]),
}
"""Effects by name, as weights of the four cells' means."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (with n - 1; NaN for one value) of n values."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Curve:
    """A figure over training: mean and standard deviation of the replications at each step."""

    steps: Array
    mean: Array
    sd: Array


@dataclass(frozen=True)
class Trial:
    """One step size of a search, with its outcome."""

    lr: float
    status: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class MethodResult:
    """What a method achieved at its step size.

    Attributes:
        key: the method.
        lr: the step size that was replicated; NaN if the search found none that is stable.
        replications: its finished runs.
        diverged: how many further runs diverged; they are in no mean.
        final: figures at the end of the runs.
        best: the best value that each run's figure took at any evaluation.
        curves: figures over training.
        trials: the search, by ascending step size.
        searched: whether there was a search and every run of it has finished.
    """

    key: str
    lr: float
    replications: Sequence[Record]
    diverged: int
    final: Mapping[Figure, Spread]
    best: Mapping[Figure, Spread]
    curves: Mapping[Figure, Curve]
    trials: Sequence[Trial]
    searched: bool

    @property
    def searched_in_vain(self) -> bool:
        """Whether its search went to its end and found nothing that could be replicated."""
        return self.searched and all(trial.status == "diverged" for trial in self.trials)

    @property
    def complete(self) -> bool:
        """Whether it was replicated, or its search found nothing that could be."""
        return bool(self.replications or self.diverged or self.searched_in_vain)

    @property
    def cell(self) -> Cell:
        """Its place in the paper's Figure 1."""
        anatomy = method(self.key).anatomy
        return anatomy.sign, anatomy.adapted


@dataclass(frozen=True)
class Effect:
    """An effect with its bootstrap interval (95 %, over seeds; None for one seed)."""

    estimate: float
    interval: tuple[float, float] | None

    @property
    def direction(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return int(low > 0) - int(high < 0)


@dataclass(frozen=True)
class Analysis:
    """A study's results.

    Attributes:
        settings: what all its runs share.
        versions: versions, commits and machines that made its runs.
        methods: results by method, in the order of the table.
        cells: the methods in the four cells of Figure 1; empty if one is missing.
        effects: by figure and name; empty if a cell is missing.
        others: how many further studies the records hold.
        seconds: wall time of all its runs together.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, Sequence[str]]
    methods: Mapping[str, MethodResult]
    cells: Mapping[Cell, str]
    effects: Mapping[Figure, Mapping[str, Effect]]
    others: int
    seconds: float


def analyse(
    records: Iterable[Record], lrs: Mapping[str, float] | None = None, **wanted: object
) -> Analysis:
    """Analyse one study: the runs that share problem, data, length and protocol.

    Args:
        records: of one or more studies.
        lrs: step sizes that were settled, by method; else the one that was searched best.
        wanted: values that settings of the study must have, e.g. ``steps=6000``; of several
            studies the one with most runs is taken.

    Raises:
        RecordError: no method's runs are complete among the records of the study wanted.
    """
    records = list(records)
    studies: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if all(record.run.get(key) == value for key, value in wanted.items()):
            studies.setdefault(tuple(record.run.get(key) for key in STUDY), []).append(record)
    ranked = sorted(studies.items(), key=lambda item: len(item[1]), reverse=True)
    for setting, runs in ranked:
        methods = {}
        for key in in_order(r.run["method"] for r in runs):
            own = [r for r in runs if r.run["method"] == key]
            result = _method_result(key, own, (lrs or {}).get(key))
            if result is not None:
                methods[key] = result
        if any(result.complete for result in methods.values()):
            cells = _cells(methods)
            return Analysis(
                settings=dict(zip(STUDY, setting, strict=True)),
                versions=_versions(runs),
                methods=methods,
                cells=cells,
                effects=_effects({cell: methods[key] for cell, key in cells.items()}),
                others=len(studies) - 1,
                seconds=sum(float((r.end or {}).get("wall_time", 0.0)) for r in runs),
            )
    if records and not studies:
        held = {(str(r.run["problem"]), int(r.run["steps"])) for r in records}
        raise RecordError(
            "no study among the records has "
            + ", ".join(f"{key} {value}" for key, value in wanted.items())
            + "; there are "
            + ", ".join(f"{problem} with {steps} steps" for problem, steps in sorted(held))
        )
    raise RecordError(
        "no run has finished with a step size that was replicated; run `svag compare` to its end"
    )


def _method_result(
    key: str, records: Sequence[Record], settled: float | None
) -> MethodResult | None:
    begun = [r for r in records if r.run["seed"] == SEARCH_SEED]
    search = [r for r in begun if r.finished]
    repeated: dict[float, list[Record]] = {}
    for record in records:
        if record.run["seed"] != SEARCH_SEED and record.finished:
            repeated.setdefault(record.run["lr"], []).append(record)
    if not repeated and not search:
        return None
    merits = {r.run["lr"]: r.merit for r in search}
    lr = settled or max(
        repeated,
        key=lambda lr: (merits.get(lr, -np.inf), len(repeated[lr]), lr),
        default=np.nan,
    )
    replications = sorted(repeated.get(lr, []), key=lambda r: int(r.run["seed"]))
    runs = [r for r in replications if r.status == "done"]
    ends = [r.end or {} for r in runs]
    trials = [Trial(r.run["lr"], r.status, _figures(r.end or {})) for r in search]
    return MethodResult(
        key=key,
        lr=lr,
        replications=runs,
        diverged=len(replications) - len(runs),
        final={f: _spread([_value(end, f) for end in ends]) for f in FIGURES},
        best={f: _spread([_best(f, r) for r in runs]) for f in FIGURES},
        curves={f: _curve(f, runs) for f in FIGURES},
        trials=sorted(trials, key=lambda trial: trial.lr),
        searched=0 < len(search) == len(begun),
    )


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    return {f: float(line[f]) for f in FIGURES if line.get(f) is not None}


def _best(figure: Figure, record: Record) -> float:
    values = [_value(line, figure) for line in record.evals if line.get(figure) is not None]
    return max(values, default=np.nan) if figure == "test_accuracy" else min(values, default=np.nan)


def _value(line: Mapping[str, Any], figure: Figure) -> float:
    """Read a figure; NaN where it was not a finite number."""
    return np.nan if line.get(figure) is None else float(line[figure])


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(np.nan, np.nan, 0)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return Spread(float(np.mean(values)), sd, len(values))


def _curve(figure: Figure, records: Sequence[Record]) -> Curve:
    steps = sorted({int(line["step"]) for r in records for line in r.evals})
    values = np.full((len(records), len(steps)), np.nan)
    place = {step: column for column, step in enumerate(steps)}
    for row, record in enumerate(records):
        for line in record.evals:
            values[row, place[int(line["step"])]] = _value(line, figure)
    sd = values.std(axis=0, ddof=1) if len(records) > 1 else np.zeros(len(steps))
    mean = values.mean(axis=0) if len(records) else np.zeros(0)
    return Curve(np.array(steps, float), mean, sd)


def _cells(methods: Mapping[str, MethodResult]) -> dict[Cell, str]:
    """Choose a method for each cell, the paper's where it is among them.

    All four follow the momentum, or all four the gradient, which is no matter of the two halves.
    """
    for direction in ("momentum", "gradient"):
        cells: dict[Cell, str] = {}
        for key in sorted(methods, key=lambda key: key not in PAPER_METHODS):
            anatomy = method(key).anatomy
            if anatomy.within_batch:  # another estimate of the variance, not another half of Adam
                continue
            if anatomy.direction == direction and methods[key].replications:
                cells.setdefault(methods[key].cell, key)
        if len(cells) == 4:
            return cells
    return {}


def _effects(results: Mapping[Cell, MethodResult]) -> dict[Figure, dict[str, Effect]]:
    if not results:
        return {}
    means = {
        figure: np.array([results[cell].final[figure].mean for cell in _CELLS])
        for figure in FIGURES
    }
    resampled = _resampled(results)
    n = min(len(result.replications) for result in results.values())
    stretch = np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975) / ndtri(0.975) if n > 1 else np.nan
    effects: dict[Figure, dict[str, Effect]] = {}
    for figure in FIGURES:
        effects[figure] = {}
        for name, weights in EFFECTS.items():
            estimate = float(means[figure] @ weights)
            interval = None
            if resampled is not None:
                bounds = np.percentile(resampled[figure] @ weights, [2.5, 97.5])
                low, high = estimate + stretch * (bounds - estimate)
                interval = (_clean(low), _clean(high))
            effects[figure][name] = Effect(_clean(estimate), interval)
    return effects


def _clean(value: float) -> float:
    """Round off what sums of accuracies leave, so that nothing differs from 0 by rounding alone."""
    return round(float(value), 12) + 0.0


def _resampled(results: Mapping[Cell, MethodResult]) -> dict[Figure, Array] | None:
    """Bootstrap the cells' means, (resamples, 4); None where a cell has a single run.

    Runs with equal seeds share initialisation and order of examples, so seeds are resampled for
    all cells together where all cells have the same.
    """
    seeds = [[int(r.run["seed"]) for r in results[cell].replications] for cell in _CELLS]
    if min(len(s) for s in seeds) < 2:
        return None
    rng = np.random.default_rng(0)
    if all(s == seeds[0] for s in seeds):
        shared = rng.integers(len(seeds[0]), size=(_RESAMPLES, len(seeds[0])))
        draws = [shared] * 4
    else:
        draws = [rng.integers(len(s), size=(_RESAMPLES, len(s))) for s in seeds]
    return {
        figure: np.stack(
            [
                np.array([_value(r.end or {}, figure) for r in results[cell].replications])[
                    draw
                ].mean(1)
                for cell, draw in zip(_CELLS, draws, strict=True)
            ],
            axis=1,
        )
        for figure in FIGURES
    }


def _versions(records: Sequence[Record]) -> dict[str, list[str]]:
    names = ("svag", "torch", "numpy", "python", "machine", "commit", "source")
    return {name: sorted({str(r.run[name]) for r in records if r.run.get(name)}) for name in names}
