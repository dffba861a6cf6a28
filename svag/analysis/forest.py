"""Effects of several problems for one chart (a forest plot); positive effects are improvements.

On the metric they are the claims of each problem's study, in the metric's own units. The size of
the training loss differs between problems, so effects on it are fractions of the mean training loss
of the four methods. A mean over problems has no interval, since a few problems support no claim
about others, and is taken over problems with the same metric only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svag.analysis.contrasts import ADAPTATION, INTERACTION, SIGN, WITH_SIGN, WITHOUT_SIGN, Effect
from svag.analysis.observations import Family
from svag.analysis.results import TRAIN_LOSS
from svag.analysis.study import Analysis

ON_THE_METRIC = (SIGN, ADAPTATION, INTERACTION)
ON_THE_LOSS = (SIGN, WITHOUT_SIGN, WITH_SIGN)


@dataclass(frozen=True)
class Forest:
    """Effects on one figure.

    Attributes:
        title: title of the figure.
        unit: unit of the effects; with ``%`` they are fractions, which are shown times 100.
        effects: effects by problem and name; positive ones are improvements.
        means: means over problems, by name; empty if there is only one problem, or the problems
            have no common scale.
    """

    title: str
    unit: str
    effects: Mapping[str, Mapping[str, Effect]]
    means: Mapping[str, float]


def on_the_metric(analyses: Sequence[Analysis]) -> list[Forest]:
    """Return the claimed effects on the metric, one forest for the problems of each metric."""
    groups: dict[tuple[str, bool, str], list[Analysis]] = {}
    for analysis in analyses:
        if analysis.claims is not None:
            quantity = analysis.quantity
            key = (quantity.name, quantity.larger_is_better, quantity.unit)
            groups.setdefault(key, []).append(analysis)
    return [_forest(several) for several in groups.values()]


def on_the_loss(families: Mapping[str, Family]) -> Forest | None:
    """Return the effects on the training loss; None if no loss is above 0."""
    effects = {
        problem: {
            name: found.loss[name].turned.scaled(1 / found.loss_level) for name in ON_THE_LOSS
        }
        for problem, found in families.items()
        if found.loss_level > 0
    }
    return Forest(TRAIN_LOSS.title, "%", effects, {}) if effects else None


def _forest(analyses: Sequence[Analysis]) -> Forest:
    effects = {one.study.base.problem: _improvements(one) for one in analyses}
    means = {
        name: sum(by[name].estimate for by in effects.values()) / len(effects)
        for name in ON_THE_METRIC
        if len(effects) > 1
    }
    return Forest(analyses[0].judged.title, analyses[0].quantity.unit, effects, means)


def _improvements(analysis: Analysis) -> dict[str, Effect]:
    claimed = analysis.claims.effects if analysis.claims else {}
    larger = analysis.quantity.larger_is_better
    return {name: claimed[name] if larger else claimed[name].turned for name in ON_THE_METRIC}
