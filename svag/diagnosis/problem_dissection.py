"""Dissects a problem of the lab: at initialisation, after some training, or at saved parameters.

The model, its batches, precision and weight decay are those of a run of the lab, and so is the
training before. The L2 term of weight decay belongs to the loss here, the same for all methods. A
problem with a training step or optimizers of its own, such as a GAN, has no loss of a batch to
measure along directions: it gets the race alone, from initialisation, judged by its metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svag.diagnosis.budget import Budget, default_seconds
from svag.diagnosis.dissect import Progress, carry_out, conclude
from svag.diagnosis.findings import Dissection, Setting
from svag.diagnosis.objective import Objective
from svag.diagnosis.plan import DissectionPlan
from svag.diagnosis.race import Race
from svag.diagnosis.race_result import race_effects
from svag.entrants import Entrant, entrant, with_options
from svag.errors import DissectionError, InvalidOption, in_one_line
from svag.lab.batches import Batches
from svag.lab.evaluation import splits_of
from svag.lab.run import Run
from svag.lab.search import StepSizes
from svag.lab.session import Session
from svag.problems import Data, Problem


@dataclass(frozen=True)
class Point:
    """Where to dissect.

    Attributes:
        after: training steps before, from the problem's initialisation.
        method: key of the method that takes them.
        lr: its step size; None for the method's default.
        at: file of saved parameters, instead of training.
        seed: of initialisation and training.
    """

    after: int = 0
    method: str = "adam"
    lr: float | None = None
    at: Path | None = None
    seed: int = 0


def dissect_problem(
    problem: Problem,
    data: Data,
    base: Run,
    plan: DissectionPlan,
    point: Point,
    progress: Progress,
) -> Dissection:
    """Dissect a problem at a point.

    Args:
        problem: the problem.
        data: its data.
        base: the run that settings such as batch size and precision are taken from.
        plan: methods and budget.
        point: where.
        progress: called with the part and the share of it that is done.

    Raises:
        DissectionError: training diverged on the way to the point, the saved parameters do not fit,
            or the problem cannot be dissected at a later point than initialisation.
    """
    if point.at is not None and point.after:
        raise InvalidOption(
            f"--after {point.after} trains from initialisation, and --at {point.at} loads saved "
            "parameters; give one of them"
        )
    if problem.step is not None or problem.optimizers is not None:
        return _race_alone(problem, data, base, plan, point, progress)
    session = _session(problem, data, base, point)
    model = session.model
    _forget(problem, model)
    training, _ = splits_of(data.to(session.device), base, in_order=problem.carry_state)
    batches = Batches(
        training,
        base.batch_size,
        seed=point.seed + 1,
        augment=problem.augment,
        prepare=problem.prepare,
        in_order=problem.carry_state,
        at_epoch=lambda: _forget(problem, model),
    )
    objective = Objective(
        model,
        problem.loss,
        precision=session.precision,
        weight_decay={
            name: base.weight_decay for name, p in model.named_parameters() if p.ndim >= 2
        },
        carries=problem.carry_state,
    )
    step = None if point.at else point.after
    return carry_out(objective, batches, replace(plan, step=step), progress)


def suggested_starts(
    problem: Problem, data: Data, base: Run, keys: Sequence[str], seconds: float
) -> dict[str, int]:
    """Return the numbers of the step sizes that a dissection suggests, by method.

    Searches may begin there, see ``svag compare --start suggested``.

    Args:
        problem: the problem.
        data: its data.
        base: the run that all runs of the study are variations of.
        keys: the methods; those without a suggestion are left out.
        seconds: time for the dissection.
    """
    plan = DissectionPlan(
        methods=tuple(entrant(key) for key in keys),
        budget=seconds,
        steps=base.steps,
        variants=False,
        problem=problem.name,
    )
    found = dissect_problem(problem, data, base, plan, Point(), lambda part, share: None)
    assert found.conclusion is not None
    grid = StepSizes()
    return {one.method: grid.nearest(one.lr) for one in found.conclusion.suggestions}


def _session(problem: Problem, data: Data, base: Run, point: Point) -> Session:
    """Return a session that stands at the point."""
    one = with_options(point.method)
    run = replace(
        base,
        method=one.key,
        anatomy=str(one.anatomy),
        lr=one.lr if point.lr is None else point.lr,
        seed=point.seed,
        steps=max(base.steps, point.after),
    )
    session = Session(problem, data, run)
    if point.at is not None:
        _load(session.model, point.at)
    elif not session.advance(point.after):
        raise DissectionError(
            f"training with {one.name} at step size {run.lr:g} diverged after {session.step} of "
            f"{point.after} steps; choose a smaller --lr"
        )
    return session


def _load(model: nn.Module, path: Path) -> None:
    """Load parameters: a ``state_dict``, or a file that holds one under a usual name."""
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises for a file that is none of its own
        raise DissectionError(
            f"{path} cannot be loaded ({in_one_line(error)}); save parameters with "
            "torch.save(model.state_dict(), path)"
        ) from error
    for name in ("model", "state_dict", "model_state_dict"):
        if isinstance(saved, Mapping) and isinstance(saved.get(name), Mapping):
            saved = saved[name]
            break
    try:
        model.load_state_dict(saved)
    except Exception as error:  # a user's load_state_dict may raise anything
        raise DissectionError(
            f"the parameters in {path} do not fit the model: {in_one_line(error)}"
        ) from error


def _forget(problem: Problem, model: nn.Module) -> None:
    """Clear the state that a model carries from one batch to the next."""
    if problem.carry_state:
        setattr(model, "carried_state", None)  # noqa: B010


class _SessionTrainer:
    """Trains a problem from its initialisation by its own step, and judges it by its metric."""

    def __init__(self, problem: Problem, data: Data, base: Run) -> None:
        self._problem, self._data, self._base = problem, data, base

    def start_loss(self) -> float:
        return self._loss(Session(self._problem, self._data, replace(self._base, method="sgd")))

    def train(self, one: Entrant, lr: float, steps: int, seed: int) -> tuple[float, int]:
        run = replace(
            self._base, method=one.key, anatomy=str(one.anatomy), lr=lr, seed=seed, steps=steps
        )
        session = Session(self._problem, self._data, run)
        if not session.advance(steps):
            return math.inf, session.step
        return self._loss(session), steps

    def _loss(self, session: Session) -> float:
        figures = session.evaluate()
        value = figures.get(f"train_{self._base.metric}", math.nan)
        value = -value if self._base.metric_better == "larger" else value
        return value if math.isfinite(value) else math.inf


def _race_alone(
    problem: Problem, data: Data, base: Run, plan: DissectionPlan, point: Point, progress: Progress
) -> Dissection:
    if point.after or point.at:
        raise DissectionError(
            f"{problem.name!r} has a training step of its own, so there is only a race, from "
            "initialisation; leave --after and --at away"
        )
    session = Session(problem, data, replace(base, method="sgd"))
    parameters = sum(p.numel() for p in session.model.parameters() if p.requires_grad)
    clock = Budget(plan.budget or default_seconds(parameters), plan.spent)
    trainer = _SessionTrainer(problem, data, base)
    starts = {one.key: one.lr for one in plan.methods}
    race = Race(trainer, plan.most_raced).run(
        plan.methods,
        starts,
        seconds=clock.seconds - plan.spent,
        progress=lambda s: progress("race", s),
    )
    found = Dissection(
        Setting(
            problem=problem.name,
            step=0,
            planned=plan.steps,
            parameters=parameters,
            batch_size=base.batch_size,
            methods=tuple(one.key for one in plan.methods),
            cells=plan.cells,
            device=str(session.device),
            budget=clock.seconds,
            seconds=round(clock.spent, 1),
            loss=race.start_loss,
            gradients=0,
            evaluations=0,
            steps_measured=False,
            metric=base.metric,
            larger_is_better=base.metric_better == "larger",
        ),
        race=race,
        skipped=["the problem has a training step of its own, so there is only the race"],
    )
    if plan.cells:
        found.race_effects = list(race_effects(race, plan.cells).values())
    found.conclusion = conclude(found)
    return found
