"""Folders to export: their records, and the role of each record in a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from svag.errors import RecordError
from svag.lab import records as recorded
from svag.lab import studies
from svag.lab.records import Record, identity
from svag.lab.roles import Part, Role, parts


@dataclass(frozen=True)
class Folder:
    """A folder that ``svag compare`` filled.

    Attributes:
        path: as the user named it.
        records: all records of the folder, by the run's id.
        parts: study and role of the records that a study uses, by the run's id.
    """

    path: Path
    records: Mapping[str, Record]
    parts: Mapping[str, Part]

    def role(self, name: str) -> Role | None:
        """Return a run's role in its study; None if no study uses it."""
        return self.parts[name].role if name in self.parts else None


def read(path: Path) -> Folder:
    """Read a folder's records and studies; it may have no study.

    Raises:
        RecordError: it does not exist, has no records, or one of its files has another format.
    """
    if not path.is_dir():
        raise RecordError(f"there is no folder {path}; name one that `svag compare` filled")
    found = recorded.load(path)
    compared = [one.study for one in studies.filed(path)]
    return Folder(path, {identity(one): one for one in found}, parts(compared, found))


def read_all(paths: Sequence[Path]) -> list[Folder]:
    """Read several folders; one that is named twice counts once.

    Raises:
        RecordError: as :func:`read`.
    """
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path)
    return [read(path) for path in once.values()]
