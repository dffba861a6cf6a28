"""The tables of the overview of several problems, as text: halves, observations, ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svag.analysis.contrasts import ADAPTATION, SIGN
from svag.analysis.method_ranks import Rank
from svag.analysis.observations import Observation
from svag.analysis.overview import EQUAL, HELPS, HURTS, OPEN, standing
from svag.analysis.published import PAPER, SEEDS, OfThePaper
from svag.analysis.several_problems import Several
from svag.analysis.study import CELLS, Analysis
from svag.analysis.wording import listed
from svag.entrants import entrant
from svag.report import numbers, tables

_MARKS = {HELPS: "▲", HURTS: "▼", EQUAL: "≈", OPEN: "?"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of Figure 1: a method's name, its figure, and the strength of the tint, 0 to 1."""

    name: str
    value: str
    tint: float


@dataclass(frozen=True, slots=True)
class Half:
    """The effect of a half of Adam: a mark, a word, and the number with its interval."""

    mark: str
    word: str
    effect: str
    interval: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A problem's results in the layout of Figure 1: four cells, and the effect of each half."""

    name: str
    what: str
    cells: Mapping[tuple[bool, bool], Cell]
    halves: Mapping[str, Half]
    note: str


@dataclass(frozen=True, slots=True)
class Line:
    """An observation on one problem: the study's result with its numbers, and the paper's."""

    problem: str
    outcome: str
    detail: str
    paper: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A method's ranks as text, by problem, and their mean."""

    name: str
    key: str
    ranks: list[str]
    mean: str


def tiles(several: Several) -> list[Tile]:
    """Return every problem's results in the layout of Figure 1."""
    return [_tile(one, several.not_judged) for one in several.analyses]


def lines(several: Several, number: int) -> list[Line]:
    """Return one observation's result on each problem, with the paper's statement."""
    readings = several.checks[number].readings
    found = []
    for one in several.analyses:
        problem = one.study.base.problem
        of_the_paper = PAPER.get(problem)
        said = of_the_paper.said[number] if of_the_paper else None
        words = f"{said.outcome}: {said.words}" if said else ""
        reading: Observation | None = readings.get(problem)
        if reading is None:
            reason = several.not_judged[problem]
            outcome, detail = "not judged", f"{reason[0].upper()}{reason[1:]}."
        else:
            outcome, detail = reading.outcome, reading.detail
        found.append(Line(_labelled(problem, of_the_paper), outcome, detail, words))
    return found


def ranked(several: Several) -> tuple[list[str], list[Ranked]]:
    """Return the problems, and the ranks by method, in the order of mean rank."""
    found = several.ranks
    if found is None or len(found.problems) < 2:
        return [], []
    keys = sorted(found.means, key=lambda key: found.means[key])
    rows = [
        Ranked(
            entrant(key).name,
            key,
            [_rank(found.by_method[key][problem]) for problem in found.problems],
            f"{found.means[key]:.2f}",
        )
        for key in keys
    ]
    return list(found.problems), rows


def departures(analysis: Analysis) -> str:
    """Write how a study differs from the paper's runs; empty for problems not in the paper."""
    found = PAPER.get(analysis.study.base.problem)
    return "" if found is None else listed(_departures(analysis, found))


def _departures(analysis: Analysis, paper: OfThePaper) -> list[str]:
    study, base = analysis.study, analysis.study.base
    same = base.steps == paper.steps
    length = f"{base.steps:,} steps" + ("" if same else f" of {paper.steps:,} ({paper.source})")
    seeds = numbers.count(study.seeds, "seed") + (
        "" if study.seeds == SEEDS else f" where the paper has {SEEDS}"
    )
    parts = [length, seeds, base.autocast or "float32"]
    if base.batch_size != paper.batch_size:
        parts.append(f"batches of {base.batch_size} where the paper has {paper.batch_size}")
    return [*parts, protocol(analysis)]


def protocol(analysis: Analysis) -> str:
    """Write how the step sizes were chosen."""
    study = analysis.study
    if all(key in study.lrs for key in study.methods):
        return "step sizes given, not searched for"
    if study.protocol == "paper":
        return "step sizes chosen by one seed, as in the paper"
    return "step sizes chosen by several seeds (the paper: by one)"


def _tile(analysis: Analysis, not_judged: Mapping[str, str]) -> Tile:
    base = analysis.study.base
    what = f"{numbers.count(base.steps, 'step')}, {numbers.count(analysis.study.seeds, 'seed')}"
    rows, merit = tables.rows(analysis), analysis.quantity.merit
    figure = analysis.judged.name
    merits = {
        cell: merit(analysis.methods[key].final[figure].mean)
        for cell, key in analysis.cells.items()
    }
    low, high = min(merits.values(), default=0.0), max(merits.values(), default=0.0)
    cells = {
        cell: Cell(
            rows[key].name,
            rows[key].final[figure],
            (merits[cell] - low) / (high - low) if high > low else 0.5,
        )
        for cell, key in analysis.cells.items()
    }
    reason = not_judged.get(base.problem, "")
    return Tile(
        name=base.problem,
        what=f"{analysis.judged.title}; {what}",
        cells={cell: cells[cell] for cell in CELLS if cell in cells},
        halves={half: _half(analysis, half) for half in (SIGN, ADAPTATION)} if cells else {},
        note=f"Not judged: {reason}." if reason else "",
    )


def _half(analysis: Analysis, half: str) -> Half:
    word = standing(analysis, half)
    margin = tables.margins(analysis)[half][analysis.judged.name]
    return Half(_MARKS[word], word, margin.value, margin.interval)


def _labelled(problem: str, paper: OfThePaper | None) -> str:
    return f"{problem} ({paper.name})" if paper else problem


def _rank(rank: Rank) -> str:
    """Write a rank with its range, ``2 (1 to 3)``, or alone if no other rank is possible."""
    sure = rank.best == rank.worst
    return f"{rank.rank:g}" if sure else f"{rank.rank:g} ({rank.best}\N{EN DASH}{rank.worst})"


def outcomes(several: Several) -> Sequence[tuple[int, str, str, str]]:
    """Return the checks of the observations: number, claim, conclusion and reason."""
    return [
        (number, check.claim, check.outcome, check.because)
        for number, check in enumerate(several.checks, 1)
    ]
