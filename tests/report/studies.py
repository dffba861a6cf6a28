"""Small studies: records written as a run writes them, with curves from a formula."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from svag.analysis.study import Analysis, analyse
from svag.anatomy import METHODS, PAPER_METHODS
from svag.entrants import entrant, in_order
from svag.lab.protocol import Outcome, plan
from svag.lab.records import RecordWriter, find
from svag.lab.run import Run
from svag.lab.search import StepSizes
from svag.lab.studies import Study, keep

STEPS = 100
NAN = math.nan

BASE = Run(
    problem="ramp",
    version="1",
    data="0123456789abcdef",
    method="",
    anatomy="",
    beta=None,
    beta2=None,
    lr=0.0,
    seed=0,
    steps=STEPS,
    batch_size=32,
    eval_every=10,
)
LOSS = {
    "metric": "loss",
    "metric_better": "smaller",
    "metric_unit": "",
    "metric_low": None,
    "metric_high": None,
}


def study(
    folder: Path,
    methods: Sequence[str] = PAPER_METHODS,
    *,
    seeds: int = 3,
    searched: bool = True,
    diverging: Sequence[str] = (),
    one_lost: Sequence[str] = (),
    floor: float = 0.01,
    protocol: str = "tuned",
    turned: bool = False,
    **base: object,
) -> Analysis:
    """Write records and analyse them.

    Args:
        folder: where records go.
        methods: keys.
        seeds: final runs.
        searched: whether step sizes were searched for; ten times the default always diverges.
        diverging: methods of which every final run diverges.
        one_lost: methods of which the last final run diverges, wherever the choice moves.
        floor: roughly the final training loss.
        protocol: of the study.
        turned: whether the methods' places are the other way round: the worst is the best.
        base: what the study's runs share.
    """
    lrs = {key: entrant(key).lr for key in methods}
    made = Study(
        base=replace(BASE, **base),  # type: ignore[arg-type]
        methods=tuple(methods),
        seeds=seeds,
        protocol=protocol,  # type: ignore[arg-type]
        lrs={} if searched else lrs,
        starts={key: StepSizes().nearest(lr) for key, lr in lrs.items()} if searched else {},
    )
    for place, key in enumerate(in_order(methods)):
        place = len(methods) - 1 - place if turned else place
        steps = plan(made, key, Outcome(key))
        request = next(steps, None)
        while request is not None:
            for run in request.needed:
                final = run.seed > (1000 if searched and protocol == "tuned" else 0)
                last = final and run.seed % 1000 == seeds
                lost = run.lr > 5 * lrs[key] or (final and key in diverging)
                _record(folder, run, lost or (last and key in one_lost), lrs[key], floor, place)
            answers = {run.id: find(folder, run) for run in request.needed}
            try:
                request = steps.send(answers)  # type: ignore[arg-type]
            except StopIteration:
                request = None
    keep(folder, made)
    return analyse(folder)


def _record(folder: Path, run: Run, lost: bool, top: float, floor: float, place: int) -> None:
    merit = 1.0 - 0.05 * abs(math.log10(run.lr / top))
    rate = 1 + 0.15 * place
    with RecordWriter(folder, run) as recorder:
        for step in range(0, 50 if lost else STEPS + 1, 10):
            figures = _figures(run, step, rate, merit, floor)
            recorder.eval(step, **figures, wall_time=0.015 * step)
        if lost:
            recorder.end("diverged", step=40, train_loss=NAN, test_loss=NAN)
        else:
            recorder.end("done", step=STEPS, **figures, wall_time=1.5)


def _figures(run: Run, step: int, rate: float, merit: float, floor: float) -> dict[str, float]:
    left = math.exp(-rate * 8 * step / STEPS)
    wobble = 1 + 0.1 * math.sin(7 * run.seed + step)
    loss = (2.3 * left + floor / rate) * wobble * (2 - merit)
    figures = {"train_loss": loss, "test_loss": 1.5 * loss}
    if run.metric != "loss":
        value = merit * (0.97 + 0.01 * rate - 0.87 * left) - 0.002 * (wobble - 1) * 10
        value = min(max(value, 0.0), 1.0)
        value = value if run.metric_better == "larger" else 1 - value
        figures |= {f"train_{run.metric}": value, f"test_{run.metric}": value}
    if run.select == "validation":
        figures[f"validation_{run.metric}"] = figures[f"test_{run.metric}"]
    return figures


ALL = tuple(METHODS)
