"""Records and analyses as strict JSON: NaN and infinity are written as null."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from svag.export.folders import Folder


def recorded_runs(folders: Iterable[Folder]) -> list[dict[str, Any]]:
    """Return every run with all lines of its record."""
    return [
        {
            "folder": str(folder.path),
            "run": name,
            "study": part.study if (part := folder.parts.get(name)) else None,
            "role": part.role if part else None,
            "status": record.status,
            "settings": dict(record.run),
            "evaluations": list(record.evals),
            "agreements": list(record.agreements),
            "end": record.end,
        }
        for folder in folders
        for name, record in folder.records.items()
    ]


def as_text(data: Mapping[str, Any]) -> str:
    """Write data as JSON; a number that is not finite is null."""
    return json.dumps(_finite(data), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
