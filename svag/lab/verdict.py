"""What an analysis says, in sentences: which half of Adam did the work, and the paper's claims.

Accuracies are spoken of in percentage points, losses in nats. An effect counts where its interval
excludes 0; one of two effects decides where it counts and is at least twice the other.
"""

from dataclasses import dataclass
from typing import Literal

from svag.anatomy import method
from svag.lab.analysis import Analysis, Effect, Figure

Outcome = Literal["holds", "does not hold", "not decided", "does not arise"]

_CLEARLY = 2.0
_TOGETHER = "the two halves of Adam act only together"
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
    absent = left_out(analysis)
    note = f" Not in these figures: {'; '.join(absent)}." if absent else ""
    if not analysis.effects:
        return (
            f"On {problem} {_ranking(analysis)}. Which half of Adam does it takes four methods to "
            f"tell: with and without the sign, each with and without variance adaptation.{note}"
        )
    accuracy, loss = (_decision(analysis, f) for f in ("test_accuracy", "train_loss"))
    also = "also " if accuracy == loss else ""
    return (
        f"On {problem} {accuracy}: {_spoken(analysis, 'test_accuracy', accuracy)}. "
        f"In the training loss {also}{loss}: {_spoken(analysis, 'train_loss', loss)}.{note}"
    )


def left_out(analysis: Analysis) -> list[str]:
    """Name the methods of which runs are missing in the figures, and say why."""
    reasons = []
    for key, result in analysis.methods.items():
        many = len(result.replications) + result.diverged
        if many == 0 and not result.searched_in_vain:
            reasons.append(f"{method(key).name}, of which nothing has been replicated")
        elif many == 0:
            reasons.append(f"{method(key).name}, for which no stable step size was found")
        elif result.diverged == many:
            reasons.append(f"{method(key).name}, of which every replication diverged")
        elif result.diverged:
            reasons.append(f"{result.diverged} of {many} replications of {method(key).name}")
    return reasons


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


def _ranking(analysis: Analysis) -> str:
    means = {
        method(key).name: 100 * result.final["test_accuracy"].mean
        for key, result in analysis.methods.items()
        if result.replications
    }
    first, *others = sorted(means, key=lambda name: means[name], reverse=True) or [""]
    if not first:
        return "no method has a replication that did not diverge"
    rest = ", ".join(f"{name} {means[name]:.2f} %" for name in others)
    return f"{first} ends at {means[first]:.2f} % test accuracy" + (f", {rest}" if rest else "")


def _decision(analysis: Analysis, figure: Figure) -> str:
    effects = analysis.effects[figure]
    size = {half: abs(effects[half].estimate) for half in _HALVES}
    larger, smaller = sorted(_HALVES, key=lambda half: size[half], reverse=True)
    clear = size[larger] > 0 and size[larger] >= _CLEARLY * size[smaller]
    if effects[larger].interval is None:
        leads = f"{_HALVES[larger]} makes the larger difference" if clear else "the halves are even"
        return f"{leads} (one seed, so without an interval)"
    interaction = effects["interaction"]
    if interaction.direction != 0 and abs(interaction.estimate) >= size[larger]:
        return _TOGETHER
    if effects[larger].direction == 0 and effects[smaller].direction != 0:
        return f"{_HALVES[smaller]} counts, and whether {_HALVES[larger]} does is open"
    if effects[larger].direction == 0:
        return "neither half of Adam decides"
    if clear or effects[smaller].direction == 0:
        return f"{_HALVES[larger]} decides"
    return "both halves of Adam count"


def _spoken(analysis: Analysis, figure: Figure, decision: str) -> str:
    """Give both effects, the larger first; ``it`` where the decision has just named it."""
    effects = analysis.effects[figure]
    what = "final test accuracy" if figure == "test_accuracy" else "final training loss"
    if decision == _TOGETHER:
        without, along = (effects[f"adaptation {word} sign"] for word in ("without", "with"))
        return (
            f"variance adaptation changes the {what} by {_amount(without, figure)} without the "
            f"sign and by {_amount(along, figure)} with it"
        )
    first, second = sorted(_HALVES, key=lambda half: abs(effects[half].estimate), reverse=True)
    subject = "it" if decision.startswith(_HALVES[first]) else _HALVES[first]
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
    """Held if the two clusters are further apart than the methods within either."""
    loss = analysis.effects["train_loss"]
    sign = loss["sign"]
    within = [loss[f"adaptation {word} sign"] for word in ("without", "with")]
    widest = max(within, key=lambda effect: abs(effect.estimate))
    dominates = abs(sign.estimate) > abs(widest.estimate)
    decided = (sign if dominates else widest).direction != 0
    return Observation(
        "The sign aspect dominates: methods cluster into sign-based and others.",
        ("holds" if dominates else "does not hold") if decided else "not decided",
        f"In the training loss the clusters are {_amount(sign, 'train_loss')} apart; variance "
        f"adaptation changes it by {_amount(within[0], 'train_loss')} without the sign and by "
        f"{_amount(within[1], 'train_loss')} with it.",
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
        base, adapted = (method(analysis.cells[sign, a]).name for a in (False, True))
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
