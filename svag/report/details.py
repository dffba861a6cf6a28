"""Further tables of a problem's section, as text: gap, speed, cost, records."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from svag.analysis.effects_over_training import turn
from svag.analysis.results import TRAIN_LOSS, Figure, MethodResult
from svag.analysis.study import Analysis
from svag.analysis.targets import Reached, Target, target
from svag.analysis.tuning import cost, sensitivity
from svag.lab.records import Record, identity
from svag.report import numbers


@dataclass(frozen=True, slots=True)
class Speed:
    """A target in words, and the steps and seconds to reach it, by method."""

    title: str
    rows: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RecordLinks:
    """Records from which a method's numbers are computed: their role, and (name, link) of each."""

    what: str
    files: list[tuple[str, str]]


def gaps(analysis: Analysis) -> tuple[list[str], dict[str, list[str]]]:
    """Write test minus training figures: the columns' titles, and each method's cells."""
    quantities = {figure.quantity.name: figure.quantity for figure in analysis.figures}
    rows: dict[str, list[str]] = {key: [] for key in analysis.methods}
    for name, quantity in quantities.items():
        spreads = {key: result.gap[name] for key, result in analysis.methods.items()}
        digits = numbers.decimals(spreads.values(), quantity)
        for key, value in spreads.items():
            text = numbers.spread(value, quantity, digits, difference=True)
            rows[key].append(text)
    return [quantity.title for quantity in quantities.values()], rows


def speeds(analysis: Analysis, given: float | None) -> list[Speed]:
    """Write how soon methods reach the targets: the metric's, and the training loss's."""
    wanted: dict[str, tuple[Figure, float | None]] = {
        analysis.judged.name: (analysis.judged, given),
        TRAIN_LOSS.name: (TRAIN_LOSS, None),
    }
    found = (target(analysis, figure, value) for figure, value in wanted.values())
    return [_speed(analysis, one) for one in found if one is not None]


def costs(analysis: Analysis) -> dict[str, tuple[str, str]]:
    """Write runs and time that choosing each method's step size took."""
    rows = {}
    for key, result in analysis.methods.items():
        spent = cost(result)
        timed = duration(spent.seconds) if spent.timed else numbers.NONE
        partly = f" ({spent.timed} timed)" if 0 < spent.timed < spent.runs else ""
        rows[key] = (str(spent.runs), timed + partly) if spent.runs else ("0", numbers.NONE)
    return rows


def beside_the_choice(analysis: Analysis) -> dict[str, list[str]]:
    """Write by method what a neighbouring step size costs and which ones are as good."""
    rows = {}
    for key, result in analysis.methods.items():
        found = sensitivity(analysis, key)
        if found is None:
            continue
        many = found.high / found.low
        span = f"{numbers.step_size(found.low)} to {numbers.step_size(found.high)} ({many:.3g}x)"
        alone = math.isclose(found.low, found.high)
        rows[key] = [
            numbers.step_size(result.lr),
            _change(found.smaller, analysis),
            _change(found.larger, analysis),
            "only itself" if alone else span,
        ]
    return rows


def turns(analysis: Analysis) -> list[str]:
    """Write when the effect of the sign changed its direction during training."""
    sentences = []
    for figure in (TRAIN_LOSS, analysis.judged):
        found = turn(analysis, figure) if analysis.cells else None
        if found is not None:
            helps = (found.direction > 0) == figure.quantity.larger_is_better
            before, after = ("hurts", "helps") if helps else ("helps", "hurts")
            sentences.append(
                f"In {figure.title} the sign {before} until step {found.until:,} and {after} from "
                f"step {found.since:,} on."
            )
    return sentences


def sources(analysis: Analysis, directory: Path, records: Path) -> dict[str, list[RecordLinks]]:
    """Return names and links of the records from which each method's numbers are computed.

    Args:
        analysis: the analysis of a study.
        directory: folder of the page, to which links are relative.
        records: the folder whose subfolder ``records`` has the records.
    """
    folder = os.path.relpath(records / "records", directory)
    return {key: _sources(result, folder) for key, result in analysis.methods.items()}


def duration(seconds: float) -> str:
    """Write a time in seconds, minutes or hours."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _speed(analysis: Analysis, found: Target) -> Speed:
    figure = found.figure
    sign = "\N{GREATER-THAN OR EQUAL TO}"
    sign = sign if figure.quantity.larger_is_better else "\N{LESS-THAN OR EQUAL TO}"
    scale = 100 if figure.quantity.percent else 1
    unit = f" {figure.quantity.unit}" if figure.quantity.unit else ""
    what = f"{figure.title} {sign} {scale * found.value:.4g}{unit}".replace("-", numbers.MINUS)
    rows = {key: _when(one) for key, one in found.by_method.items()}
    none = (numbers.NONE, numbers.NONE)
    return Speed(what, {key: rows.get(key, none) for key in analysis.methods})


def _when(one: Reached) -> tuple[str, str]:
    if not one.reached:
        return "not reached", numbers.NONE
    partly = f" ({one.reached} of {one.runs})" if one.reached < one.runs else ""
    steps = f"{one.steps.mean:,.0f}{partly}"
    return steps, duration(one.seconds.mean) if math.isfinite(one.seconds.mean) else numbers.NONE


def _change(value: float, analysis: Analysis) -> str:
    """Write how much better (positive) or worse a step size is; NaN if all its runs diverged."""
    quantity = analysis.quantity
    if not math.isfinite(value):
        return numbers.NONE
    shown = quantity.merit(value)  # from merit to the metric's own sign
    scale, unit = (100.0, " pp") if quantity.percent else (1.0, "")
    text = f"{scale * shown:+.2f}" if quantity.percent else f"{shown:+.3g}"
    return text.replace("-", numbers.MINUS) + unit


def _sources(result: MethodResult, folder: str) -> list[RecordLinks]:
    outcome = result.outcome
    groups: tuple[tuple[str, Iterable[Record]], ...] = (
        ("final runs", outcome.final),
        ("selection runs", (r for several in outcome.selection.values() for r in several)),
        ("search", outcome.search.values()),
        ("final runs at a step size that was left", (r for s in outcome.lost.values() for r in s)),
    )
    return [
        RecordLinks(what, [_file(record, folder) for record in records])
        for what, every in groups
        if (records := list(every))
    ]


def _file(record: Record, folder: str) -> tuple[str, str]:
    """Describe a record, and link it."""
    lr, seed = record.run["lr"], record.run["seed"]
    status = "" if record.status == "done" else f", {record.status}"
    name = f"{identity(record)}.jsonl"
    link = quote(Path(folder, name).as_posix())
    return f"{name} (lr {numbers.step_size(float(lr))}, seed {seed}{status})", link
