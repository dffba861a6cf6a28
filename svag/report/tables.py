"""The tables of a problem's section, as text; every number comes from the analysis."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from svag.analysis import contrasts
from svag.analysis.contrasts import (
    ADAPTATION,
    BOTH_OR_NEITHER,
    INTERACTION,
    SIGN,
    SIGN_OR_ADAPTATION,
    WITH_SIGN,
    WITHOUT_SIGN,
    Effect,
)
from svag.analysis.published import beside, order
from svag.analysis.results import Figure, MethodResult, Spread, sample
from svag.analysis.study import CELLS, Analysis, Cell
from svag.analysis.wording import listed
from svag.anatomy import METHODS
from svag.entrants import entrant
from svag.report import numbers

ROWS: Mapping[bool, str] = {False: "No sign", True: "Sign"}
COLUMNS: Mapping[bool, str] = {False: "Not adapted", True: "Variance-adapted"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """A method's results as text: figures by ``final`` or ``best`` and name.

    There are ``many`` final runs; ``diverged`` of them diverged, and ``n`` are in the figures.
    """

    key: str
    name: str
    sign: bool
    adapted: bool
    update: str
    beta: str
    lr: str
    final: Mapping[str, str]
    best: Mapping[str, str]
    n: int
    diverged: int
    many: int


@dataclass(frozen=True, slots=True)
class Margin:
    """An effect as text; whether it is one of the claims, and whether its interval excludes 0."""

    value: str
    interval: str
    counts: bool


def rows(analysis: Analysis) -> dict[str, TableRow]:
    """Return every method's results as text, with the same number of decimals in a column."""
    results, figures = analysis.methods, analysis.figures
    digits = _decimals(analysis)
    return {
        key: TableRow(
            key=key,
            name=result.entrant.name,
            sign=result.entrant.sign,
            adapted=result.entrant.adapted,
            update="" if result.entrant.anatomy is None else str(result.entrant.anatomy),
            beta=", ".join(f"{beta:g}" for beta in result.entrant.betas) or numbers.NONE,
            lr=numbers.step_size(result.lr),
            final={f.name: _spread(result.final[f.name], f, digits) for f in figures},
            best={f.name: _spread(result.best[f.name], f, digits) for f in figures},
            n=len(result.runs),
            diverged=result.diverged,
            many=result.many,
        )
        for key, result in results.items()
    }


def _decimals(analysis: Analysis) -> dict[str, int]:
    return {
        f.name: numbers.decimals([r.final[f.name] for r in analysis.methods.values()], f.quantity)
        for f in analysis.figures
    }


def _spread(spread: Spread, figure: Figure, digits: Mapping[str, int]) -> str:
    return numbers.spread(spread, figure.quantity, digits[figure.name])


def headlines(analysis: Analysis) -> tuple[Figure, Figure]:
    """Return the two figures in the table of the halves' effects."""
    return analysis.judged, analysis.figures[0]


def square(analysis: Analysis) -> Mapping[Cell, str]:
    """Return the keys of the methods in Figure 1's four cells; empty if one is missing."""
    return analysis.cells


def margins(analysis: Analysis) -> dict[str, dict[str, Margin]]:
    """Return the effects as text, by name and figure; empty if a cell is missing.

    Effects that the verdict claims have simultaneous intervals; others are exploratory.
    """
    if analysis.claims is None:
        return {}
    digits = _decimals(analysis)
    claimed = analysis.claims.effects
    table: dict[str, dict[str, Margin]] = {}
    for name in (SIGN, ADAPTATION, INTERACTION, WITHOUT_SIGN, WITH_SIGN):
        table[name] = {}
        for figure in headlines(analysis):
            claim = name in claimed and figure == analysis.judged
            effect = claimed[name] if claim else analysis.effects[figure.name][name]
            counts = claim and effect.direction != 0 and analysis.claims.finding != "diverged"
            table[name][figure.name] = _margin(effect, figure, digits, counts=counts)
    return table


def claims(analysis: Analysis) -> list[tuple[str, Margin]]:
    """Return the five effects of the verdict as text, with simultaneous intervals."""
    if analysis.claims is None:
        return []
    neither, adapted, sign, both = (entrant(analysis.cells[cell]).name for cell in CELLS)
    titles = {
        SIGN: f"The sign: {sign} and {both} against {neither} and {adapted}",
        ADAPTATION: f"Variance adaptation: {adapted} and {both} against {neither} and {sign}",
        INTERACTION: "Interaction: half of adaptation's effect with the sign minus that without",
        SIGN_OR_ADAPTATION: f"The one half or the other: {sign} against {adapted}",
        BOTH_OR_NEITHER: f"Both or neither: {both} against {neither}",
    }
    digits, figure = _decimals(analysis), analysis.judged
    diverged = analysis.claims.finding == "diverged"
    return [
        (
            title,
            _margin(
                analysis.claims.effects[name],
                figure,
                digits,
                counts=analysis.claims.effects[name].direction != 0 and not diverged,
            ),
        )
        for name, title in titles.items()
    ]


def others(analysis: Analysis) -> list[tuple[str, list[Margin]]]:
    """Compare the methods outside the four cells with those in them, with single intervals."""
    if not analysis.cells:
        return []
    digits, figure = _decimals(analysis), analysis.judged
    rows = []
    for key, result in analysis.methods.items():
        if key in analysis.cells.values() or not result.runs:
            continue
        own = sample(result.outcome, figure.name)
        effects = []
        for cell in CELLS:
            other = sample(analysis.methods[analysis.cells[cell]].outcome, figure.name)
            effects.append(contrasts.difference(own, other))
        margins = [_margin(effect, figure, digits, counts=False) for effect in effects]
        rows.append((result.entrant.name, margins))
    return rows


def set_aside(analysis: Analysis) -> list[str]:
    """Write which step sizes were not chosen because one of their runs diverged."""
    return [
        f"{result.entrant.name} {listed(numbers.step_size(lr) for lr in sorted(lost))}"
        for result in analysis.methods.values()
        if (lost := result.outcome.set_aside)
    ]


def missing(analysis: Analysis) -> list[str]:
    """Write which cells of Figure 1 have no method with a finished run."""
    filled = {_cell(r) for r in analysis.methods.values() if r.runs and not r.entrant.outside}
    texts = []
    for sign in ROWS:
        for adapted in COLUMNS:
            if (sign, adapted) in filled:
                continue
            names = [
                row.name
                for row in METHODS.values()
                if (row.anatomy.sign, row.anatomy.adapted) == (sign, adapted)
            ]
            texts.append(
                f"{ROWS[sign].lower()}, {COLUMNS[adapted].lower()}: "
                f"{listed(names, 'or')}{_why(analysis, (sign, adapted))}"
            )
    return texts


def published(analysis: Analysis) -> Mapping[str, object] | None:
    """Return final test accuracies beside published ones, and the order of both; None without."""
    known = beside(analysis)
    if known is None:
        return None
    quantity = analysis.judged.quantity
    here = {
        key: analysis.methods[key].final[analysis.judged.name]
        for key in known.test_accuracy
        if key in analysis.methods and analysis.methods[key].runs
    }
    theirs = {key: known.test_accuracy[key] for key in here}
    return {
        "source": known.source,
        "rows": [
            (
                entrant(key).name,
                numbers.spread(value, quantity, 2),
                numbers.spread(Spread(theirs[key], math.nan, 1), quantity, 1),
            )
            for key, value in here.items()
        ],
        "here": _chain(order({key: value.mean for key, value in here.items()})),
        "theirs": _chain(order(theirs)),
    }


def _chain(keys: Iterable[str]) -> str:
    return " > ".join(entrant(key).name for key in keys)


def _why(analysis: Analysis, cell: Cell) -> str:
    inside = [r for r in analysis.methods.values() if not r.entrant.outside]
    lost = [r.entrant.name for r in inside if _cell(r) == cell and r.outcome.complete]
    return f" ({listed(lost)} has no run that did not diverge)" if lost else ""


def _cell(result: MethodResult) -> Cell:
    return result.entrant.sign, result.entrant.adapted


def _margin(effect: Effect, figure: Figure, digits: Mapping[str, int], *, counts: bool) -> Margin:
    decimals = digits[figure.name]
    return Margin(
        numbers.effect(effect, figure.quantity, decimals),
        numbers.interval(effect, figure.quantity, decimals),
        counts,
    )
