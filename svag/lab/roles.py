"""The role of each record in its study, such as a trial of the search or a final run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from svag.lab.protocol import Outcome, replay
from svag.lab.records import Record, finder, identity
from svag.lab.studies import Study

Role: TypeAlias = Literal["search", "selection", "abandoned", "final"]
"""``abandoned``: a final run at a step size that was given up after a final run diverged."""


@dataclass(frozen=True)
class Part:
    """The study that uses a record, and the record's role in it."""

    study: str
    role: Role


def parts(studies: Sequence[Study], records: Sequence[Record]) -> dict[str, Part]:
    """Return study and role of records, by the run's id; unused records are left out.

    Args:
        studies: the studies of a folder; if two use a record, the first one counts.
        records: the records of the folder.
    """
    find = finder(records)
    found: dict[str, Part] = {}
    for study in reversed(studies):
        for key in study.methods:
            for name, role in _of_one(replay(study, key, find)).items():
                found[name] = Part(study.id, role)
    return found


def _of_one(outcome: Outcome) -> dict[str, Role]:
    """Return the roles of a method's records; if a record has two, the later one counts."""
    groups: Mapping[Role, Iterable[Record]] = {
        "search": outcome.search.values(),
        "selection": (one for several in outcome.selection.values() for one in several),
        "abandoned": (one for several in outcome.lost.values() for one in several),
        "final": outcome.final,
    }
    return {identity(record): role for role, several in groups.items() for record in several}
