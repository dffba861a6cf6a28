"""The conclusions over several problems, in sentences."""

from collections.abc import Sequence

from svag.analysis.contrasts import ADAPTATION, SIGN
from svag.analysis.several_problems import Several
from svag.analysis.study import Analysis
from svag.analysis.wording import amount, listed

HALVES = {SIGN: "the sign", ADAPTATION: "variance adaptation"}

HELPS, HURTS, EQUAL, OPEN = "helps", "hurts", "no difference", "not decided"

_SAID = {
    HELPS: "helps on",
    HURTS: "hurts on",
    EQUAL: "makes no difference that matters on",
}


def overview(several: Several) -> list[str]:
    """Return sentences on the halves of Adam, the observations, and problems left out."""
    judged = several.judged
    if judged:
        sentences = [_of_half(judged, half) for half in HALVES]
        sentences.append(_of_the_paper(several))
    else:
        sentences = ["Nothing is decided yet on any of these problems."]
    if several.not_judged:
        why = "; ".join(f"{problem} ({reason})" for problem, reason in several.not_judged.items())
        sentences.append(f"Without a part in the conclusions: {why}.")
    return sentences


def standing(analysis: Analysis, half: str) -> str:
    """Return whether a half helps, hurts, makes no difference or is open, by the study's claims."""
    claims = analysis.claims
    if claims is None or claims.finding in ("unfinished", "diverged", "one seed"):
        return OPEN
    side = claims.effects[half].direction
    side = side if analysis.quantity.larger_is_better else -side
    if side:
        return HELPS if side > 0 else HURTS
    return EQUAL if half in claims.equal else OPEN


def _of_half(judged: Sequence[Analysis], half: str) -> str:
    """Write on which problems a half helps, with its effects, then what it does on the others."""
    parts = []
    for word, said in _SAID.items():
        named = [_with_amount(one, half) for one in judged if standing(one, half) == word]
        if named:
            parts.append(f"{said} {listed(named)}")
    what = HALVES[half]
    unknown = [one.study.base.problem for one in judged if standing(one, half) == OPEN]
    if not parts:
        return f"Whether {what} helps is not decided on {listed(unknown)}."
    rest = f"; not decided on {listed(unknown)}" if unknown else ""
    return f"{what[0].upper()}{what[1:]} {', '.join(parts)}{rest}."


def _of_the_paper(several: Several) -> str:
    """Write which of the four observations are confirmed, refuted and not decided."""
    parts = []
    for outcome in ("confirmed", "refuted", "not decided"):
        numbers = [str(n) for n, check in enumerate(several.checks, 1) if check.outcome == outcome]
        if numbers:
            parts.append(f"{listed(numbers)} {'is' if len(numbers) == 1 else 'are'} {outcome}")
    return f"Of the paper's four observations {listed(parts)} on these problems."


def _with_amount(analysis: Analysis, half: str) -> str:
    """Write a problem's name with a half's effect on it."""
    problem, claims = analysis.study.base.problem, analysis.claims
    return f"{problem} ({amount(claims.effects[half], analysis.quantity)})" if claims else problem
