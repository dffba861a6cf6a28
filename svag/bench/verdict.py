"""Measures how often a verdict is wrong: simulates studies of made-up methods with known effects.

A made-up run ends at an accuracy of

    0.95 + effect - 4 cost (log10(lr) - best)^2 + seed's deviation

so that a step size half a decade off the best one loses ``cost``. The plan of ``lab/protocol.py``
requests the runs, and ``analysis/claims.py`` draws the conclusions, as for real runs. Effects,
costs and deviations are in percentage points of accuracy; the standard deviation between seeds is
half a point.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from svag.analysis import contrasts
from svag.analysis.claims import UNDECIDED, Claims, claims
from svag.analysis.contrasts import CLAIMED, WEIGHTS, Array
from svag.analysis.results import sample
from svag.anatomy import PAPER_METHODS
from svag.lab.protocol import Outcome, plan
from svag.lab.records import Record
from svag.lab.run import Run
from svag.lab.search import StepSizes
from svag.lab.studies import Protocol, Study
from svag.quantity import ACCURACY

DEVIATION = 0.5
COSTS = (0.0, 0.25, 0.5, 1.25)
SEEDS = (3, 5, 10)

_CELLS = ("m-sgd", "m-svag", "m-ssd", "adam")
_TOP, _CHANCE = 95.0, 10.0
_GRID_FROM, _GRID_TO = -12, 13
_FIGURE = "test_accuracy"

BASE = Run(
    problem="made-up",
    version="",
    data="",
    method="",
    anatomy="",
    beta=None,
    beta2=None,
    lr=0.0,
    seed=0,
    steps=1,
    batch_size=1,
    eval_every=1,
)


@dataclass(frozen=True)
class Scenario:
    """A scenario: the properties of made-up methods, in the order M-SGD, M-SVAG, M-SSD, Adam.

    Attributes:
        name: name of the scenario.
        effects: gain of each method at its best step size, in points.
        alike: whether all methods' best step sizes are at the same place between two grid points.
        tails: distribution of seeds: ``normal``, or ``t3``, Student's t with 3 degrees of freedom.
        deviations: standard deviations between seeds, in points.
        diverging: probability that a run diverges, by method.
        unstable: whether that grows with the step size, and is 0 below the best one.
    """

    name: str
    effects: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    alike: bool = True
    tails: str = "normal"
    deviations: tuple[float, ...] = (DEVIATION,) * 4
    diverging: tuple[float, ...] = (0.0,) * 4
    unstable: bool = False


_3SD = 3 * DEVIATION
SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("no effect"),
        Scenario("no effect, heavy tails", tails="t3"),
        Scenario("no effect, one noisy method", deviations=(1.0, 0.1, 0.1, 0.1)),
        Scenario("best step sizes apart", alike=False),
        Scenario("sign, 3 sd", (0.0, 0.0, _3SD, _3SD)),
        Scenario("adaptation, 3 sd", (0.0, _3SD, 0.0, _3SD)),
        Scenario("equal halves, 3 sd each", (0.0, _3SD, _3SD, 2 * _3SD)),
        Scenario("interaction, 3 sd", (_3SD, 0.0, 0.0, _3SD)),
        Scenario("sign at the margin", (0.0, 0.0, DEVIATION, DEVIATION)),
        Scenario(
            "sign methods diverge, 60 %", (0.0, 0.0, 6.0, 6.0), diverging=(0.0, 0.0, 0.6, 0.6)
        ),
        Scenario(
            "sign, 3 sd, M-SSD unstable",
            (0.0, 0.0, _3SD, _3SD),
            diverging=(0.0, 0.0, 0.2, 0.0),
            unstable=True,
        ),
        Scenario("unstable above the best", diverging=(0.3,) * 4, unstable=True),
    )
}


COLUMNS = (
    *("scenario", "half a decade costs", "n", "any claim", "sign counts", "sign decides"),
    *("adaptation decides", "sign equal", "joint coverage", "single coverage", "diverged", "runs"),
)


@dataclass
class Tally:
    """Sums over the studies of one scenario, mostly numbers of studies with a finding.

    ``single`` is the share of a study's five effects that are covered, ``runs`` those per method.
    """

    studies: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Count one study."""
        self.studies += 1
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value

    def rate(self, name: str) -> float:
        """Mean of a figure over studies."""
        return self.figures.get(name, 0.0) / self.studies if self.studies else math.nan


@dataclass(frozen=True)
class ErrorRates:
    """The results of a scenario, as shares of studies, and the mean number of runs per method."""

    scenario: str
    cost: float
    seeds: int
    studies: int
    claims: float
    sign_counts: float
    sign_decides: float
    adaptation_decides: float
    sign_equal: float
    joint: float
    single: float
    diverged: float
    runs: float

    def __str__(self) -> str:
        """Write the row of a table, shares in per cent."""
        shares = (
            *(self.claims, self.sign_counts, self.sign_decides, self.adaptation_decides),
            *(self.sign_equal, self.joint, self.single, self.diverged),
        )
        cells = [self.scenario, f"{self.cost:g}", str(self.seeds)]
        cells += [f"{100 * share:.1f}" for share in shares]
        return f"| {' | '.join([*cells, f'{self.runs:.1f}'])} |"


def measure(
    *,
    studies: int,
    seeds: Sequence[int] = SEEDS,
    costs: Sequence[float] = COSTS,
    scenarios: Iterable[str] = SCENARIOS,
    protocol: Protocol = "tuned",
    workers: int = 1,
    observe: Callable[[ErrorRates], None] = lambda row: None,
) -> list[ErrorRates]:
    """Simulate studies for every combination of scenario, cost and number of seeds.

    Args:
        studies: number of studies of each combination.
        seeds: numbers of final runs of a method, n.
        costs: percentage points lost at a step size half a decade off the best.
        scenarios: names of scenarios, keys of ``SCENARIOS``.
        protocol: ``"tuned"`` or ``"paper"``.
        workers: number of processes.
        observe: called with each row when it is ready.

    Returns:
        A row for each combination.
    """
    jobs = [
        (SCENARIOS[name], cost, n, protocol, studies)
        for name in scenarios
        for cost in costs
        for n in seeds
    ]
    rows = []
    if workers == 1:
        for job in jobs:
            rows.append(_row(job))
            observe(rows[-1])
        return rows
    with ProcessPoolExecutor(workers) as pool:
        for row in pool.map(_row, jobs):
            rows.append(row)
            observe(row)
    return rows


def _row(job: tuple[Scenario, float, int, Protocol, int]) -> ErrorRates:
    scenario, cost, seeds, protocol, studies = job
    tally = Tally()
    for number in range(studies):
        tally.add(**_study(scenario, cost, seeds, protocol, number))
    return ErrorRates(
        scenario=scenario.name,
        cost=cost,
        seeds=seeds,
        studies=studies,
        **{
            name: tally.rate(name)
            for name in (
                *("claims", "sign_counts", "sign_decides", "adaptation_decides", "sign_equal"),
                *("joint", "single", "diverged", "runs"),
            )
        },
    )


def _study(
    scenario: Scenario, cost: float, seeds: int, protocol: Protocol, number: int
) -> dict[str, float]:
    """Simulate one study and compare its findings with the true effects."""
    rng = np.random.default_rng([number, seeds, round(100 * cost)])
    shifts = np.full(4, rng.uniform(-0.25, 0.25)) if scenario.alike else rng.uniform(-0.25, 0.25, 4)
    study = Study(base=BASE, methods=PAPER_METHODS, seeds=seeds, protocol=protocol)
    outcomes, runs = [], 0
    for place, key in enumerate(_CELLS):
        made = _Method(scenario, cost, float(shifts[place]), place, rng)
        outcomes.append(made.carry_out(study, key))
        runs += made.runs
    diverged = any(outcome.diverged for outcome in outcomes)
    if any(len(outcome.survivors) == 0 for outcome in outcomes):
        return {"diverged": 1.0, "runs": runs / 4}
    samples = [sample(outcome, _FIGURE) for outcome in outcomes]
    found = claims(samples, ACCURACY, diverged=diverged)
    best = np.array([_best_mean(scenario, cost, shift, k) for k, shift in enumerate(shifts)])
    at_choice = np.array(
        [
            _mean(scenario, cost, s, k, o.lr)
            for k, (s, o) in enumerate(zip(shifts, outcomes, strict=True))
        ]
    )
    return {
        **_said(found),
        **_covered(found, samples, best, at_choice),
        "runs": runs / 4,
        "diverged": float(diverged),
    }


def _said(found: Claims) -> dict[str, float]:
    claiming = found.finding not in UNDECIDED
    counted = found.finding != "diverged" and found.effects["sign"].direction != 0
    return {
        "claims": float(claiming),
        "sign_counts": float(counted),
        "sign_decides": float(found.finding == "sign decides"),
        "adaptation_decides": float(found.finding == "adaptation decides"),
        "sign_equal": float("sign" in found.equal and found.finding != "diverged"),
    }


def _covered(
    found: Claims, samples: Sequence[contrasts.Sample], best: Array, at_choice: Array
) -> dict[str, float]:
    """Return whether all simultaneous intervals cover, and the share of single ones that do."""
    joint = all(
        _holds(found.effects[name].interval, float(WEIGHTS[name] @ best)) for name in CLAIMED
    )
    single = [
        _holds(contrasts.single(samples, WEIGHTS[name]).interval, float(WEIGHTS[name] @ at_choice))
        for name in CLAIMED
    ]
    return {"joint": float(joint), "single": sum(single) / len(single)}


def _holds(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


class _Method:
    """A made-up method, whose runs are drawn at random when they are requested."""

    def __init__(
        self, scenario: Scenario, cost: float, shift: float, place: int, rng: np.random.Generator
    ) -> None:
        self._world, self._cost, self._shift, self._place = scenario, cost, shift, place
        self._rng = rng
        self._known: dict[tuple[float, int], Record] = {}
        self.runs = 0

    def carry_out(self, study: Study, key: str) -> Outcome:
        outcome = Outcome(key)
        steps = plan(study, key, outcome)
        request = next(steps, None)
        while request is not None:
            answers = {run.id: self._record(run) for run in request.needed}
            try:
                request = steps.send(answers)
            except StopIteration:
                request = None
        return outcome

    def _record(self, run: Run) -> Record:
        known = self._known.get((run.lr, run.seed))
        if known is None:
            self.runs += 1
            known = self._known[run.lr, run.seed] = self._drawn(run)
        return known

    def _drawn(self, run: Run) -> Record:
        scenario = self._world
        noise = (
            self._rng.standard_normal()
            if scenario.tails == "normal"
            else (self._rng.standard_t(3) / math.sqrt(3))
        )
        accuracy = _mean(scenario, self._cost, self._shift, self._place, run.lr)
        accuracy += scenario.deviations[self._place] / 100 * noise
        lost = self._rng.random() < self._share_diverging(run.lr)
        line: dict[str, Any] = {
            "select": run.select,
            "metric": run.metric,
            "metric_better": run.metric_better,
            "lr": run.lr,
            "seed": run.seed,
            "steps": run.steps,
        }
        end = {"status": "diverged"} if lost else {"status": "done", _FIGURE: accuracy}
        first = {"step": 0, _FIGURE: _CHANCE / 100}
        return Record(line, [first] if lost else [first, {"step": run.steps, **end}], end)

    def _share_diverging(self, lr: float) -> float:
        share = self._world.diverging[self._place]
        if not self._world.unstable:
            return share
        return min(1.0, share * max(0.0, 1 + 2 * (math.log10(lr) - self._shift)))


def _mean(scenario: Scenario, cost: float, shift: float, place: int, lr: float) -> float:
    """Return a method's expected accuracy at a step size, as a fraction."""
    points = _TOP + scenario.effects[place] - 4 * cost * (math.log10(lr) - shift) ** 2
    return max(points, _CHANCE) / 100


def _best_mean(scenario: Scenario, cost: float, shift: float, place: int) -> float:
    """Return the expected accuracy at the best step size of the grid that can be chosen."""
    grid = [StepSizes()[index] for index in range(_GRID_FROM, _GRID_TO)]
    return max(_mean(scenario, cost, shift, place, lr) for lr in grid)
