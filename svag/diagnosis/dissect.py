"""``svag.dissect``: the whole diagnosis of a model at its current parameters."""

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from svag.analysis.contrasts import ADAPTATION, SIGN
from svag.anatomy import PAPER_METHODS
from svag.diagnosis import conclusion as conclusions
from svag.diagnosis.budget import Budget, default_seconds, seconds_of
from svag.diagnosis.curvature.summary import KeptDirections, curvature_rows
from svag.diagnosis.directions import Track
from svag.diagnosis.findings import Dissection, Setting, StepEffect, refuse_folder
from svag.diagnosis.improvement import Factorial, effects, improvement, worths
from svag.diagnosis.line_search import Decreases
from svag.diagnosis.measurement import HELD_A_DRAW, LEAST_DRAWS, MOST_DRAWS, Measurement
from svag.diagnosis.noise_summary import NoiseSummary
from svag.diagnosis.objective import BatchLoss, Loss, Objective
from svag.diagnosis.plan import DissectionPlan
from svag.diagnosis.race import Race
from svag.diagnosis.race_result import race_effects
from svag.diagnosis.race_training import ObjectiveTrainer
from svag.diagnosis.refusals import refuse_arguments
from svag.diagnosis.rotation import Rotation
from svag.diagnosis.sampling import Sampling, generators_kept
from svag.diagnosis.track_record import of_step_sizes
from svag.diagnosis.trained_optimizer import decays_of, states_of
from svag.entrants import entrant
from svag.errors import DissectionError, InvalidOption
from svag.problems.seeding import seed_everything

Progress: TypeAlias = Callable[[str, float], None]

_LARGER = (2, 4, 8)
_LEAST_OF_VARIANTS, _MOST_OF_VARIANTS = 3, 24
_HELD_BYTES = 2**28
_LEAST_HELD = 8


def _silent(part: str, share: float) -> None:
    """Report no progress."""


def dissect(
    model: nn.Module,
    loss_fn: Loss | None = None,
    batches: Iterable[Any] = (),
    *,
    batch_loss: BatchLoss | None = None,
    optimizer: Optimizer | None = None,
    methods: Sequence[str] = PAPER_METHODS,
    budget: float | str | None = None,
    draws: int | None = None,
    steps: int | None = None,
    longest: int | None = None,
    race: bool = True,
    precision: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    out: str | Path | None = None,
    progress: Progress = _silent,
    seed: int = 0,
) -> Dissection:
    """Say whether Adam's sign or its variance adaptation helps on a model, at its parameters.

    For each method, what one step is worth is measured at the current parameters (Eq. 12, by line
    search on held batches); a short race follows; then the curvature, and variants of the
    directions. Parameters, gradients, buffers, modes and generators, that of a ``DataLoader``
    among them, are as before afterwards.

    Args:
        model: the model, on its device, at the parameters to dissect.
        loss_fn: mean loss from outputs and targets; batches are then pairs ``(inputs, targets)``.
        batches: an iterable of training batches that can be started again, such as a
            ``DataLoader``, or a generator with enough of them.
        batch_loss: instead of ``loss_fn``, ``batch_loss(model, batch)`` for batches of any kind;
            for instance ``lambda model, batch: model(**batch).loss``.
        optimizer: the optimizer that has trained the model so far. Its averages are the starting
            point of its own method, if it is one of svag's or ``torch.optim.Adam``. Weight decay
            that it adds to the gradient becomes part of the loss.
        methods: what to dissect, as ``svag methods`` lists them; an optimizer of any package is
            ``package.module.name``.
        budget: time, in seconds or as ``"90s"``, ``"5m"``: directions and step sizes first
            (42 %), then the race (36 %), the curvature (12 %), and variants (8 %). None is 5
            minutes, or 50 seconds for a model with fewer than 100,000 parameters.
        draws: number of draws of each direction, so that the result does not depend on the
            machine's speed; by default the budget decides, 6 to 48.
        steps: length of the training that is planned. The step sizes that are suggested for sign
            methods depend on it.
        longest: most steps of a training in the race; by default a fifth of ``steps``.
        race: whether to race; without, the suggestions rest on one step.
        precision: returns the context of the forward pass, such as autocast.
        out: folder for the records, of which ``svag report OUT`` makes a page.
        progress: called with the part and the share of it that is done.
        seed: of everything that is drawn.

    Returns:
        The findings. ``print(found)`` shows the answer.

    Raises:
        DissectionError: the loss or a gradient is not finite, or the loss is not one number or not
            reproducible; or the batches end too soon.
        InvalidOption: an option has a value outside its set; nothing is trainable; or the model or
            the optimizer is one that cannot be dissected.
        RecordError: ``out`` cannot be written to.

    Example:
        >>> import torch, svag
        >>> data = torch.utils.data.TensorDataset(torch.randn(256, 4), torch.randn(256, 1))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
        >>> model = torch.nn.Linear(4, 1)
        >>> found = svag.dissect(model, torch.nn.functional.mse_loss, loader, budget="1s")
        >>> [one.effect for one in found.conclusion.statements]
        ['sign', 'adaptation']
    """
    if out is not None:
        refuse_folder(Path(out))
    refuse_arguments(methods, optimizer, progress)
    entrants = tuple(entrant(text) for text in dict.fromkeys(methods))
    plan = DissectionPlan(
        methods=entrants,
        budget=None if budget is None else seconds_of(budget),
        draws=draws,
        steps=steps,
        longest=longest,
        race=race,
        states=None if optimizer is None else states_of(optimizer, entrants),
        seed=seed,
    )
    objective = Objective(
        model,
        loss_fn,
        batch_loss=batch_loss,
        precision=precision,
        weight_decay={} if optimizer is None else decays_of(model, optimizer),
    )
    found = carry_out(objective, batches, plan, progress)
    if out is not None:
        found.write(Path(out))
    return found


def carry_out(
    objective: Objective, batches: Iterable[Any], plan: DissectionPlan, progress: Progress = _silent
) -> Dissection:
    """Dissect an objective according to a plan; everything is restored afterwards.

    Args:
        objective: the model and its loss.
        batches: training batches.
        plan: what to measure, and within which time.
        progress: called with the part and the share of it that is done.
    """
    _check(plan)
    plan = plan.checked()
    with generators_kept(batches), objective.parameters_kept(), objective.dissected():
        seed_everything(plan.seed)
        return _Work(objective, batches, plan, progress).findings()


def _check(plan: DissectionPlan) -> None:
    if not plan.methods:
        raise InvalidOption("methods=() leaves nothing to dissect; name one or more")
    for one in plan.methods:
        if one.options.get("weight_decay") and not one.options.get("decoupled"):
            raise InvalidOption(
                f"{one.key!r}: weight decay that is added to the gradient belongs to the loss, the "
                "same for all methods; leave it out, or make it decoupled"
            )


def conclude(found: Dissection) -> conclusions.Conclusion:
    """Return what follows from the findings."""
    cells = found.setting.cells
    of_step = {(one.track, one.effect.name): one.effect for one in found.effects}
    of_race = {one.name: one for one in found.race_effects}
    scale = math.nan
    if found.race is not None and found.race_effects:
        mean = sum(found.race.losses[key] for key in cells) / len(cells)
        scale = min(found.race.start_loss - mean, abs(mean))
    evidence = conclusions.Evidence(
        complete=bool(cells),
        steps=found.setting.steps_measured,
        metric=found.setting.metric,
        larger=found.setting.larger_is_better,
    )
    statements = tuple(
        conclusions.statement(
            name, of_step.get(("plain", name)), of_race.get(name), found.race, scale, evidence
        )
        for name in (SIGN, ADAPTATION)
    )
    larger = {
        count: of_step[name, SIGN]
        for count in _LARGER
        if (name := Track(count).name, SIGN) in of_step
    }
    plain = of_step.get(("plain", SIGN))
    improvements = {one.method: one for one in found.improvements if one.track == "plain"}
    entrants = [entrant(key) for key in found.setting.methods]
    best, suggested = conclusions.suggestions(
        entrants, improvements, found.race, found.setting.planned
    )
    notes = (
        conclusions.tie_note(found.race),
        conclusions.unbounded_note(found.race),
        conclusions.rotation_note(plain, of_step.get(("rotated", SIGN))),
        conclusions.batch_note(plain, larger),
        of_step_sizes() if any(one.basis == "race" for one in suggested) else "",
    )
    return conclusions.Conclusion(
        headline=conclusions.headline(
            statements, any(one.interval for one in found.race_effects), evidence
        ),
        statements=statements,
        notes=tuple(filter(None, notes)),
        best=best,
        suggestions=suggested,
    )


class _Work:
    """A dissection in progress."""

    def __init__(
        self, objective: Objective, batches: Iterable[Any], plan: DissectionPlan, progress: Progress
    ) -> None:
        self._objective, self._plan, self._progress = objective, plan, progress
        self._budget = Budget(plan.budget or default_seconds(objective.size), plan.spent)
        self._sampling = Sampling(objective, batches, reorder=True)
        self._held = self._hold()
        self._loss = objective.check(self._held[0])
        self._skipped: list[str] = []
        self._kept = KeptDirections(objective, len(plan.methods))

    def findings(self) -> Dissection:
        """Measure everything, in the order of the budget."""
        noise = NoiseSummary(self._objective, self._sampling.batch_size)
        base = self._measure([Track()], "directions", noise)
        tables = {one.key: one for one in base.decreases}
        self._skipped += [f"{key}: its direction is {what}" for _, key, what in base.still]
        improvements = self._improvements(base.decreases)
        of_step = self._effects("plain", tables)
        found = Dissection(self._setting(base), noise.rows(), improvements)
        found.worths = worths(base.decreases, self._plan.cells)
        found.effects = [StepEffect("plain", effect) for effect in of_step.values()]
        self._race(found)
        self._curvature(found)
        if self._plan.variants:
            self._variants(found)
        self._objective.check_again(self._held[0], self._loss)
        found.skipped = [*self._skipped, *self._sampling.notes]
        found.conclusion = conclude(found)
        found.setting = replace(found.setting, seconds=round(self._budget.spent, 1))
        return found

    def _hold(self) -> list[Any]:
        """Return held batches: two for every draw, or as many as fit.

        Their order is random, so that no draw is systematically evaluated on the batch of its own
        gradient.
        """
        first = self._sampling.held(1)
        fits = _HELD_BYTES // max(1, first[0].bytes)
        draws = self._plan.draws or MOST_DRAWS
        count = min(HELD_A_DRAW * draws, max(_LEAST_HELD, fits))
        held = first + self._sampling.held(count - 1)
        random.Random(self._plan.seed).shuffle(held)
        return held

    def _measure(self, tracks: list[Track], part: str, noise: NoiseSummary | None) -> Any:
        plan = self._plan
        measurement = Measurement(
            self._objective,
            self._sampling,
            self._held,
            plan.methods,
            states=plan.states,
            noise=noise,
            visit=self._kept.visit if part == "directions" else None,
        )
        least, most = plan.draws or LEAST_DRAWS, plan.draws or MOST_DRAWS
        if part == "variants":  # as time allows
            least, most = _LEAST_OF_VARIANTS, plan.draws or _MOST_OF_VARIANTS
        return measurement.run(
            tracks,
            seconds=self._budget.until(part),
            least=least,
            most=most,
            progress=lambda share: self._progress(part, share),
        )

    def _improvements(self, decreases: Sequence[Decreases]) -> list[Any]:
        found = []
        for one in decreases:
            try:
                found.append(improvement(one))
            except DissectionError as error:
                if one.track == "plain":
                    self._skipped.append(str(error))
        return found

    def _effects(self, track: str, tables: Mapping[str, Decreases]) -> dict[str, Factorial]:
        cells = self._plan.cells
        if not cells or any(key not in tables for key in cells):
            return {}
        try:
            return effects([tables[key] for key in cells])
        except DissectionError:
            return {}

    def _race(self, found: Dissection) -> None:
        plan = self._plan
        starts = {
            one.method: one.lr
            for one in found.improvements
            if one.track == "plain" and math.isfinite(one.lr)
        }
        if not plan.race or not starts:
            return
        trainer = ObjectiveTrainer(self._objective, self._sampling, self._held, plan.states)
        found.race = Race(trainer, plan.most_raced).run(
            plan.methods,
            starts,
            seconds=self._budget.until("race"),
            progress=lambda share: self._progress("race", share),
        )
        if plan.cells and all(key in found.race.lrs for key in plan.cells):
            found.race_effects = list(race_effects(found.race, plan.cells).values())

    def _curvature(self, found: Dissection) -> None:
        """Measure the curvature within its time."""
        seconds = self._budget.until("curvature")
        self._progress("curvature", 0.0)
        if seconds <= 0:
            self._skipped.append("no curvature: no time was left for it")
            return
        try:
            found.curvature = curvature_rows(
                self._objective, self._held, self._kept.usable, seconds
            )
        except DissectionError as error:
            self._skipped.append(f"no curvature: {error}")
        self._kept.drawn.clear()
        self._progress("curvature", 1.0)

    def _variants(self, found: Dissection) -> None:
        """Measure the same directions with rotated axes and with larger batches."""
        if self._budget.until("variants") <= 0:
            self._skipped.append("no time was left for rotated axes and larger batches")
            return
        tracks = [Track(rotation=Rotation(self._objective.params, self._plan.seed))]
        tracks += [Track(count) for count in _LARGER]
        measured = self._measure(tracks, "variants", None)
        found.improvements += self._improvements(measured.decreases)
        for name in dict.fromkeys(one.track for one in measured.decreases):
            tables = {one.key: one for one in measured.decreases if one.track == name}
            found.effects += [StepEffect(name, e) for e in self._effects(name, tables).values()]

    def _setting(self, base: Any) -> Setting:
        plan, objective = self._plan, self._objective
        return Setting(
            problem=plan.problem,
            step=plan.step,
            planned=plan.steps,
            parameters=objective.size,
            batch_size=self._sampling.batch_size,
            methods=tuple(one.key for one in plan.methods),
            cells=plan.cells,
            device=str(objective.device),
            budget=self._budget.seconds,
            seconds=0.0,
            loss=self._loss,
            gradients=base.gradients,
            evaluations=base.evaluations,
        )
