"""The paper's protocol (§6.1) as a plan of runs: search for a step size, then replicate.

A method's plan is a generator: it yields the runs it needs next and is sent their records. The
search walks the grid 1, 3 x 10^k upwards until a run diverges, then downwards from where it began,
and keeps the step size with the best accuracy at the end of the run. Either way it stops early
when two runs in a row are worse than the best, once that has learnt something: there the paper
goes on to the largest stable step size. Searching has seed 0 and replicating seeds 1, 2, ..., so
that the figures reported are not those selected by.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from svag.anatomy import method
from svag.errors import InvalidOption
from svag.lab import records
from svag.lab.pool import Event, Executor
from svag.lab.records import SEARCH_SEED, STUDY, Record, Run, Select
from svag.problems import Data, Problem

Budget = Literal["quick", "paper"]
Plan: TypeAlias = Generator[list[Run], dict[str, Record], None]

SEEDS: Mapping[Budget, int] = {"quick": 5, "paper": 10}

_EVALUATIONS = 20
_PATIENCE = 2
_START, _START_SIGN = 0, -4
_HIGHEST, _LOWEST = 8, -14


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison: which methods, how long, how often, and step sizes that are settled already.

    Attributes:
        methods: keys.
        lrs: step sizes that need no search, by method.
        steps: length of every run.
        seeds: replications of every method.
        select: what step sizes are chosen by.
    """

    methods: tuple[str, ...]
    steps: int
    seeds: int
    lrs: Mapping[str, float]
    select: Select = "test"

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("seeds", self.seeds)):
            if value < 1:
                raise InvalidOption(f"{name}={value}: a study needs at least 1")
        for key, lr in self.lrs.items():
            if key not in self.methods:
                raise InvalidOption(
                    f"a step size is given for {key!r}, which is not compared; "
                    f"compared are {', '.join(self.methods)}"
                )
            if not 0 < lr < float("inf"):
                raise InvalidOption(f"step size {lr} for {key!r}: give a finite number above 0")


def template(problem: Problem, data: Data, study: Study) -> Run:
    """Return the run that all runs of a study are variations of."""
    return Run(
        problem=problem.name,
        version=problem.version,
        data=data.fingerprint,
        method="",
        anatomy="",
        beta=None,
        beta2=None,
        lr=0.0,
        seed=SEARCH_SEED,
        steps=study.steps,
        batch_size=problem.batch_size,
        eval_every=max(1, study.steps // _EVALUATIONS),
        select=study.select,
    )


def shared_settings(base: Run) -> dict[str, object]:
    """Return the settings that tell this study's records from those of others."""
    return {key: getattr(base, key) for key in STUDY}


def plan(base: Run, key: str, study: Study) -> Plan:
    """Plan one method's runs: the search, unless its step size is settled, and the replications."""
    row = method(key)
    beta, beta2 = (*row.betas, None, None)[:2]
    run = replace(base, method=key, anatomy=str(row.anatomy), beta=beta, beta2=beta2)
    if key in study.lrs:
        lr: float | None = study.lrs[key]
    else:
        lr = yield from _search(run, _START_SIGN if row.anatomy.sign else _START)
    if lr is not None:
        yield [replace(run, lr=lr, seed=SEARCH_SEED + 1 + n) for n in range(study.seeds)]


def expected_runs(study: Study) -> int:
    """Guess how many runs a study takes: a search is about seven."""
    searched = len(study.methods) - len(study.lrs)
    return 7 * searched + study.seeds * len(study.methods)


def grid(index: int) -> float:
    """Step size number ``index`` of the grid: 0.01, 0.03, 0.1, 0.3, 1, 3, ... for -4, -3, ..."""
    return float(f"{3 if index % 2 else 1}e{index // 2}")


def carry_out(
    plans: Mapping[str, Plan],
    executor: Executor,
    directory: Path,
    observe: Callable[[Event, Record | None], None] = lambda event, record: None,
) -> list[Record]:
    """Carry out the plans of several methods at once; runs recorded earlier are not repeated.

    Args:
        plans: one for each method.
        executor: carries out what is not yet recorded.
        directory: where records are kept.
        observe: told of every beginning, progress and end, and the record of what has ended.

    Returns:
        The records of all runs that the plans asked for.
    """
    waiting: dict[str, set[str]] = {key: set() for key in plans}
    results: dict[str, dict[str, Record]] = {key: {} for key in plans}
    owners: dict[str, str] = {}
    collected: dict[str, Record] = {}

    def settle(key: str, run: Run, record: Record) -> None:
        waiting[key].discard(run.id)
        results[key][run.id] = collected[run.id] = record

    def advance(key: str, first: bool = False) -> None:
        """Ask a plan for its next runs as long as all of them are recorded already."""
        while first or not waiting[key]:
            try:
                wanted = next(plans[key]) if first else plans[key].send(results[key])
            except StopIteration:
                return
            first, results[key] = False, {}
            for run in wanted:
                waiting[key].add(run.id)
                owners[run.id] = key
            for run in wanted:
                record = records.find(directory, run)
                if record is not None and record.finished:
                    settle(key, run, record)
                    observe(Event(run, run.steps, ended=True, reused=True), record)
                else:
                    executor.submit(run)

    for key in plans:
        advance(key, first=True)
    for event in executor.events():
        if not event.ended:
            observe(event, None)
            continue
        ended = records.find(directory, event.run)
        assert ended is not None
        settle(owners[event.run.id], event.run, ended)
        observe(event, ended)
        if not waiting[owners[event.run.id]]:
            advance(owners[event.run.id])
    return list(collected.values())


def _search(run: Run, start: int) -> Generator[list[Run], dict[str, Record], float | None]:
    """Walk up until a run diverges, then down from the start, until two in a row are no better.

    Returns:
        The best step size; None where none was stable or a run ended in error.
    """
    merits: dict[int, float] = {}
    learnt = False
    for indices in (range(start, _HIGHEST + 1), range(start - 1, _LOWEST - 1, -1)):
        upwards = indices.step > 0
        worse = 0
        for index in indices:
            tried = replace(run, lr=grid(index))
            record = (yield [tried])[tried.id]
            if record.status == "error":
                return None
            best = max(merits.values(), default=float("-inf"))
            merits[index] = record.merit
            learnt = learnt or record.has_learnt
            if upwards:
                no_better = record.merit <= best or not record.has_learnt
            else:  # at chance, or on a plateau, what lies further down may still be better
                no_better = record.merit < best and learnt
            worse = worse + 1 if no_better else 0
            if worse == _PATIENCE or (upwards and record.status == "diverged"):
                break
    if max(merits.values()) == float("-inf"):
        return None
    return grid(max(merits, key=lambda index: (merits[index], index)))
