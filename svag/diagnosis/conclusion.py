"""The conclusion of a dissection in sentences: whether the sign and variance adaptation help.

It also names the best method, and a step size for each.

An effect *matters* if it changes the worth of one step by more than 5 %, or the final loss of the
race by more than 5 % of that loss or of what training gained, whichever is less. Each statement
carries its interval, at 95 % for sign, adaptation and interaction together, and the evidence that
it rests on. If there was a race, it decides: one step is only the start of training, and a race
covers more of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from svag.analysis.contrasts import ADAPTATION, SIGN
from svag.analysis.wording import listed
from svag.diagnosis.improvement import Factorial, Improvement
from svag.diagnosis.longer_training import lengthened
from svag.diagnosis.race_result import RaceEffect, RaceResult
from svag.entrants import Entrant, entrant

Verdict: TypeAlias = Literal["helps", "hurts", "does not matter", "cannot tell"]

MATTERS: Final = 0.05
"""Smallest effect that matters, as a share of one step's worth, or of the race's scale."""

_NAMES: Final = {SIGN: "the sign", ADAPTATION: "variance adaptation"}


@dataclass(frozen=True)
class Evidence:
    """What the statements can rest on.

    Attributes:
        complete: whether there is a method in each cell of the 2x2 table.
        steps: whether single steps were measured.
        metric: what the race is judged by.
        larger: whether a larger metric is better; the race then minimises its negative.
    """

    complete: bool = True
    steps: bool = True
    metric: str = "loss"
    larger: bool = False


@dataclass(frozen=True)
class Statement:
    """What one half of Adam does here.

    Attributes:
        effect: ``"sign"`` or ``"adaptation"``.
        verdict: the short answer.
        one_step: the answer of one step alone.
        race: the answer of the race alone; ``"cannot tell"`` without one.
        text: the answer in a sentence or two, with intervals.
    """

    effect: str
    verdict: Verdict
    one_step: Verdict
    race: Verdict
    text: str


@dataclass(frozen=True)
class Suggestion:
    """A step size for one method, and the line that uses it.

    Attributes:
        method: key of the method.
        lr: step size.
        basis: ``"race"`` or ``"one step"``; a step size from one step is 2 to 20 times too small
            for training.
        raced: the step size that won the race, which is shorter than training; None without one.
        line: what to paste.
    """

    method: str
    lr: float
    basis: str
    raced: float | None
    line: str


@dataclass(frozen=True)
class Conclusion:
    """The answer.

    Attributes:
        headline: one sentence.
        statements: one for the sign and one for variance adaptation.
        notes: what would change the answer, and what could not be measured, in sentences.
        best: key of the suggested method; empty if none can be suggested.
        suggestions: a step size for each method, the suggested method first.
    """

    headline: str
    statements: tuple[Statement, ...]
    notes: tuple[str, ...]
    best: str
    suggestions: tuple[Suggestion, ...]


def of_one_step(effect: Factorial | None) -> Verdict:
    """Return what one step says of an effect."""
    if effect is None or effect.interval is None:
        return "cannot tell"
    low, high = effect.interval
    if low > 1 - MATTERS and high < 1 + MATTERS:
        return "does not matter"
    return {1: "helps", -1: "hurts", 0: "cannot tell"}[effect.direction]  # type: ignore[return-value]


def of_race(effect: RaceEffect | None, scale: float) -> Verdict:
    """Return what the race says of an effect.

    Args:
        effect: on the final loss.
        scale: the mean final loss of the four methods, or its decrease since the start if less.
    """
    if effect is None or effect.interval is None or not scale > 0:
        return "cannot tell"
    low, high = effect.interval
    if max(abs(low), abs(high)) < MATTERS * scale:
        return "does not matter"
    return {1: "helps", -1: "hurts", 0: "cannot tell"}[effect.direction]  # type: ignore[return-value]


def statement(
    name: str,
    one_step: Factorial | None,
    race: RaceEffect | None,
    result: RaceResult | None,
    scale: float,
    evidence: Evidence = Evidence(),
) -> Statement:
    """Combine what one step and the race say of an effect.

    Args:
        name: ``"sign"`` or ``"adaptation"``.
        one_step: the effect on one step; None if it was not measured.
        race: the effect on the final loss of the race; None if it was not measured.
        result: the race; None if there was none.
        scale: as for :func:`of_race`.
        evidence: what else there is.
    """
    first, second = of_one_step(one_step), of_race(race, scale)
    verdict = second if race is not None and race.interval is not None else first
    parts = []
    if not evidence.complete:
        parts.append(f"Nothing is said of {_NAMES[name]}: the 2x2 table is not complete.")
    else:
        if result is not None:
            parts.append(_race_text(name, second, race, result, evidence))
        if evidence.steps:
            parts.append(_step_text(name, first, one_step))
    return Statement(name, verdict, first, second, " ".join(parts))


def _race_text(
    name: str, verdict: Verdict, effect: RaceEffect | None, result: RaceResult, evidence: Evidence
) -> str:
    if effect is None or effect.interval is None:
        return (
            f"The race says nothing about {_NAMES[name]}: some method diverged in it, or had no "
            "step size at its start or at its end."
        )
    subject = _NAMES[name].capitalize()
    sign = -1 if evidence.larger else 1
    low, high = sorted(sign * end for end in effect.interval)
    figures = (
        f"{sign * effect.estimate:+.3g} in training {evidence.metric} after {result.steps} steps, "
        f"{low:+.3g} to {high:+.3g}"
    )
    said = {
        "helps": f"{subject} helps in the race ({figures}).",
        "hurts": f"{subject} hurts in the race ({figures}).",
        "does not matter": f"{subject} does not matter in the race ({figures}).",
        "cannot tell": f"The race cannot tell whether {_NAMES[name]} helps ({figures}).",
    }
    return said[verdict]


def _step_text(name: str, verdict: Verdict, effect: Factorial | None) -> str:
    nothing = f"One step says nothing about {_NAMES[name]}"
    if effect is None:
        return f"{nothing}: some direction is 0, or could not be measured."
    if effect.interval is None:
        return (
            f"{nothing}: some direction's worth is not clearly above 0, or is largest beyond the "
            "step sizes tried."
        )
    low, high = effect.interval
    figures = f"{effect.ratio:.3g} times the worth with {_NAMES[name]}, {low:.3g} to {high:.3g}"
    said = {
        "helps": f"A single step is worth more: {figures}.",
        "hurts": f"A single step is worth less: {figures}.",
        "does not matter": f"A single step is worth as much: {figures}.",
        "cannot tell": f"A single step does not tell: {figures}.",
    }
    return said[verdict]


def headline(
    statements: Sequence[Statement],
    raced: bool,
    evidence: Evidence = Evidence(),
) -> str:
    """Write the answer in one sentence.

    Args:
        statements: one for each effect.
        raced: whether the race says something of the effects.
        evidence: what else there is.
    """
    if not evidence.complete:
        return (
            "Neither the sign nor variance adaptation can be judged: that takes M-SGD, M-SVAG, "
            "M-SSD and Adam, with or without options."
        )
    groups: dict[str, list[str]] = {}
    for one in statements:
        groups.setdefault(one.verdict, []).append(_NAMES[one.effect])
    parts = []
    for verdict, names in groups.items():
        both = len(names) > 1
        subject = listed(names)
        parts.append(
            {
                "helps": f"{subject} {'help' if both else 'helps'}",
                "hurts": f"{subject} {'hurt' if both else 'hurts'}",
                "does not matter": f"{subject} {'do' if both else 'does'} not matter",
                "cannot tell": f"whether {subject} {'help' if both else 'helps'} cannot be told",
            }[verdict]
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}, by {_by(raced, evidence.steps)}."


def _by(raced: bool, steps: bool) -> str:
    if not steps:
        return "a short race alone"
    return "a short race and single steps" if raced else "single steps alone"


def rotation_note(plain: Factorial | None, rotated: Factorial | None) -> str:
    """Say how much of the sign's worth rests on the axes; empty if that is not known."""
    if not (plain and rotated and plain.interval and rotated.interval):
        return ""
    text = (
        f"With the axes rotated at random, a step along the sign is worth {rotated.ratio:.3g} "
        f"times that of the plain direction ({rotated.interval[0]:.3g} to "
        f"{rotated.interval[1]:.3g}), against {plain.ratio:.3g} as they are"
    )
    if plain.interval[0] > rotated.interval[1]:
        return f"{text}: the sign's worth rests on the axes."
    if plain.interval[1] < rotated.interval[0]:
        return f"{text}: the axes are bad ones for the sign."
    return f"{text}: no difference can be told."


def batch_note(plain: Factorial | None, larger: Mapping[int, Factorial]) -> str:
    """Say whether the sign's worth changes with the batch size; empty if that is not known."""
    known = {k: e for k, e in larger.items() if e.interval}
    if plain is None or plain.interval is None or not known:
        return ""
    most = max(known)
    other = known[most]
    assert other.interval is not None
    text = (
        f"With {most} times the batch size, a step along the sign is worth {other.ratio:.3g} "
        f"times that of the plain direction ({other.interval[0]:.3g} to "
        f"{other.interval[1]:.3g}), against {plain.ratio:.3g} now"
    )
    if other.interval[1] < plain.interval[0]:
        return f"{text}: larger batches need the sign less."
    if other.interval[0] > plain.interval[1]:
        return f"{text}: larger batches need the sign more."
    return f"{text}: no difference can be told."


def tie_note(result: RaceResult | None) -> str:
    """Say which methods cannot be told from the best one; empty if there is none."""
    tied = result.tied() if result is not None else ()
    if result is None or not tied:
        return ""
    best = min(result.losses, key=lambda key: result.losses[key])
    names = listed([entrant(key).name for key in tied])
    return f"{entrant(best).name} was best in the race, but {names} cannot be told from it there."


def unbounded_note(result: RaceResult | None) -> str:
    """Say for which methods larger step sizes were always better; empty if for none."""
    if result is None or not result.unbounded:
        return ""
    names = listed([entrant(key).name for key in result.unbounded])
    return (
        f"No step size can be named for {names}: in the race, the largest one tried was still the "
        "best, as it is where the loss has no lower bound."
    )


def suggestions(
    entrants: Sequence[Entrant],
    improvements: Mapping[str, Improvement],
    result: RaceResult | None,
    planned: int | None = None,
) -> tuple[str, tuple[Suggestion, ...]]:
    """Return the best method and a step size for each, the best first.

    The best has the lowest loss in the race, or else the step that is worth most.

    Args:
        entrants: the methods.
        improvements: worth of one step, by method.
        result: the race; None if there was none.
        planned: length of the training that is planned, if known.
    """
    found = []
    for one in entrants:
        raced = result.lrs.get(one.key, math.nan) if result else math.nan
        greedy = improvements.get(one.key)
        if result is not None and one.key in result.unbounded:
            continue
        if result is not None and math.isfinite(raced):
            lr = _rounded(lengthened(one, raced, result.steps, planned))
            found.append(Suggestion(one.key, lr, "race", raced, line(one, lr)))
        elif greedy is not None and greedy.value > 0:
            lr = _rounded(greedy.lr)
            found.append(Suggestion(one.key, lr, "one step", None, line(one, lr)))

    def order(suggestion: Suggestion) -> tuple[int, float]:
        if suggestion.basis == "race" and result is not None:
            return 0, result.losses[suggestion.method]
        return 1, -improvements[suggestion.method].value

    found.sort(key=order)
    return (found[0].method if found else ""), tuple(found)


def _rounded(lr: float) -> float:
    """Round to two digits."""
    return float(f"{lr:.2g}")


def line(one: Entrant, lr: float) -> str:
    """Return the line that builds an optimizer.

    Example:
        >>> from svag.entrants import entrant
        >>> line(entrant("m-svag"), 0.3)
        'optimizer = svag.MSVAG(model.parameters(), lr=0.3)'
        >>> line(entrant("torch.optim.SGD(momentum=0.9)"), 0.01)
        'optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)'
    """
    options = {key: value for key, value in one.options.items() if value is not None}
    if one.within_batch and one.anatomy is not None:
        options["variance"] = one.anatomy.variance
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    name = one.optimizer.replace(":", ".") if one.outside else f"svag.{one.optimizer}"
    if not one.outside and not one.row:
        given = f", anatomy={one.anatomy!r}{given}"
    return f"optimizer = {name}(model.parameters(), lr={lr:.3g}{given})"
