"""What a dissection has found, as records: one flat JSON object a line.

The first line, of kind ``dissection``, says what was dissected and how; the last, ``conclusion``,
what follows. In between there is a line for each layer's noise, each method's improvement on each
track, its worth against others, each effect, each training of the race, and the curvature. A number
that is not finite is null. :mod:`svag.analysis.dissection_records` reads them.
"""

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svag import __version__
from svag.analysis.dissection_records import FILE
from svag.diagnosis.conclusion import MATTERS, Conclusion
from svag.diagnosis.improvement import Factorial, Improvement, Worth
from svag.diagnosis.noise_summary import LayerNoise
from svag.diagnosis.race_result import RaceEffect, RaceResult
from svag.errors import RecordError, in_one_line


@dataclass(frozen=True)
class Setting:
    """What was dissected, and how.

    Attributes:
        problem: its name, or ``model``.
        step: training steps taken before; 0 at initialisation, None if not known.
        planned: length of the training that is planned, in steps; None if not known.
        parameters: number of trainable parameters.
        batch_size: examples in a batch, if they are all of one size.
        methods: keys of the methods.
        cells: keys of the methods in the cells of the 2x2 table, if all are there.
        device: where the model is.
        budget: seconds that were given.
        seconds: seconds that it took.
        loss: loss of a batch at the dissected parameters.
        gradients: gradients taken for the directions.
        evaluations: losses evaluated along them.
        command: command line that repeats it; empty if it was not made on the command line.
        steps_measured: whether single steps were measured, not a race alone.
        metric: what the race is judged by: the loss, or the metric of a problem with its own step.
        larger_is_better: whether larger values of the metric are better; ``loss`` and the race's
            losses are then its negative.
    """

    problem: str
    step: int | None
    planned: int | None
    parameters: int
    batch_size: int | None
    methods: tuple[str, ...]
    cells: tuple[str, ...]
    device: str
    budget: float
    seconds: float
    loss: float
    gradients: int
    evaluations: int
    command: str = ""
    steps_measured: bool = True
    metric: str = "loss"
    larger_is_better: bool = False


@dataclass(frozen=True)
class StepEffect:
    """An effect on the worth of one step, on one track."""

    track: str
    effect: Factorial


@dataclass
class Dissection:
    """Everything that a dissection found.

    Attributes:
        setting: what was dissected, and how.
        noise: noise of each layer's gradient, and of all last.
        improvements: worth of one step, by track and method.
        worths: the same as a multiple of other methods', on the plain track.
        effects: effects of sign and adaptation on it, by track.
        race: the race; None if there was none.
        race_effects: effects on its final loss.
        curvature: rows of the curvature, as plain dictionaries.
        skipped: what could not be measured, and why, in sentences.
        conclusion: the answer.
    """

    setting: Setting
    noise: list[LayerNoise] = field(default_factory=list)
    improvements: list[Improvement] = field(default_factory=list)
    worths: list[Worth] = field(default_factory=list)
    effects: list[StepEffect] = field(default_factory=list)
    race: RaceResult | None = None
    race_effects: list[RaceEffect] = field(default_factory=list)
    curvature: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    conclusion: Conclusion | None = None

    def __str__(self) -> str:
        """Return the answer: headline, statements, notes, and the line to paste."""
        if self.conclusion is None:
            return f"a dissection of {self.setting.problem}, not finished"
        ended = self.conclusion
        says = [one.text for one in ended.statements]
        lines = [ended.headline, *(f"- {text}" for text in (*says, *ended.notes, *self.skipped))]
        if ended.suggestions:
            lines += ["", ended.suggestions[0].line]
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """Return the records."""
        found: list[dict[str, Any]] = [
            {"kind": "dissection", "svag": __version__, **dataclasses.asdict(self.setting)}
        ]
        found += [{"kind": "noise", **dataclasses.asdict(one)} for one in self.noise]
        found += [{"kind": "improvement", **dataclasses.asdict(one)} for one in self.improvements]
        found += [
            {"kind": "worth", "track": "plain", **dataclasses.asdict(one)} for one in self.worths
        ]
        found += [
            {"kind": "step effect", "track": one.track, **dataclasses.asdict(one.effect)}
            for one in self.effects
        ]
        if self.race is not None:
            found += [{"kind": "heat", **dataclasses.asdict(one)} for one in self.race.heats]
            found += [
                {
                    "kind": "race",
                    "start_loss": self.race.start_loss,
                    "steps": self.race.steps,
                    "lrs": dict(self.race.lrs),
                    "losses": dict(self.race.losses),
                    "unbounded": list(self.race.unbounded),
                }
            ]
        found += [{"kind": "race effect", **dataclasses.asdict(one)} for one in self.race_effects]
        found += [{"kind": "curvature", **one} for one in self.curvature]
        found += [{"kind": "skipped", "text": text} for text in self.skipped]
        if self.conclusion is not None:
            conclusion = dataclasses.asdict(self.conclusion)
            found += [{"kind": "conclusion", "matters": MATTERS, **conclusion}]
        return found

    def write(self, directory: Path) -> Path:
        """Write the records to a folder, whose file they replace, and return the file.

        Raises:
            RecordError: the folder cannot be written to.
        """
        path = directory / FILE
        text = "".join(json.dumps(plain(row)) + "\n" for row in self.rows())
        try:
            directory.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise RecordError(f"{path} cannot be written: {in_one_line(error)}") from error
        return path


def refuse_folder(directory: Path) -> None:
    """Refuse a folder that records cannot be written to, before anything is measured.

    Raises:
        RecordError: the path is not a folder, or the folder (if it does not exist, its parent)
            cannot be written to.
    """
    there = next((one for one in (directory, *directory.parents) if one.exists()), Path())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RecordError(
            f"{directory / FILE} cannot be written: {there} is no folder that you may write to"
        )


def plain(value: Any) -> Any:
    """Return a value of JSON: numbers that are not finite become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value
