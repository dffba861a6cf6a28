"""Folders as they are exported: their records, each with the part that it has in a study."""

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
        records: all that it holds, by name of the run.
        parts: what those that a study uses are to it, by name of the run.
    """

    path: Path
    records: Mapping[str, Record]
    parts: Mapping[str, Part]

    def role(self, name: str) -> Role | None:
        """Return what a run is to its study; None if no study uses it."""
        return self.parts[name].role if name in self.parts else None


def read(path: Path) -> Folder:
    """Read a folder; one without a study, as a copy of ``records`` is, has records alone.

    Raises:
        RecordError: it does not exist, has no records, or a file of it is of another format.
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
