"""Effects of several problems side by side, positive where they are an improvement.

On the metric they are the claims of each problem's study, in the metric's own units. On the
training loss, whose size differs between problems, they are shares of the four methods' mean
training loss. A mean over problems is that of these problems: it has no interval, since a few
problems carry no claim about others, and it is made within one metric only.
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
        title: of the figure.
        unit: of the effects; ``%`` says that they are fractions, shown times 100.
        effects: by problem and name, positive where they are an improvement.
        means: over problems, by name; empty where there is one problem, or they have no common
            scale.
    """

    title: str
    unit: str
    effects: Mapping[str, Mapping[str, Effect]]
    means: Mapping[str, float]


def on_the_metric(analyses: Sequence[Analysis]) -> list[Forest]:
    """Put the claimed effects of problems that share a metric side by side."""
    groups: dict[tuple[str, bool, str], list[Analysis]] = {}
    for analysis in analyses:
        if analysis.claims is not None:
            quantity = analysis.quantity
            key = (quantity.name, quantity.larger_is_better, quantity.unit)
            groups.setdefault(key, []).append(analysis)
    return [_forest(several) for several in groups.values()]


def on_the_loss(families: Mapping[str, Family]) -> Forest | None:
    """Put the effects on the training loss side by side; None where no loss is above 0."""
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
