"""Combines studies of several problems: which of them count, and their common conclusions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svag.analysis.forest import Forest, on_the_loss, on_the_metric
from svag.analysis.method_ranks import Ranks, ranks
from svag.analysis.observations import Family, family, observations
from svag.analysis.observations_over_problems import Check, checks
from svag.analysis.published import PAPER
from svag.analysis.study import CELLS, Analysis
from svag.errors import RecordError
from svag.lab.protocol import expected_runs
from svag.lab.records import Record
from svag.lab.studies import Study


@dataclass(frozen=True)
class Several:
    """Studies of several problems.

    Attributes:
        analyses: one analysis for each problem.
        not_judged: why a problem is left out of the conclusions, by the problem's name.
        families: the effects by which the observations are checked, by judged problem.
        checks: the paper's four observations over the judged problems.
        ranks: ranks of methods over the judged problems.
        on_the_metric: effects on the metric, one forest for each metric.
        on_the_loss: effects on the training loss.
    """

    analyses: Sequence[Analysis]
    not_judged: Mapping[str, str]
    families: Mapping[str, Family]
    checks: Sequence[Check]
    ranks: Ranks | None
    on_the_metric: Sequence[Forest]
    on_the_loss: Forest | None

    @property
    def judged(self) -> list[Analysis]:
        """The studies that count in the conclusions."""
        return [one for one in self.analyses if one.study.base.problem not in self.not_judged]


def together(analyses: Sequence[Analysis]) -> Several:
    """Combine studies of several problems.

    Raises:
        RecordError: two of them are of the same problem, which would count twice.
    """
    names = [one.study.base.problem for one in analyses]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecordError(
            f"two of the folders hold studies of {twice!r}, which would count twice; name one "
            "folder for each problem"
        )
    not_judged = {
        one.study.base.problem: reason for one in analyses if (reason := why_not_judged(one))
    }
    judged = [one for one in analyses if one.study.base.problem not in not_judged]
    families = {one.study.base.problem: _family(one, len(judged)) for one in judged}
    return Several(
        analyses=analyses,
        not_judged=not_judged,
        families=families,
        checks=checks({problem: observations(found) for problem, found in families.items()}),
        ranks=ranks(judged),
        on_the_metric=on_the_metric(judged),
        on_the_loss=on_the_loss(families),
    )


def why_not_judged(analysis: Analysis) -> str:
    """Return why a study is left out of conclusions over problems; empty if it counts."""
    base = analysis.study.base
    results = [analysis.methods[analysis.cells[cell]] for cell in CELLS] if analysis.cells else []
    of_the_paper = PAPER.get(base.problem)
    if any(not result.outcome.complete for result in analysis.methods.values()):
        return "runs have not finished"
    if not results:
        return "no method stands in one of the four cells"
    if any(result.diverged for result in results):
        return "final runs diverged"
    if any(len(result.runs) < 2 for result in results):
        return "a method has one seed only"
    if of_the_paper is not None and base.steps < of_the_paper.least:
        return f"its {base.steps:,} steps are too few for the paper's {of_the_paper.steps:,}"
    return ""


def how_far(study: Study, records: Sequence[Record]) -> tuple[int, int]:
    """Return the number of finished runs of a study, and about how many there will be."""
    own = [record for record in records if record.finished and _belongs(study, record)]
    return len(own), max(len(own), expected_runs(study))


def _belongs(study: Study, record: Record) -> bool:
    alike = all(record.run[name] == value for name, value in study.settings.items())
    return alike and record.run["method"] in study.methods


def _family(analysis: Analysis, problems: int) -> Family:
    results = [analysis.methods[analysis.cells[cell]] for cell in CELLS]
    return family(results, analysis.judged, analysis.study.smallest_effect, problems)
