"""What a study may claim: a family of five effects on the metric, and what follows from them.

With S the effect of the sign, A that of variance adaptation, and I their interaction,
M-SSD - M-SVAG is S - A and Adam - M-SGD is S + A. All five have simultaneous 95 % intervals. A
finding follows from them under one condition each, in this order:

=================  =================================================================
finding            condition
=================  =================================================================
``unfinished``     runs of a method in the four cells have not finished
``diverged``       a final run diverged although the choice had moved down twice
``one seed``       a method has a single final run
``sign decides``   S - A and S + A exclude 0 on the same side: then |S| > |A|
``adaptation d.``  S - A and S + A exclude 0 on opposite sides: then |A| > |S|
``both count``     S and A exclude 0
``sign counts``    S excludes 0, A does not
``adaptation c.``  A excludes 0, S does not
``together``       I excludes 0, S and A do not
``larger``         S - A or S + A excludes 0, S, A and I do not
``equal``          none of the above; S and A are each equal within the margin
``open``           none of the above
=================  =================================================================

"Not decided" and "no effect" are different findings: the second is two one-sided tests at 5 %
against the smallest effect of interest. That is an option; by default the larger of one seed's
standard deviation and half a point (of percentages) or 2 % (of other figures, or of what they have
gained since the start where that is less).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from svag.analysis import contrasts
from svag.analysis.contrasts import (
    ADAPTATION,
    BOTH_OR_NEITHER,
    CLAIMED,
    INTERACTION,
    SIGN,
    SIGN_OR_ADAPTATION,
    WEIGHTS,
    Effect,
    Sample,
)
from svag.quantity import Quantity

Finding = Literal[
    "unfinished",
    "diverged",
    "one seed",
    "sign decides",
    "adaptation decides",
    "both count",
    "sign counts",
    "adaptation counts",
    "together",
    "larger",
    "equal",
    "open",
]

UNDECIDED: tuple[Finding, ...] = ("unfinished", "diverged", "one seed", "equal", "open")
"""Findings that claim no effect."""

_POINTS = 0.005
_SHARE = 0.02


@dataclass(frozen=True)
class Claims:
    """The family of effects on the metric, and what follows.

    Attributes:
        effects: by name, with simultaneous intervals.
        finding: what the verdict says.
        margin: smallest effect of interest.
        margin_given: whether it was given, rather than the default.
        equal: the halves that are equal within the margin.
        power: how often a half that makes no difference at all would be found equal.
    """

    effects: Mapping[str, Effect]
    finding: Finding
    margin: float
    margin_given: bool
    equal: tuple[str, ...]
    power: float


def claims(
    samples: Sequence[Sample],
    quantity: Quantity,
    *,
    smallest_effect: float | None = None,
    diverged: bool = False,
    unfinished: bool = False,
) -> Claims:
    """Draw the conclusions of a study.

    Args:
        samples: final values of the metric in the four cells, in the order of ``WEIGHTS``, and
            what their step sizes were chosen by.
        quantity: the metric.
        smallest_effect: difference that matters, in the metric's own units; None for the default.
        diverged: whether final runs diverged at the step size that was settled on.
        unfinished: whether runs are missing.
    """
    effects = contrasts.simultaneous(samples, {name: WEIGHTS[name] for name in CLAIMED})
    margin = smallest_effect or default_margin(samples, quantity)
    equal = tuple(half for half in (SIGN, ADAPTATION) if effects[half].within(margin))
    return Claims(
        effects=effects,
        finding="unfinished" if unfinished else _finding(effects, equal, diverged=diverged),
        margin=margin,
        margin_given=smallest_effect is not None,
        equal=equal,
        power=effects[SIGN].power_within(margin),
    )


def default_margin(samples: Sequence[Sample], quantity: Quantity) -> float:
    """Return the larger of one seed's standard deviation and half a point or 2 % of the figure.

    Where a figure has gained less since the start than its size, 2 % of the gain, so that a shifted
    loss has the same margin.
    """
    values = np.concatenate([sample.values for sample in samples])
    size = abs(float(values.mean()))
    gains = [abs(float(s.values.mean()) - s.start) for s in samples if not math.isnan(s.start)]
    gain = float(np.mean(gains)) if gains else math.inf
    share = _POINTS if quantity.percent else _SHARE * min(size, gain)
    deviation = contrasts.seed_deviation(samples)
    return share if math.isnan(deviation) else max(deviation, share)


def _finding(effects: Mapping[str, Effect], equal: Sequence[str], *, diverged: bool) -> Finding:
    if diverged:
        return "diverged"
    if any(effect.interval is None for effect in effects.values()):
        return "one seed"
    less, more = (effects[name].direction for name in (SIGN_OR_ADAPTATION, BOTH_OR_NEITHER))
    sign, adaptation = (effects[half].direction != 0 for half in (SIGN, ADAPTATION))
    conditions: tuple[tuple[bool, Finding], ...] = (
        (less * more == 1, "sign decides"),
        (less * more == -1, "adaptation decides"),
        (sign and adaptation, "both count"),
        (sign, "sign counts"),
        (adaptation, "adaptation counts"),
        (effects[INTERACTION].direction != 0, "together"),
        (less != 0 or more != 0, "larger"),
        (len(equal) == 2, "equal"),
    )
    return next((finding for holds, finding in conditions if holds), "open")
