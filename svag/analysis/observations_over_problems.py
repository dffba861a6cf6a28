"""The paper's four observations (§6.2) over several problems: confirmed, refuted, not decided.

``observations.py`` checks each problem with intervals that are corrected for the number of
problems. All of them cover at once with probability 95 %, so that conclusions from them are wrong
in at most 5 % of comparisons. The conditions are:

1. *The sign dominates* is confirmed if it holds on more than half of the problems (on three of
   four in the paper), refuted if it does not hold on half of them or more.
2. *Whether the sign helps depends on the problem* is confirmed if the sign helps on one problem and
   hurts on another. It is refuted, for these problems, if there are two or more, each is decided,
   and the sign hurts on none or helps on none.
3. *Adapted methods do at least as well* is confirmed if it holds on every problem, refuted if it
   does not hold on one.
4. *Adverse effects come from the sign* is confirmed if it holds on one problem or more, and refuted
   if there is one where it does not hold.

The conclusions are about these problems only, not about others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from svag.analysis.observations import CLAIMS, Observation, Outcome
from svag.analysis.wording import listed

Conclusion = Literal["confirmed", "refuted", "not decided"]

_SAID: Mapping[Outcome, str] = {
    "holds": "holds on",
    "does not hold": "does not hold on",
    "helps": "the sign helps on",
    "hurts": "the sign hurts on",
    "no difference": "the sign makes no difference that matters on",
    "does not arise": "does not arise on",
    "not decided": "not decided on",
}


@dataclass(frozen=True)
class Check:
    """The result of checking one of the four observations on several problems.

    Attributes:
        claim: the paper's observation.
        outcome: the conclusion.
        because: on which problems it holds, and on which not.
        readings: the result on each problem, by the problem's name.
    """

    claim: str
    outcome: Conclusion
    because: str
    readings: Mapping[str, Observation]


def checks(held: Mapping[str, Sequence[Observation]]) -> list[Check]:
    """Draw the conclusions over problems.

    Args:
        held: the results of the four observations by problem, corrected for the number of problems.
    """
    found = []
    for place, (claim, conclude) in enumerate(
        zip(CLAIMS, (_dominates, _depends, _adapted, _adverse), strict=True)
    ):
        readings = {problem: observations[place] for problem, observations in held.items()}
        outcomes = [reading.outcome for reading in readings.values()]
        outcome = conclude(outcomes) if outcomes else "not decided"
        found.append(Check(claim, outcome, _because(readings), readings))
    return found


def _dominates(outcomes: Sequence[Outcome]) -> Conclusion:
    if 2 * outcomes.count("holds") > len(outcomes):
        return "confirmed"
    return "refuted" if 2 * outcomes.count("does not hold") >= len(outcomes) else "not decided"


def _depends(outcomes: Sequence[Outcome]) -> Conclusion:
    if "helps" in outcomes and "hurts" in outcomes:
        return "confirmed"
    open_yet = len(outcomes) < 2 or "not decided" in outcomes
    return "not decided" if open_yet else "refuted"


def _adapted(outcomes: Sequence[Outcome]) -> Conclusion:
    if "does not hold" in outcomes:
        return "refuted"
    return "confirmed" if set(outcomes) == {"holds"} else "not decided"


def _adverse(outcomes: Sequence[Outcome]) -> Conclusion:
    if "does not hold" in outcomes:
        return "refuted"
    return "confirmed" if "holds" in outcomes else "not decided"


def _because(readings: Mapping[str, Observation]) -> str:
    """Write which outcome was found on which problems."""
    by: dict[Outcome, list[str]] = {}
    for problem, reading in readings.items():
        by.setdefault(reading.outcome, []).append(problem)
    parts = [f"{_SAID[outcome]} {listed(by[outcome])}" for outcome in _SAID if outcome in by]
    text = "; ".join(parts) or "no problem can be judged yet"
    return f"{text[0].upper()}{text[1:]}."
