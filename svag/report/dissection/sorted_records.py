"""The records of a dissection, sorted by what they are about."""

import math
from collections.abc import Sequence
from typing import Any, Final

from svag.analysis.dissection_records import Row, of_kind
from svag.analysis.study import CELLS, Cell
from svag.entrants import Entrant, entrant
from svag.report import line_styles

PLAIN: Final = "plain"
ROTATED: Final = "rotated"
WHOLE: Final = "all"
"""Name of all parameters together in the records."""

_BATCHES = "batch x "


class Found:
    """What a dissection has found.

    Attributes:
        setting: what was dissected, and how.
        layers: noise of each parameter.
        overall: noise of all parameters together; None if there was none to measure.
        steps: worth of one step by method, on the track ``plain``.
        tracks: the same by track and method.
        worths: worth of one step as a multiple, by method and the one it is compared with.
        effects: effects on the worth of one step, by track and name.
        heats: trainings of the race.
        race: the outcome of the race; None if there was none.
        race_effects: effects on its final loss, by name.
        curvature: rows of the curvature by what they are.
        skipped: what could not be measured, and why.
        conclusion: the answer; None if there is none.
        entrants: the methods by key.
        lines: their line styles.
        cells: keys of the methods in Figure 1's four cells; empty if one is missing.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.setting: Row = rows[0]
        noise = of_kind(rows, "noise")
        self.overall: Row | None = noise[-1] if noise and noise[-1]["name"] == WHOLE else None
        self.layers: list[Row] = noise[:-1] if self.overall else noise
        self.tracks: dict[str, dict[str, Row]] = {}
        for row in of_kind(rows, "improvement"):
            self.tracks.setdefault(row["track"], {})[row["method"]] = row
        self.steps: dict[str, Row] = self.tracks.get(PLAIN, {})
        self.worths = {(row["method"], row["against"]): row for row in of_kind(rows, "worth")}
        self.effects = {(row["track"], row["name"]): row for row in of_kind(rows, "step effect")}
        self.heats: list[Row] = of_kind(rows, "heat")
        self.race: Row | None = next(iter(of_kind(rows, "race")), None)
        self.race_effects = {row["name"]: row for row in of_kind(rows, "race effect")}
        self.curvature: dict[str, list[Row]] = {}
        for row in of_kind(rows, "curvature"):
            self.curvature.setdefault(row["what"], []).append(row)
        self.skipped: list[str] = [row["text"] for row in of_kind(rows, "skipped")]
        self.conclusion: Row | None = next(iter(of_kind(rows, "conclusion")), None)
        self.entrants: dict[str, Entrant] = {key: entrant(key) for key in self.setting["methods"]}
        self.lines = line_styles.styles(self.entrants.values())
        keys = self.setting["cells"]
        self.cells: dict[Cell, str] = dict(zip(CELLS, keys, strict=True)) if keys else {}

    @property
    def reference(self) -> str:
        """Key of the method that others are compared with; empty if none is."""
        return next((against for _, against in self.worths), "")

    @property
    def larger_batches(self) -> dict[int, dict[str, Row]]:
        """Worth of one step by number of batches that are averaged, and by method."""
        found = {1: self.steps} if self.steps else {}
        for name, rows in self.tracks.items():
            if name.startswith(_BATCHES):
                found[int(name.removeprefix(_BATCHES))] = rows
        return found if len(found) > 1 else {}

    def name(self, key: str) -> str:
        """Return a method's name."""
        return self.entrants[key].name

    def track(self, name: str) -> str:
        """Return what is done to the gradients of a track, in words."""
        if name == PLAIN:
            return "As they are"
        if name == ROTATED:
            return "Axes rotated"
        many, size = name.removeprefix(_BATCHES), self.setting["batch_size"]
        return f"{many} × batch" + (f" ({int(many) * size:,})" if size else "")


def known(value: float | None) -> float:
    """Return a number of a record: NaN where it is null."""
    return math.nan if value is None else float(value)


def interval_of(row: Row, name: str = "interval") -> tuple[float, float] | None:
    """Return an interval of a record; None if it has none or a bound is not finite."""
    found: Any = row.get(name)
    if found is None or None in found:
        return None
    return float(found[0]), float(found[1])
