"""What the page's tables hold, as text; every number comes from the analysis."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from svag.anatomy import METHODS, method
from svag.lab.analysis import FIGURES, Analysis, Cell, Effect, Figure, MethodResult, Spread
from svag.lab.published import beside, order
from svag.report import style

ROWS: Mapping[bool, str] = {False: "No sign", True: "Sign"}
COLUMNS: Mapping[bool, str] = {False: "Not adapted", True: "Variance-adapted"}
HEADLINES: tuple[Figure, ...] = ("test_accuracy", "train_loss")


@dataclass(frozen=True, slots=True)
class Row:
    """A method's results as text: figures by ``final`` or ``best`` and name."""

    key: str
    name: str
    sign: bool
    adapted: bool
    update: str
    beta: str
    lr: str
    final: Mapping[Figure, str]
    best: Mapping[Figure, str]
    n: int
    diverged: int


@dataclass(frozen=True, slots=True)
class Margin:
    """An effect as text, and whether its interval excludes 0."""

    value: str
    interval: str
    counts: bool


def rows(analysis: Analysis) -> dict[str, Row]:
    """Write every method's results, with equal decimals down each column."""
    results = analysis.methods
    digits = {f: style.decimals([r.final[f] for r in results.values()], f) for f in FIGURES}
    return {
        key: Row(
            key=key,
            name=method(key).name,
            sign=method(key).anatomy.sign,
            adapted=method(key).anatomy.adapted,
            update=str(method(key).anatomy),
            beta=_betas(result),
            lr=style.step_size(result.lr),
            final={f: style.spread(result.final[f], f, digits[f]) for f in FIGURES},
            best={f: style.spread(result.best[f], f, digits[f]) for f in FIGURES},
            n=len(result.replications),
            diverged=result.diverged,
        )
        for key, result in results.items()
    }


def square(analysis: Analysis) -> Mapping[Cell, str]:
    """Give the keys of the methods in Figure 1's four cells; nothing if one is missing."""
    return analysis.cells if analysis.effects else {}


def margins(analysis: Analysis) -> dict[str, dict[Figure, Margin]]:
    """Write the effects by name and figure; none if a cell is missing."""
    if not analysis.effects:
        return {}
    digits = {
        f: style.decimals([analysis.methods[key].final[f] for key in analysis.cells.values()], f)
        for f in HEADLINES
    }
    return {
        name: {f: _margin(analysis.effects[f][name], f, digits[f]) for f in HEADLINES}
        for name in analysis.effects["train_loss"]
    }


def missing(analysis: Analysis) -> list[str]:
    """Say which of Figure 1's cells no method with a finished run stands in."""
    filled = {r.cell for r in analysis.methods.values() if r.replications}
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
                f"{style.listed(names, 'or')}{_why(analysis, (sign, adapted))}"
            )
    return texts


def published(analysis: Analysis) -> Mapping[str, object] | None:
    """Put final test accuracies beside published ones, and both in order; None if none are."""
    known = beside(analysis)
    if known is None:
        return None
    here = {
        key: analysis.methods[key].final["test_accuracy"]
        for key in known.test_accuracy
        if key in analysis.methods and analysis.methods[key].replications
    }
    theirs = {key: known.test_accuracy[key] for key in here}
    return {
        "source": known.source,
        "rows": [
            (
                method(key).name,
                style.spread(value, "test_accuracy", 2),
                style.spread(Spread(theirs[key], math.nan, 1), "test_accuracy", 1),
            )
            for key, value in here.items()
        ],
        "here": _chain(order({key: value.mean for key, value in here.items()})),
        "theirs": _chain(order(theirs)),
    }


def _chain(keys: Iterable[str]) -> str:
    return " > ".join(method(key).name for key in keys)


def _why(analysis: Analysis, cell: Cell) -> str:
    lost = [method(key).name for key, r in analysis.methods.items() if r.cell == cell]
    return f" ({style.listed(lost)} has no run that did not diverge)" if lost else ""


def _margin(effect: Effect, figure: Figure, decimals: int) -> Margin:
    return Margin(
        style.effect(effect, figure, decimals),
        style.interval(effect, figure, decimals),
        effect.direction != 0,
    )


def _betas(result: MethodResult) -> str:
    if not result.replications:
        return ", ".join(f"{beta:g}" for beta in method(result.key).betas) or style.NONE
    run = result.replications[0].run
    betas = [run.get("beta"), run.get("beta2")]
    return ", ".join(f"{beta:g}" for beta in betas if beta is not None) or style.NONE
