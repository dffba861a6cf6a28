"""Analyses a study: replays its plan on the records, and computes figures, effects and claims."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from svag.analysis import contrasts
from svag.analysis.claims import Claims, claims
from svag.analysis.contrasts import WEIGHTS, Effect
from svag.analysis.observations import Observation, family, observations
from svag.analysis.results import (
    Figure,
    MethodResult,
    figures_of,
    judged,
    method_result,
    sample,
)
from svag.anatomy import PAPER_METHODS
from svag.entrants import in_order
from svag.errors import RecordError
from svag.lab import records as recorded
from svag.lab import studies
from svag.lab.protocol import replay
from svag.lab.records import Record, finder, identity
from svag.lab.search import SEARCH_SEED
from svag.lab.studies import Filed, Study
from svag.quantity import Quantity

Cell: TypeAlias = tuple[bool, bool]
"""A cell of Figure 1: (sign, adapted)."""

CELLS: tuple[Cell, ...] = ((False, False), (False, True), (True, False), (True, True))
"""The cells of Figure 1 in the order of ``contrasts.WEIGHTS``."""

_REASONS = {
    "problem": "of another problem",
    "version": "of another version of the problem: its code changed",
    "data": "with other data",
    "metric": "with another metric",
    "steps": "of another length",
    "batch_size": "with another batch size",
    "weight_decay": "with another weight decay",
    "eval_every": "with other evaluations",
    "eval_examples": "evaluated on other examples",
    "channels_last": "with another layout of images",
    "select": "that held out other data",
    "device": "on another device",
    "autocast": "with another autocast",
}


class NothingFinished(RecordError):
    """A study has no final run yet, so there is nothing to analyse."""


@dataclass(frozen=True)
class Analysis:
    """A study's results.

    Attributes:
        study: the study.
        figures: its figures; the last one is that by which methods are compared.
        methods: results by method, in the order of the table.
        cells: the methods in the four cells of Figure 1; empty if one is missing.
        effects: effects with single intervals, by figure and name (exploratory).
        claims: effects on the metric with simultaneous intervals, and the finding; None if a cell
            is missing.
        observations: results of the paper's four observations; empty if a cell is missing.
        versions: versions, commits and machines of its runs.
        set_aside: how many records of the folder the study does not use, and why.
        other_studies: ids of further studies in the folder.
        seconds: sum of the wall times of its runs.
    """

    study: Study
    figures: tuple[Figure, ...]
    methods: Mapping[str, MethodResult]
    cells: Mapping[Cell, str]
    effects: Mapping[str, Mapping[str, Effect]]
    claims: Claims | None
    observations: Sequence[Observation]
    versions: Mapping[str, Sequence[str]]
    set_aside: Sequence[str]
    other_studies: Sequence[str]
    seconds: float

    @property
    def quantity(self) -> Quantity:
        """The metric."""
        return self.study.base.quantity

    @property
    def judged(self) -> Figure:
        """The figure by which methods are compared."""
        return judged(self.quantity)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that all runs share."""
        return self.study.settings


def analyse(directory: Path, study_id: str | None = None) -> Analysis:
    """Analyse a study of a folder: the latest, or the one whose id is given.

    Raises:
        RecordError: there is no such study, a file cannot be read, or no run has finished.
    """
    chosen = chosen_study(directory, study_id)
    others = [one.study.id for one in studies.filed(directory) if one.study.id != chosen.id]
    return of_records(chosen, recorded.load(directory), others)


def chosen_study(directory: Path, study_id: str | None = None) -> Study:
    """Return the latest study of a folder, or the one whose id begins with ``study_id``.

    Raises:
        RecordError: there is none, or not exactly one.
    """
    filed = studies.filed(directory)
    if not filed:
        raise RecordError(
            f"no study in {directory / 'studies'}; make one with "
            f"`svag compare PROBLEM --out {directory}`"
        )
    found = [one.study for one in filed if one.study.id.startswith(study_id or "")]
    if study_id is None:
        return found[0]
    if len(found) != 1:
        known = ", ".join(_named(one) for one in filed)
        raise RecordError(f"no one study is {study_id!r}; in {directory} there are {known}")
    return found[0]


def _named(one: Filed) -> str:
    return f"{one.study.id} ({one.study.base.problem}, {one.study.base.steps} steps, {one.when})"


@np.errstate(over="ignore", invalid="ignore")  # the variance of values like 1e200 overflows
def of_records(
    study: Study, records: Sequence[Record], other_studies: Sequence[str] = ()
) -> Analysis:
    """Analyse a study from records.

    Args:
        study: the study.
        records: the records of a folder, which may also be of other studies.
        other_studies: ids of further studies in the folder.

    Raises:
        NothingFinished: no method has a step size yet.
        RecordError: the metric has the same value in all runs.
    """
    find = finder(records)
    figures = figures_of(study.base.quantity)
    methods = {
        key: method_result(key, replay(study, key, find), figures)
        for key in in_order(study.methods)
    }
    if not any(result.many or result.all_diverged for result in methods.values()):
        raise NothingFinished(
            "no run has finished with a step size that was chosen; run `svag compare` to its end"
            + _first_error(methods)
        )
    _check_varies(study, methods)
    own, set_aside = _apart(study, methods, records)
    cells = _cells(methods)
    results = [methods[cells[cell]] for cell in CELLS] if cells else []
    return Analysis(
        study=study,
        figures=figures,
        methods=methods,
        cells=cells,
        effects=_effects(results, figures),
        claims=_claims(study, results, figures[-1]),
        observations=_observations(study, results, figures[-1]),
        versions=_versions(own),
        set_aside=set_aside,
        other_studies=list(other_studies),
        seconds=sum(float((r.end or {}).get("wall_time") or 0.0) for r in own),
    )


def _first_error(methods: Mapping[str, MethodResult]) -> str:
    errors = [result.outcome.error for result in methods.values() if result.outcome.error]
    return f". Runs of {len(errors)} methods ended in an error: {errors[0]}" if errors else ""


def _claims(study: Study, results: Sequence[MethodResult], figure: Figure) -> Claims | None:
    if not results:
        return None
    return claims(
        [sample(result.outcome, figure.name) for result in results],
        figure.quantity,
        smallest_effect=study.smallest_effect,
        diverged=any(result.diverged for result in results),
        unfinished=any(not result.outcome.complete for result in results),
    )


def _observations(
    study: Study, results: Sequence[MethodResult], figure: Figure
) -> list[Observation]:
    if not results:
        return []
    return observations(family(results, figure, study.smallest_effect), results)


def _effects(
    results: Sequence[MethodResult], figures: Sequence[Figure]
) -> dict[str, dict[str, Effect]]:
    if not results:
        return {}
    return {
        figure.name: {
            name: contrasts.single([sample(r.outcome, figure.name) for r in results], weights)
            for name, weights in WEIGHTS.items()
        }
        for figure in figures
    }


def _cells(methods: Mapping[str, MethodResult]) -> dict[Cell, str]:
    """Choose a method for each cell of Figure 1, if possible the paper's.

    All four have the same direction (momentum or gradient), weight decay and beta, so that they
    differ only in sign and adaptation.
    """
    groups: dict[tuple[object, ...], dict[Cell, str]] = {}
    for key in sorted(methods, key=lambda key: key not in PAPER_METHODS):
        one = methods[key].entrant
        if one.anatomy is None or one.within_batch:  # differs in the estimate of the variance, too
            continue
        if methods[key].runs:
            decay = [one.options.get(name) for name in ("weight_decay", "decoupled_weight_decay")]
            beta = one.betas[:1] if one.anatomy.direction == "momentum" else ()
            group = (one.anatomy.direction, *decay, beta)
            groups.setdefault(group, {}).setdefault((one.sign, one.adapted), key)
    whole = [cells for cells in groups.values() if len(cells) == 4]
    return whole[0] if whole else {}


def _check_varies(study: Study, methods: Mapping[str, MethodResult]) -> None:
    """Raise if the metric has the same value in all runs of a study of several runs."""
    name = f"{study.base.select}_{study.base.metric}"
    values = [
        line[name]
        for result in methods.values()
        for record in [*result.outcome.search.values(), *result.runs]
        for line in record.evals
        if line.get(name) is not None and line["step"] > 0
    ]
    if len(values) > 2 and len(set(values)) == 1:
        raise RecordError(
            f"the metric {study.base.metric!r} of {study.base.problem!r} has the value "
            f"{values[0]:g} in all {len(values)} evaluations of this study, so it cannot tell "
            "methods or step sizes apart; give the problem a metric that varies"
        )


def _apart(
    study: Study, methods: Mapping[str, MethodResult], records: Sequence[Record]
) -> tuple[list[Record], list[str]]:
    """Return the study's records, and sentences: how many others are not used, and why."""
    used = {
        identity(record)
        for result in methods.values()
        for record in [
            *result.outcome.search.values(),
            *(r for several in result.outcome.selection.values() for r in several),
            *(r for several in result.outcome.lost.values() for r in several),
            *result.outcome.final,
        ]
    }
    own, reasons = [], Counter[str]()
    for record in records:
        if identity(record) in used:
            own.append(record)
        else:
            reasons[_reason(study, record)] += 1
    return own, [f"{n} run{'s' * (n != 1)} {why}" for why, n in reasons.most_common()]


def _reason(study: Study, record: Record) -> str:
    """Write why a study does not use a record."""
    for key, value in study.settings.items():
        if record.run[key] != value:
            detail = f" ({record.run[key]})" if key not in ("version", "data") else ""
            source = record.run.get("source")
            where = f" ({source})" if key == "version" and source else ""
            return _REASONS[key] + detail + where
    key = str(record.run["method"])
    if key not in study.methods:
        return f"of {key}, which is not compared"
    if record.run["optimizer"] != study.code.get(key, ""):
        return f"of {key} with other code"
    if not record.finished:
        return f"that ended as {record.status}"
    if record.run["seed"] == SEARCH_SEED:
        return "of searches, carried out ahead of need or by another protocol"
    return "with seeds or at step sizes that this study does not use"


def _versions(records: Sequence[Record]) -> dict[str, list[str]]:
    names = ("svag", "torch", "numpy", "python", "machine", "commit", "source")
    return {name: sorted({str(r.run[name]) for r in records if r.run.get(name)}) for name in names}
