"""Checks the paper's four observations (§6.2) on one problem, with a second family of effects.

They are about the training loss as well as the metric, so they have their own correction:
simultaneous intervals over eleven effects, at level 2.5 % for those on the training loss and 2.5 %
for those on the metric. For several problems both levels are divided by the number of problems, so
that all intervals of all problems cover with probability 95 %. With S the effect of the sign, A0
and A1 those of adaptation without and with the sign, all at the end of the runs:

1. *The sign dominates* holds if S is larger in size than A0 and than A1 (S - A0, S + A0, S - A1
   and S + A1 all exclude 0 on S's side); it does not hold if A0 or A1 is larger in size than S.
2. *Whether the sign helps depends on the problem*: on one problem the sign helps or hurts in
   training loss, or makes no difference that matters (the interval lies within the margin).
3. *Adapted methods do at least as well* holds if neither pair is worse by the smallest effect of
   interest, in training loss and in the metric; it does not hold if any of the four is worse.
4. *Adverse effects come from the sign* arises if the sign makes the training loss better and the
   metric worse. Then it holds if the interval excludes that adaptation makes the metric worse by
   the smallest effect of interest, and does not hold if adaptation makes the metric worse. It does
   not arise if the intervals exclude that the sign makes the metric worse by that much, or exclude
   that it makes the training loss better by that much.

If none of an observation's conditions is met, it is not decided.
``observations_over_problems.py`` draws the conclusions over several problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    Sample,
)
from svag.analysis.results import TRAIN_LOSS, Figure, MethodResult, sample
from svag.analysis.wording import amount

Outcome = Literal[
    "holds", "does not hold", "not decided", "does not arise", "helps", "hurts", "no difference"
]

CLAIMS = (
    "The sign aspect dominates: methods cluster into sign-based and others.",
    "Whether the sign helps depends on the problem.",
    "Variance adaptation helps: adapted methods do at least as well as their base methods.",
    "Adverse effects on generalization (better in training, worse in test) come from the sign.",
)

_LEVEL = 0.025
_LESS, _MORE = "{} - {}", "{} + {}"


@dataclass(frozen=True)
class Observation:
    """The result of checking one of the paper's four observations on one problem."""

    claim: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Family:
    """The effects by which the observations on one problem are checked, with their intervals.

    Attributes:
        loss: effects on the training loss, by name, with simultaneous intervals.
        metric: effects on the metric, by name, with simultaneous intervals.
        figure: the metric on the test data.
        margins: smallest effect of interest on the training loss, and on the metric.
        names: names of the four methods, in the order of ``contrasts.WEIGHTS``.
        loss_level: mean training loss of the four methods.
    """

    loss: Mapping[str, Effect]
    metric: Mapping[str, Effect]
    figure: Figure
    margins: tuple[float, float]
    names: tuple[str, ...]
    loss_level: float

    def better(self, name: str) -> tuple[Effect, Effect]:
        """Return an effect on the loss and on the metric; positive means improvement."""
        return self.loss[name].turned, self.better_metric(name)

    def better_metric(self, name: str) -> Effect:
        """Return an effect on the metric; positive means improvement."""
        effect = self.metric[name]
        return effect if self.figure.quantity.larger_is_better else effect.turned

    def spoken(self, name: str) -> str:
        """Write an effect on the training loss and on the metric as text."""
        return (
            f"{amount(self.loss[name], TRAIN_LOSS.quantity)} of training loss, "
            f"{amount(self.metric[name], self.figure.quantity)} of {self.figure.title}"
        )


def family(
    results: Sequence[MethodResult],
    figure: Figure,
    smallest_effect: float | None = None,
    problems: int = 1,
) -> Family:
    """Estimate the effects by which the observations on one problem are checked.

    Args:
        results: the methods in the four cells, in the order of ``contrasts.WEIGHTS``.
        figure: the figure by which methods are compared.
        smallest_effect: smallest effect of interest on the figure; None for the default.
        problems: number of problems that are checked together.
    """
    return family_of(
        [sample(result.outcome, TRAIN_LOSS.name) for result in results],
        [sample(result.outcome, figure.name) for result in results],
        figure,
        [result.entrant.name for result in results],
        smallest_effect=smallest_effect,
        problems=problems,
    )


def family_of(
    losses: Sequence[Sample],
    metrics: Sequence[Sample],
    figure: Figure,
    names: Sequence[str],
    *,
    smallest_effect: float | None = None,
    problems: int = 1,
) -> Family:
    """Estimate the effects of :func:`family` from samples.

    Args:
        losses: final training losses in the four cells, in the order of ``contrasts.WEIGHTS``.
        metrics: final values of the metric, likewise.
        figure: the figure by which methods are compared.
        names: names of the four methods.
        smallest_effect: smallest effect of interest on the figure; None for the default.
        problems: number of problems that are checked together.
    """
    level = _LEVEL / problems
    means = [float(one.values.mean()) for one in losses if len(one.values)]
    return Family(
        loss=contrasts.simultaneous(losses, _on_the_loss(), level),
        metric=contrasts.simultaneous(metrics, _on_the_metric(), level),
        figure=figure,
        margins=(
            default_margin(losses, TRAIN_LOSS.quantity),
            smallest_effect or default_margin(metrics, figure.quantity),
        ),
        names=tuple(names),
        loss_level=sum(means) / len(means),
    )


def observations(found: Family, results: Sequence[MethodResult] = ()) -> list[Observation]:
    """Check the four observations on one problem.

    Args:
        found: the effects.
        results: the methods; if runs of theirs diverged or are missing, nothing is decided.
    """
    held = [
        _sign_dominates(found),
        _sign_helps(found),
        _adaptation_helps(found),
        _sign_harms_generalization(found),
    ]
    if any(result.diverged for result in results):
        return _undecided(held, "Of runs that survived: ")
    if any(not result.outcome.complete for result in results):
        return _undecided(held, "Of the runs that have finished: ")
    return held


def _undecided(held: Sequence[Observation], of: str) -> list[Observation]:
    return [replace(one, outcome="not decided", detail=of + one.detail) for one in held]


def _on_the_loss() -> dict[str, Array]:
    sign = WEIGHTS[SIGN]
    pairs = {name: WEIGHTS[name] for name in (WITHOUT_SIGN, WITH_SIGN)}
    less = {_LESS.format(SIGN, name): sign - weights for name, weights in pairs.items()}
    more = {_MORE.format(SIGN, name): sign + weights for name, weights in pairs.items()}
    return {SIGN: sign, **pairs, **less, **more}


def _on_the_metric() -> dict[str, Array]:
    return {name: WEIGHTS[name] for name in (SIGN, ADAPTATION, WITHOUT_SIGN, WITH_SIGN)}


def _sign_dominates(found: Family) -> Observation:
    loss = found.loss
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
        CLAIMS[0],
        outcome,
        f"In the training loss the sign makes {amount(loss[SIGN], TRAIN_LOSS.quantity)}; variance "
        f"adaptation makes {without} without the sign and {along} with it.",
    )


def _sign_helps(found: Family) -> Observation:
    improvement, margin = found.loss[SIGN].turned, found.margins[0]
    outcome: Outcome = "not decided"
    if improvement.direction:
        outcome = "helps" if improvement.direction == 1 else "hurts"
    elif _not_worse(improvement, margin) and _not_worse(improvement.turned, margin):
        outcome = "no difference"
    return Observation(
        CLAIMS[1],
        outcome,
        f"The sign makes {amount(found.loss[SIGN], TRAIN_LOSS.quantity)} in training loss.",
    )


def _adaptation_helps(found: Family) -> Observation:
    improvements = [
        pair
        for name in (WITHOUT_SIGN, WITH_SIGN)
        for pair in zip(found.better(name), found.margins, strict=True)
    ]
    outcome: Outcome = "not decided"
    if any(improvement.direction == -1 for improvement, _ in improvements):
        outcome = "does not hold"
    elif all(_not_worse(improvement, margin) for improvement, margin in improvements):
        outcome = "holds"
    first, second, third, fourth = found.names
    return Observation(
        CLAIMS[2],
        outcome,
        f"{second} against {first}: {found.spoken(WITHOUT_SIGN)}; "
        f"{fourth} against {third}: {found.spoken(WITH_SIGN)}.",
    )


def _sign_harms_generalization(found: Family) -> Observation:
    (loss, metric), (loss_margin, margin) = found.better(SIGN), found.margins
    adaptation = found.better_metric(ADAPTATION)
    outcome: Outcome = "not decided"
    if loss.direction == 1 and metric.direction == -1:
        if adaptation.direction == -1:
            outcome = "does not hold"
        elif _not_worse(adaptation, margin):
            outcome = "holds"
    elif _not_worse(metric, margin) or _not_worse(loss.turned, loss_margin):
        outcome = "does not arise"
    return Observation(
        CLAIMS[3],
        outcome,
        f"The sign makes {found.spoken(SIGN)}; variance adaptation makes "
        f"{amount(found.metric[ADAPTATION], found.figure.quantity)} of the latter.",
    )


def _not_worse(improvement: Effect, margin: float) -> bool:
    """Whether the simultaneous interval excludes a worsening by ``margin``."""
    return improvement.interval is not None and improvement.interval[0] > -margin
