"""The paper's four observations (§6.2) held against a study: a second family of effects.

They speak of the training loss as well as of the metric, so they have a correction of their own:
simultaneous intervals over eleven effects, at 2.5 % for those on the training loss and at 2.5 %
for those on the metric. With S the effect of the sign, A0 and A1 those of adaptation without and
with it, all at the end of the runs:

1. *The sign dominates* holds if S is larger in size than A0 and than A1 (S - A0, S + A0, S - A1
   and S + A1 all exclude 0 on S's side); it does not hold if A0 or A1 is larger in size than S.
2. *Whether the sign helps depends on the problem* cannot be decided by one problem.
3. *Adapted methods do at least as well* holds if neither pair is worse by the smallest effect of
   interest, in training loss and in the metric; it does not hold if any of the four is worse.
4. *Adverse effects come from the sign* arises if the sign makes the training loss better and the
   metric worse. Then it holds if adaptation makes the metric not worse by the smallest effect of
   interest, and does not hold if adaptation makes the metric worse. It does not arise if the sign
   makes the metric not worse by that much, or the training loss not better by that much.

Where none of a line's conditions is met, it is not decided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from svag.analysis import contrasts
from svag.analysis.claims import default_margin
from svag.analysis.contrasts import (
    ADAPTATION,
    SIGN,
    WEIGHTS,
    WITH_SIGN,
    WITHOUT_SIGN,
    Array,
    Effect,
)
from svag.analysis.results import TRAIN_LOSS, Figure, MethodResult, sample
from svag.analysis.wording import amount

Outcome = Literal["holds", "does not hold", "not decided", "does not arise"]

_LEVEL = 0.025
_LESS, _MORE = "{} - {}", "{} + {}"


@dataclass(frozen=True)
class Observation:
    """One of the paper's four observations, held against this study."""

    claim: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class _Family:
    """Effects on the training loss and on the metric; of both, larger is turned to be better."""

    loss: Mapping[str, Effect]
    metric: Mapping[str, Effect]
    figure: Figure
    margins: tuple[float, float]
    names: tuple[str, ...]

    def better(self, name: str) -> tuple[Effect, Effect]:
        """Return an effect on the loss and on the metric, positive where it is an improvement."""
        return _turned(self.loss[name]), self.better_metric(name)

    def better_metric(self, name: str) -> Effect:
        """Return an effect on the metric, positive where it is an improvement."""
        effect = self.metric[name]
        return effect if self.figure.quantity.larger_is_better else _turned(effect)

    def spoken(self, name: str) -> str:
        """Give an effect on the training loss, and on the metric."""
        return (
            f"{amount(self.loss[name], TRAIN_LOSS.quantity)} of training loss, "
            f"{amount(self.metric[name], self.figure.quantity)} of {self.figure.title}"
        )


def observations(
    results: Sequence[MethodResult], figure: Figure, smallest_effect: float | None = None
) -> list[Observation]:
    """Hold the observations against the methods in the four cells.

    Args:
        results: in the order of ``contrasts.WEIGHTS``.
        figure: the one that methods are compared by.
        smallest_effect: difference of it that matters; None for the default.
    """
    losses = [sample(result.outcome, TRAIN_LOSS.name) for result in results]
    metrics = [sample(result.outcome, figure.name) for result in results]
    family = _Family(
        loss=contrasts.simultaneous(losses, _on_the_loss(), _LEVEL),
        metric=contrasts.simultaneous(metrics, _on_the_metric(), _LEVEL),
        figure=figure,
        margins=(
            default_margin(losses, TRAIN_LOSS.quantity),
            smallest_effect or default_margin(metrics, figure.quantity),
        ),
        names=tuple(result.entrant.name for result in results),
    )
    found = [
        _sign_dominates(family),
        _sign_depends_on_the_problem(family),
        _adaptation_helps(family),
        _sign_harms_generalization(family),
    ]
    if any(result.diverged for result in results):
        return _undecided(found, "Of runs that survived: ")
    if any(not result.outcome.complete for result in results):
        return _undecided(found, "Of the runs that have finished: ")
    return found


def _undecided(found: Sequence[Observation], of: str) -> list[Observation]:
    return [Observation(one.claim, "not decided", of + one.detail) for one in found]


def _on_the_loss() -> dict[str, Array]:
    sign = WEIGHTS[SIGN]
    pairs = {name: WEIGHTS[name] for name in (WITHOUT_SIGN, WITH_SIGN)}
    less = {_LESS.format(SIGN, name): sign - weights for name, weights in pairs.items()}
    more = {_MORE.format(SIGN, name): sign + weights for name, weights in pairs.items()}
    return {SIGN: sign, **pairs, **less, **more}


def _on_the_metric() -> dict[str, Array]:
    return {name: WEIGHTS[name] for name in (SIGN, ADAPTATION, WITHOUT_SIGN, WITH_SIGN)}


def _sign_dominates(family: _Family) -> Observation:
    loss = family.loss
    outcome: Outcome = "not decided"
    sides = {
        name: (loss[_LESS.format(SIGN, name)].direction, loss[_MORE.format(SIGN, name)].direction)
        for name in (WITHOUT_SIGN, WITH_SIGN)
    }
    every = {side for pair in sides.values() for side in pair}
    if every in ({1}, {-1}):
        outcome = "holds"
    elif any(less * more == -1 for less, more in sides.values()):
        outcome = "does not hold"
    without, along = (amount(loss[n], TRAIN_LOSS.quantity) for n in (WITHOUT_SIGN, WITH_SIGN))
    return Observation(
        "The sign aspect dominates: methods cluster into sign-based and others.",
        outcome,
        f"In the training loss the sign makes {amount(loss[SIGN], TRAIN_LOSS.quantity)}; variance "
        f"adaptation makes {without} without the sign and {along} with it.",
    )


def _sign_depends_on_the_problem(family: _Family) -> Observation:
    improvement, _ = family.better(SIGN)
    side = {1: "It helps here", -1: "It hurts here", 0: "No clear difference is seen here"}
    return Observation(
        "Whether the sign helps depends on the problem.",
        "not decided",
        f"One problem cannot decide this. {side[improvement.direction]}: "
        f"{amount(family.loss[SIGN], TRAIN_LOSS.quantity)} in training loss.",
    )


def _adaptation_helps(family: _Family) -> Observation:
    improvements = [
        pair
        for name in (WITHOUT_SIGN, WITH_SIGN)
        for pair in zip(family.better(name), family.margins, strict=True)
    ]
    outcome: Outcome = "not decided"
    if any(improvement.direction == -1 for improvement, _ in improvements):
        outcome = "does not hold"
    elif all(_not_worse(improvement, margin) for improvement, margin in improvements):
        outcome = "holds"
    first, second, third, fourth = family.names
    return Observation(
        "Variance adaptation helps: adapted methods do at least as well as their base methods.",
        outcome,
        f"{second} against {first}: {family.spoken(WITHOUT_SIGN)}; "
        f"{fourth} against {third}: {family.spoken(WITH_SIGN)}.",
    )


def _sign_harms_generalization(family: _Family) -> Observation:
    (loss, metric), (loss_margin, margin) = family.better(SIGN), family.margins
    adaptation = family.better_metric(ADAPTATION)
    outcome: Outcome = "not decided"
    if loss.direction == 1 and metric.direction == -1:
        if adaptation.direction == -1:
            outcome = "does not hold"
        elif _not_worse(adaptation, margin):
            outcome = "holds"
    elif _not_worse(metric, margin) or _not_worse(_turned(loss), loss_margin):
        outcome = "does not arise"
    return Observation(
        "Adverse effects on generalization (better in training, worse in test) come from the sign.",
        outcome,
        f"The sign makes {family.spoken(SIGN)}; variance adaptation makes "
        f"{amount(family.metric[ADAPTATION], family.figure.quantity)} of the latter.",
    )


def _not_worse(improvement: Effect, margin: float) -> bool:
    """Whether the simultaneous interval excludes that it is worse by ``margin``."""
    return improvement.interval is not None and improvement.interval[0] > -margin


def _turned(effect: Effect) -> Effect:
    interval = effect.interval and (-effect.interval[1], -effect.interval[0])
    return Effect(-effect.estimate, interval, effect.error, effect.freedom)
