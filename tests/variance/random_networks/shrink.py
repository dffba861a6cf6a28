"""Leave out productions as long as a failure stays the same."""

from collections.abc import Iterator
from dataclasses import replace

from tests.variance.random_networks.build import Plan, build
from tests.variance.random_networks.trial import Trial, attempt


def shrunk(trial: Trial) -> Trial:
    """Return the failure of the smallest plan found."""
    found = True
    while found:
        found = False
        for plan in _smaller(trial.network.plan):
            tried = attempt(build(plan))
            if _same(tried, trial):
                trial, found = tried, True
                break
    return trial


def _same(one: Trial, other: Trial) -> bool:
    """Whether outcome, kind of examples and the reason's first words agree."""
    words = one.reason.split()[:3], other.reason.split()[:3]
    return (one.outcome, one.independent) == (other.outcome, other.independent) and words[0][
        :2
    ] == words[1][:2]


def _smaller(plan: Plan) -> Iterator[Plan]:
    for place in range(len(plan.steps)):
        yield replace(plan, steps=plan.steps[:place] + plan.steps[place + 1 :])
    if plan.head:
        yield replace(plan, head=False)
    if plan.first:
        yield replace(plan, first=False)
