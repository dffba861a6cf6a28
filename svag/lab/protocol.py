"""A study's protocol as a plan of runs: search, select, repeat.

A method's plan is a generator: it yields the runs that it needs next, is sent their records, and
writes its results to an :class:`Outcome`. It does not depend on who carries it out: the lab sends
records as runs end, an analysis sends those that it has read, and ``svag bench verdict`` sends
made-up ones.

``tuned``: a search with one seed walks over the grid (``lab/search.py``). Its best step size and
both neighbours are run with a few selection seeds. Neighbours are added until both neighbours of
the best one have been run; every step size within two standard errors of the best gets n seeds. The
best is then run with n fresh seeds, the final runs. A step size with a diverged selection run is
not chosen. If a final run diverges, the next smaller step size is chosen, with other fresh seeds,
at most twice.

``paper`` (§6.1): the best step size of the search is run with n other seeds.
"""

import math
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from svag.entrants import entrant
from svag.lab.records import Record
from svag.lab.run import Run
from svag.lab.search import Answers, Request, Search, StepSizes, standing
from svag.lab.studies import Study

Plan: TypeAlias = Generator[Request, Answers, None]

FRESH = 1000
"""Final seeds are ``FRESH * (moves + 1) + 1, ...``; lower seeds are for selection."""

_MOVES = 2
_MOST_CANDIDATES = 12
_STANDARD_ERRORS = 2.0
_START, _START_SIGN = 0, -4


@dataclass
class Outcome:
    """The results of a method's plan so far.

    Attributes:
        key: key of the method.
        search: records of the search by number of the step size; empty if there was no search.
        learnt: whether the search found a step size at which something is learnt, as defined in
            :mod:`svag.lab.search`.
        selection: records of the selection seeds, by step size.
        set_aside: step sizes that were not chosen because one of their runs diverged.
        lr: the chosen step size; NaN if none is chosen yet.
        final: records of the final runs that have finished.
        lost: records of final runs at step sizes that were given up after a divergence.
        moves: number of step sizes that were given up.
        missing: number of runs that are not finished.
        error: message of a run that ended in an error; empty if there is none.
        complete: whether the plan has ended.
    """

    key: str
    search: dict[int, Record] = field(default_factory=dict)
    learnt: bool = True
    selection: dict[float, list[Record]] = field(default_factory=dict)
    set_aside: list[float] = field(default_factory=list)
    lr: float = math.nan
    final: list[Record] = field(default_factory=list)
    lost: dict[float, list[Record]] = field(default_factory=dict)
    moves: int = 0
    missing: int = 0
    error: str = ""
    complete: bool = False

    @property
    def diverged(self) -> int:
        """How many of the final runs diverged."""
        return sum(record.status == "diverged" for record in self.final)

    @property
    def survivors(self) -> list[Record]:
        """The final runs that did not diverge."""
        return [record for record in self.final if record.status == "done"]


def plan(study: Study, key: str, outcome: Outcome) -> Plan:
    """Yield the runs of one method as the study's protocol needs them.

    Args:
        study: the study.
        key: key of the method.
        outcome: an empty one, which is filled on the way.

    Yields:
        Requests for runs; the records of ``Request.needed``, by run id, have to be sent in.
    """
    run = study.run(key)
    if key in study.lrs:
        outcome.lr = study.lrs[key]
        yield from _repeat(study, run, outcome, first_seed=1)
        outcome.complete = True
        return
    search = Search(run, _start(study, key), study.grids.get(key, ()))
    outcome.search = search.trials
    yield from search.walk()
    outcome.learnt = search.learnt
    best = search.best
    if search.failed:
        return
    if best is not None:
        if study.protocol == "paper":
            outcome.lr = search.lrs[best]
            yield from _repeat(study, run, outcome, first_seed=1)
        else:
            selection = _Selection(study, run, search.lrs, outcome)
            yield from _select_and_repeat(study, run, selection, best, outcome)
            if selection.failed:
                return
    outcome.complete = True


def replay(study: Study, key: str, find: Callable[[Run], Record | None]) -> Outcome:
    """Run a method's plan on existing records, as far as there are any; nothing is trained.

    Args:
        study: the study.
        key: key of the method.
        find: returns the record of a run; None if there is none.

    Returns:
        The outcome of the plan at its end, or where the first record is missing.
    """
    outcome = Outcome(key)
    steps = plan(study, key, outcome)
    request, wrong = next(steps, None), list[Record]()
    while request is not None:
        found = {run.id: find(run) for run in request.needed}
        ended = {
            name: record
            for name, record in found.items()
            if record is not None and record.status != "interrupted"
        }
        wrong = [record for record in ended.values() if record.status == "error"]
        if wrong:
            outcome.error = str((wrong[0].end or {}).get("message", "an error"))
        final = all(run.lr == outcome.lr for run in request.needed)
        if len(ended) < len(found) or (wrong and final):
            outcome.missing = len(found) - len(ended) + len(wrong)
            if final:
                outcome.final = [record for record in ended.values() if record.finished]
            return outcome
        try:
            request = steps.send(ended)
        except StopIteration:
            request = None
    if outcome.complete:  # then an error only ended the upward walk of the search
        outcome.error = ""
    else:
        outcome.missing = max(1, len(wrong))
    return outcome


def expected_runs(study: Study) -> int:
    """Return the approximate number of runs of a study; a search takes about seven."""
    searched = len(study.methods) - len(study.lrs)
    each = 7 + 3 * study.selection_seeds + max(0, study.seeds - study.selection_seeds)
    if study.protocol == "paper":
        each = 7
    return each * searched + study.seeds * len(study.methods)


def _start(study: Study, key: str) -> int:
    """Return the number of the step size at which a method's search begins."""
    if key in study.starts:
        return study.starts[key]
    row = entrant(key)
    if row.anatomy is None:
        return StepSizes().nearest(row.lr)
    return _START_SIGN if row.anatomy.sign else _START


def _repeat(study: Study, run: Run, outcome: Outcome, first_seed: int) -> Plan:
    """Run the chosen step size with ``n`` seeds."""
    seeds = range(first_seed, first_seed + study.seeds)
    runs = [replace(run, lr=outcome.lr, seed=seed) for seed in seeds]
    outcome.final = []
    answers = yield Request(runs)
    outcome.final = [answers[one.id] for one in runs]


def _select_and_repeat(
    study: Study, run: Run, selection: "_Selection", best: int, outcome: Outcome
) -> Plan:
    yield from selection.choose({best - 1, best, best + 1})
    for moves in range(_MOVES + 1):
        if selection.chosen is None or selection.failed:
            return
        outcome.lr, outcome.moves = selection.lrs[selection.chosen], moves
        yield from _repeat(study, run, outcome, first_seed=FRESH * (moves + 1) + 1)
        if not outcome.diverged or moves == _MOVES:
            return
        outcome.set_aside.append(outcome.lr)
        outcome.lost[outcome.lr] = outcome.final
        yield from selection.move_down()


class _Selection:
    """The candidate step sizes of a method and their selection runs, by number."""

    def __init__(self, study: Study, run: Run, lrs: StepSizes, outcome: Outcome) -> None:
        self._study, self._run, self._outcome = study, run, outcome
        self.lrs = lrs
        self._records: dict[int, list[Record]] = {}
        self._least = min(study.selection_seeds, study.seeds)
        self.chosen: int | None = None
        self.failed = False

    def choose(self, candidates: set[int]) -> Plan:
        """Run candidates, and neighbours of the best, until the best has no untried neighbour."""
        yield from self._ensure(self._allowed(candidates), self._least)
        while not self.failed:
            wanted = self._neighbours()
            if wanted and len(self._records) < _MOST_CANDIDATES:
                yield from self._ensure(wanted, self._least)
                continue
            close = [i for i in self._close() if len(self._records[i]) < self._study.seeds]
            if not close:
                break
            yield from self._ensure(set(close), self._study.seeds)
        self.chosen = self._best()

    def move_down(self) -> Plan:
        """Choose the next smaller step size whose selection runs do not diverge."""
        below, self.chosen = self.chosen, None
        while below is not None and self.chosen is None and not self.failed:
            below -= 1
            if not self._allowed({below}) or len(self._records) >= 2 * _MOST_CANDIDATES:
                return
            tried = len(self._records.get(below, ()))  # ask for these again, to keep their records
            yield from self._ensure({below}, max(self._least, tried))
            if self._stable(below):
                self.chosen = below

    def _allowed(self, indices: set[int]) -> set[int]:
        return {index for index in indices if index in self.lrs}

    def _neighbours(self) -> set[int]:
        """Return untried neighbours of the best; if none is stable, two below the smallest."""
        best = self._best()
        if best is None:
            wanted = {min(self._records) - 1, min(self._records) - 2}
        else:
            wanted = {best - 1, best + 1}
        return self._allowed(wanted - set(self._records))

    def _close(self) -> list[int]:
        """Return the best candidate and those within two standard errors of it."""
        best = self._best()
        if best is None:
            return []
        stable = [index for index in self._records if self._stable(index)]
        spread = [_variance(self._merits(i)) for i in stable if len(self._records[i]) > 1]
        variance = statistics.fmean(spread) if spread else math.inf
        highest = statistics.fmean(self._merits(best))
        return [
            index
            for index in stable
            if index == best
            or highest - statistics.fmean(self._merits(index))
            <= _STANDARD_ERRORS
            * math.sqrt(variance * (1 / len(self._merits(index)) + 1 / len(self._merits(best))))
        ]

    def _best(self) -> int | None:
        stable = [index for index in self._records if self._stable(index)]
        return max(stable, key=lambda i: (*standing(self._records[i]), i), default=None)

    def _stable(self, index: int) -> bool:
        return all(record.status == "done" for record in self._records[index])

    def _merits(self, index: int) -> list[float]:
        return [record.merit for record in self._records[index]]

    def _ensure(self, indices: set[int], seeds: int) -> Plan:
        """Request runs with seeds 1, ..., ``seeds`` at each of some step sizes."""
        runs: dict[int, list[Run]] = {
            index: [replace(self._run, lr=self.lrs[index], seed=1 + n) for n in range(seeds)]
            for index in sorted(indices)
        }
        answers = yield Request([run for several in runs.values() for run in several])
        for index, several in runs.items():
            records = [answers[run.id] for run in several]
            self._records[index] = self._outcome.selection[self.lrs[index]] = records
            self.failed = self.failed or any(record.status == "error" for record in records)
            if not self._stable(index) and self.lrs[index] not in self._outcome.set_aside:
                self._outcome.set_aside.append(self.lrs[index])


def _variance(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)
