"""The verdict of a study in sentences. ``claims.py`` has the condition of each finding.

If there are obstacles to a verdict, they are in the first sentence: runs that diverged at the
chosen step size, or methods that learnt nothing at any step size. Then come the finding with its
numbers, the halves that are equal or not decided, and what is left out.
"""

from scipy.stats import beta

from svag.analysis.claims import Claims, Finding
from svag.analysis.contrasts import (
    ADAPTATION,
    BOTH_OR_NEITHER,
    INTERACTION,
    SIGN,
    SIGN_OR_ADAPTATION,
)
from svag.analysis.results import TRAIN_LOSS, MethodResult
from svag.analysis.study import CELLS, Analysis
from svag.analysis.wording import amount, amount_of, difference

_HALVES = {SIGN: "the sign", ADAPTATION: "variance adaptation"}

_SAID: dict[Finding, str] = {
    "sign decides": "the sign decides",
    "adaptation decides": "variance adaptation decides",
    "both count": "both halves of Adam count, and it is not decided which counts more",
    "sign counts": "the sign counts",
    "adaptation counts": "variance adaptation counts",
    "together": "what one half of Adam does depends on the other",
    "larger": "the methods differ, and it is not decided which half of Adam is the cause",
    "equal": "neither half of Adam makes a difference that matters",
    "open": "it is not decided whether either half of Adam makes a difference",
    "unfinished": "nothing is decided yet, because runs have not finished",
    "one seed": "nothing is decided, because intervals need two seeds or more",
    "diverged": "nothing is decided, because the figures are of the runs that survived",
}


def verdict(analysis: Analysis) -> str:
    """Write in a few sentences which half of Adam made the difference on this problem."""
    return " ".join(
        sentence
        for sentence in (*obstacles(analysis), *_findings(analysis), *_left_out(analysis))
        if sentence
    )


def obstacles(analysis: Analysis) -> list[str]:
    """Write the obstacles to a verdict: divergence, and searches that found nothing."""
    sentences = []
    lost = [result for result in analysis.methods.values() if result.diverged]
    if lost:
        shares = "; ".join(_share_diverged(result) for result in lost)
        sentences.append(
            f"Runs diverged at the step sizes that were settled on: {shares}. "
            "All figures are of runs that survived."
        )
    if _begins_without_loss(analysis):
        sentences.append(
            "The loss was not finite even before the first step, in every run: that is the model's "
            "or the data's, and no step size changes it."
        )
    for result in analysis.methods.values():
        lrs = [trial.lr for trial in result.trials]
        if lrs and not result.outcome.learnt and not result.all_diverged:
            given = result.entrant.key in analysis.study.grids
            where = "of those given" if given else f"from {min(lrs):g} to {max(lrs):g}"
            sentences.append(
                f"{result.entrant.name} learnt next to nothing at any step size {where}."
            )
    return sentences


def _begins_without_loss(analysis: Analysis) -> bool:
    """Whether every run of a study has a loss before the first step that is not finite."""
    runs = [
        record
        for result in analysis.methods.values()
        for record in (*result.outcome.search.values(), *result.outcome.final)
        if record.evals
    ]
    return bool(runs) and all(record.evals[0].get(TRAIN_LOSS.name) is None for record in runs)


def _share_diverged(result: MethodResult) -> str:
    lost, many = result.diverged, result.many
    low = beta.ppf(0.025, lost, many - lost + 1)
    high = beta.ppf(0.975, lost + 1, many - lost) if lost < many else 1.0
    moved = f" after {result.outcome.moves} moves down" if result.outcome.moves else ""
    return (
        f"{lost} of {many} of {result.entrant.name} at {result.lr:g}{moved} "
        f"({100 * lost / many:.0f} % [{100 * low:.0f}, {100 * high:.0f}])"
    )


def _findings(analysis: Analysis) -> list[str]:
    problem, claims = analysis.study.base.problem, analysis.claims
    if claims is None:
        return [
            f"On {problem} {_ranking(analysis)}.",
            "Four methods are needed to tell which half of Adam made the difference: with and "
            "without the sign, each with and without variance adaptation, and all else alike.",
        ]
    said = f"On {problem} {_SAID[claims.finding]}: {_numbers(analysis, claims)}."
    return [said, _equivalence(analysis, claims)]


def _numbers(analysis: Analysis, claims: Claims) -> str:
    """Write the effects that the finding follows from, then the other half's effect."""
    effects, quantity = claims.effects, analysis.quantity
    if claims.finding == "together":
        # the interaction is half the difference of the two effects
        return (
            f"the effect of variance adaptation on the final {analysis.judged.title} with the sign "
            f"and that without it differ by {amount(effects[INTERACTION].scaled(2), quantity)}"
        )
    halves = [SIGN, ADAPTATION]
    if claims.finding.startswith("adaptation"):
        halves.reverse()
    first, second = halves
    less = "" if quantity.larger_is_better else " (less is better)"
    text = (
        f"{_HALVES[first]} changes the final {analysis.judged.title}{less} by "
        f"{amount(effects[first], quantity)}, {_HALVES[second]} by "
        f"{amount(effects[second], quantity)}"
    )
    if claims.finding in ("sign decides", "adaptation decides", "larger"):
        text += f" ({_pairs(analysis, claims)})"
    return text


def _pairs(analysis: Analysis, claims: Claims) -> str:
    neither, adapted, sign, both = (analysis.methods[analysis.cells[c]].entrant.name for c in CELLS)
    less, more = (claims.effects[name] for name in (SIGN_OR_ADAPTATION, BOTH_OR_NEITHER))
    return (
        f"{sign} against {adapted} {amount(less, analysis.quantity)}, "
        f"{both} against {neither} {amount(more, analysis.quantity)}"
    )


def _equivalence(analysis: Analysis, claims: Claims) -> str:
    """Write which halves are equal within the margin, and the power to find that."""
    if claims.finding in ("unfinished", "one seed", "diverged", "together", "larger"):
        return ""
    margin = difference(claims.margin, analysis.quantity, signed=False)
    counting = [half for half in _HALVES if claims.effects[half].direction]
    equal = [half for half in claims.equal if half not in counting]
    undecided = [half for half in _HALVES if half not in counting and half not in equal]
    parts = []
    if equal:
        names = " and ".join(_HALVES[half] for half in equal)
        parts.append(f"with and without {names} the results are equal within {margin}")
    if undecided and claims.finding not in ("sign decides", "adaptation decides"):
        names = " and ".join(_HALVES[half] for half in undecided)
        power = (
            f"if a half had no effect at all, {100 * claims.power:.0f} % of studies with errors as "
            f"large as here would find it equal within {margin}; with more seeds, more would"
        )
        known = f"whether {names} make{'s' * (len(undecided) == 1)} a difference is not decided; "
        parts.append(power if claims.finding == "open" else known + power)
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _ranking(analysis: Analysis) -> str:
    quantity, figure = analysis.quantity, analysis.judged
    means = {
        result.entrant.name: result.final[figure.name].mean
        for result in analysis.methods.values()
        if result.runs
    }
    ranked = sorted(means, key=lambda name: quantity.merit(means[name]), reverse=True)
    if not ranked:
        return "no method has a final run that did not diverge"
    first, *others = ranked
    rest = "".join(f", {name} {amount_of(means[name], quantity)}" for name in others)
    return f"{first} ends at {amount_of(means[first], quantity)} {figure.title}{rest}"


def _left_out(analysis: Analysis) -> list[str]:
    """Write which methods are not in the figures, and what the intervals do not cover."""
    absent = []
    for result in analysis.methods.values():
        name = result.entrant.name
        if result.all_diverged:
            absent.append(f"{name}, for which no stable step size was found")
        elif result.outcome.error and not result.outcome.complete:
            absent.append(f"{name}, of which a run ended in an error")
        elif not result.many:
            absent.append(f"{name}, whose runs have not finished")
        elif not result.runs:
            absent.append(f"{name}, of which every final run diverged")
        elif result.outcome.missing:
            many = result.outcome.missing
            absent.append(f"{many} run{'s' * (many != 1)} of {name} not finished")
    sentences = [f"Not in these figures: {'; '.join(absent)}."] if absent else []
    searched = any(result.outcome.search for result in analysis.methods.values())
    if analysis.claims and not searched:
        sentences.append("The step sizes were given; others may give another answer.")
    if analysis.claims and analysis.study.protocol == "paper" and searched:
        sentences.append(
            "One seed chose each step size, as in the paper, and the intervals do not include that "
            "another seed might have chosen another one: such studies name winners among identical "
            "methods (svag bench verdict --protocol paper counts how often)."
        )
    return sentences
