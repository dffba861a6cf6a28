"""The claims of a study: a family of five effects on the metric, and the finding they imply.

With S the effect of the sign, A that of variance adaptation, and I their interaction,
M-SSD - M-SVAG is S - A and Adam - M-SGD is S + A. All five have simultaneous 95 % intervals. The
finding is the first of these whose condition is met:

======================  =============================================================
finding                 condition
======================  =============================================================
``unfinished``          runs of a method in the four cells have not finished
``diverged``            a final run diverged, even after two moves to smaller step sizes
``one seed``            a method has a single final run
``sign decides``        S - A and S + A exclude 0 on the same side: then |S| > |A|
``adaptation decides``  S - A and S + A exclude 0 on opposite sides: then |A| > |S|
``both count``          S and A exclude 0
``sign counts``         S excludes 0, A does not
``adaptation counts``   A excludes 0, S does not
``together``            I excludes 0, S and A do not
``larger``              S - A or S + A excludes 0, S, A and I do not
``equal``               none of the above; S and A are each equal within the margin
``open``                none of the above
======================  =============================================================

"Not decided" and "no effect" are different findings: the second needs two one-sided tests at 5 %
against the smallest effect of interest, the margin. The user can set the margin; its default is the
larger of the standard deviation between seeds and half a percentage point. For metrics that are no
percentages, instead of half a point it is 2 % of the metric, or of its gain since the start if that
is less.
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
    """The family of effects on the metric, and the finding.

    Attributes:
        effects: effects by name, with simultaneous intervals.
        finding: key of the verdict's sentence, see the module's docstring.
        margin: smallest effect of interest.
        margin_given: whether the user set the margin.
        equal: the halves (sign, adaptation) that make no difference, within the margin.
        power: probability that a half without any effect is found equal within the margin.
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
        samples: final values of the metric in the four cells, in the order of ``WEIGHTS``, with
            the runs that chose their step sizes.
        quantity: the metric.
        smallest_effect: the margin, in the metric's own units; None for the default.
        diverged: whether final runs diverged at the chosen step size.
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
    """Return the default margin, the larger of the deviation between seeds and a least margin.

    The least margin is half a percentage point, or 2 % of a figure that is no percentage. If the
    figure's gain since the start is less than its size, it is 2 % of the gain, so that shifting a
    loss does not change the margin.
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
