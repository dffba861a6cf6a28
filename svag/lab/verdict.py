"""What an analysis says, in sentences: which half of Adam did the work, and the paper's claims.

Accuracies are spoken of in percentage points, losses in nats. An effect counts where its interval
excludes 0; one of two effects decides where it counts and is at least twice the other.
"""

from dataclasses import dataclass
from typing import Literal

from svag.anatomy import METHODS
from svag.lab.analysis import Analysis, Effect, Figure

Outcome = Literal["holds", "does not hold", "not decided", "does not arise"]

_CLEARLY = 2.0
_HALVES = {"sign": "the sign", "adaptation": "variance adaptation"}


@dataclass(frozen=True)
class Observation:
    """One of the paper's four observations (§6.2), held against this study."""

    claim: str
    outcome: Outcome
    detail: str


def verdict(analysis: Analysis) -> str:
    """Say in a sentence or two which half of Adam did the work on this problem."""
    problem = analysis.settings["problem"]
    if not analysis.effects:
        return (
            f"On {problem} the two halves of Adam cannot be told apart: that takes a method with "
            "and without the sign, each with and without variance adaptation."
        )
    accuracy, loss = (_decision(analysis, f) for f in ("test_accuracy", "train_loss"))
    also = "also " if accuracy == loss else ""
    return (
        f"On {problem} {accuracy}: {_spoken(analysis, 'test_accuracy', accuracy)}. "
        f"In the training loss {also}{loss}: {_spoken(analysis, 'train_loss', loss)}."
    )


def observations(analysis: Analysis) -> list[Observation]:
    """Hold the paper's four observations against this study; none if a cell is missing."""
    if not analysis.effects:
        return []
    return [
        _sign_dominates(analysis),
        _sign_depends_on_the_problem(analysis),
        _adaptation_helps(analysis),
        _sign_harms_generalization(analysis),
    ]


def _decision(analysis: Analysis, figure: Figure) -> str:
    effects = analysis.effects[figure]
    size = {half: abs(effects[half].estimate) for half in _HALVES}
    larger, smaller = sorted(_HALVES, key=lambda half: size[half], reverse=True)
    clear = size[larger] >= _CLEARLY * size[smaller]
    if effects[larger].interval is None:
        leads = f"{_HALVES[larger]} makes the larger difference" if clear else "the halves are even"
        return f"{leads} (one seed, so without an interval)"
    if effects[larger].direction == 0:
        return "neither half of Adam decides"
    if clear or effects[smaller].direction == 0:
        return f"{_HALVES[larger]} decides"
    return "both halves of Adam count"


def _spoken(analysis: Analysis, figure: Figure, decision: str) -> str:
    """Give both effects, the larger first; ``it`` where the decision has just named it."""
    effects = analysis.effects[figure]
    first, second = sorted(_HALVES, key=lambda half: abs(effects[half].estimate), reverse=True)
    subject = "it" if decision.startswith(_HALVES[first]) else _HALVES[first]
    what = "final test accuracy" if figure == "test_accuracy" else "final training loss"
    return (
        f"{subject} changes the {what} by {_amount(effects[first], figure)}, "
        f"{_HALVES[second]} by {_amount(effects[second], figure)}"
    )


def _amount(effect: Effect, figure: Figure) -> str:
    """Write an effect with its interval: points to two decimals, losses to three digits."""
    scale, unit, digits = (100, " points", ".2f") if figure == "test_accuracy" else (1, "", ".3g")
    text = f"{scale * effect.estimate:+{digits}}{unit}"
    if effect.interval is None:
        return text
    low, high = (f"{scale * bound:+{digits}}" for bound in effect.interval)
    return f"{text} [{low}, {high}]"


def _sign_dominates(analysis: Analysis) -> Observation:
    loss = analysis.effects["train_loss"]
    sign, adaptation = loss["sign"], loss["adaptation"]
    larger = abs(sign.estimate) > abs(adaptation.estimate)
    decided = (sign if larger else adaptation).direction != 0
    return Observation(
        "The sign aspect dominates: methods cluster into sign-based and others.",
        ("holds" if larger else "does not hold") if decided else "not decided",
        f"Effect on the training loss: sign {_amount(sign, 'train_loss')}, variance adaptation "
        f"{_amount(adaptation, 'train_loss')}.",
    )


def _sign_depends_on_the_problem(analysis: Analysis) -> Observation:
    sign = analysis.effects["train_loss"]["sign"]
    side = {1: "It hurts here", -1: "It helps here", 0: "It makes no clear difference here"}
    return Observation(
        "Whether the sign helps depends on the problem.",
        "not decided",
        f"One problem cannot decide this. {side[sign.direction]}: "
        f"{_amount(sign, 'train_loss')} in training loss.",
    )


def _adaptation_helps(analysis: Analysis) -> Observation:
    parts, outcomes = [], []
    for sign, name in ((False, "adaptation without sign"), (True, "adaptation with sign")):
        base, adapted = (METHODS[analysis.cells[sign, a]].name for a in (False, True))
        accuracy = analysis.effects["test_accuracy"][name]
        loss = analysis.effects["train_loss"][name]
        outcomes += [accuracy.direction, -loss.direction]
        parts.append(
            f"{adapted} against {base}: {_amount(accuracy, 'test_accuracy')} of test accuracy, "
            f"{_amount(loss, 'train_loss')} of training loss"
        )
    outcome: Outcome = "not decided"
    if -1 in outcomes or 1 in outcomes:
        outcome = "does not hold" if -1 in outcomes else "holds"
    return Observation(
        "Variance adaptation helps: adapted methods do at least as well as their base methods.",
        outcome,
        "; ".join(parts) + ".",
    )


def _sign_harms_generalization(analysis: Analysis) -> Observation:
    loss, accuracy = (analysis.effects[f]["sign"] for f in ("train_loss", "test_accuracy"))
    adapted = analysis.effects["test_accuracy"]["adaptation"]
    numbers = (
        f"The sign changes the training loss by {_amount(loss, 'train_loss')} and the test "
        f"accuracy by {_amount(accuracy, 'test_accuracy')}; variance adaptation changes the "
        f"latter by {_amount(adapted, 'test_accuracy')}."
    )
    outcome: Outcome
    if loss.interval is None:
        outcome = "not decided"
    elif loss.direction == -1 and accuracy.direction == -1:
        outcome = "holds" if adapted.direction >= 0 else "does not hold"
    else:
        outcome = "does not arise"
    return Observation(
        "Adverse effects on generalization (better in training, worse in test) come from the sign.",
        outcome,
        numbers,
    )
