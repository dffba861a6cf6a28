"""What each record of a folder is to its study: a trial of the search, a final run, or none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from svag.lab.protocol import Outcome, replay
from svag.lab.records import Record, finder, identity
from svag.lab.studies import Study

Role: TypeAlias = Literal["search", "selection", "abandoned", "final"]
"""``abandoned``: a final run at a step size that a divergence moved the choice away from."""


@dataclass(frozen=True)
class Part:
    """The part that a record has in a study."""

    study: str
    role: Role


def parts(studies: Sequence[Study], records: Sequence[Record]) -> dict[str, Part]:
    """Return what records are, by name of the run; those that no study uses are left out.

    Args:
        studies: the studies of a folder; of two that use a record, the first is named.
        records: what the folder holds.
    """
    find = finder(records)
    found: dict[str, Part] = {}
    for study in reversed(studies):
        for key in study.methods:
            for name, role in _of_one(replay(study, key, find)).items():
                found[name] = Part(study.id, role)
    return found


def _of_one(outcome: Outcome) -> dict[str, Role]:
    """Return the roles of a method's records; the last that one has counts."""
    groups: Mapping[Role, Iterable[Record]] = {
        "search": outcome.search.values(),
        "selection": (one for several in outcome.selection.values() for one in several),
        "abandoned": (one for several in outcome.lost.values() for one in several),
        "final": outcome.final,
    }
    return {identity(record): role for role, several in groups.items() for record in several}
