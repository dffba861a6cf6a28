"""Checkpoints: one file for each run, overwritten as the run goes on, removed when it has ended.

``DIR/checkpoints/<run id>.pt`` holds only tensors, numbers and texts and is read without executing
code (``weights_only``). A new checkpoint is written to a scratch file and renamed, so that a kill
while writing leaves the previous one.
"""

import io
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svag import __version__
from svag.errors import in_one_line
from svag.lab.records import environment, of_lines
from svag.lab.run import Run
from svag.lab.step_state import NotResumable, State

EVERY = 60.0
"""Default seconds between two checkpoints."""

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run that can be continued.

    Attributes:
        step: steps taken.
        seconds: wall time of the run until then.
        lines: lines of its record after the ``run`` line.
        state: state of the session.
    """

    step: int
    seconds: float
    lines: list[dict[str, Any]]
    state: State


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: its subfolder ``checkpoints`` holds the file.
        run: the run.
        every: seconds between two checkpoints; None for no checkpoints.

    Attributes:
        trouble: why checkpoints are not written, or why one was discarded; empty if all is well.
    """

    def __init__(self, directory: Path, run: Run, every: float | None) -> None:
        self.path = directory / "checkpoints" / f"{run.id}.pt"
        self.trouble = ""
        self._run, self._every = run, every
        self._due = _after(every)

    def read(self) -> Checkpoint | None:
        """Return the checkpoint if there is one; one that cannot be used is removed."""
        try:
            content = torch.load(self.path, weights_only=True)
            differing = _differing(content, _header(self._run))
            found = Checkpoint(**content["checkpoint"])
            there, here = content["computed"], _computed()
            differing = differing or _impossible(found, self._run)
        except FileNotFoundError:
            return None
        except Exception as error:  # for a damaged file torch raises many kinds of errors
            differing = f"cannot be read ({in_one_line(error)[:200]})"
        if differing:
            self.set_aside(differing)
            return None
        if there != here:
            self.trouble = (
                f"begun with {there}, continued with {here}: figures may differ from those of an "
                "uninterrupted run"
            )
        return found

    def set_aside(self, reason: str) -> None:
        """Remove a checkpoint that cannot be used, and keep the reason in ``trouble``."""
        self.trouble = f"the checkpoint {reason}; the run began again"
        self.remove()

    def write_if_due(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Write a checkpoint if it is due; after an OSError the next one is tried again."""
        if time.perf_counter() < self._due:
            return
        try:
            self._write(checkpoint())
        except OSError as error:
            self.trouble = f"a checkpoint could not be written: {error.strerror}"
        except Exception as error:  # the state_dict of a user's step may raise anything
            reason = str(error) if isinstance(error, NotResumable) else in_one_line(error)[:200]
            self.trouble, self._every = f"no checkpoints: {reason}", None
            self.remove()
        self._due = _after(self._every)

    def remove(self) -> None:
        """Remove the checkpoint, after the run has ended."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            for left in self.path.parent.glob(f"{self._run.id}.*.part"):  # left by a kill
                left.unlink(missing_ok=True)
            self.path.parent.rmdir()  # raises if the folder is not empty

    def _write(self, checkpoint: Checkpoint) -> None:
        written = io.BytesIO()
        content = {**_header(self._run), "computed": _computed(), "checkpoint": vars(checkpoint)}
        torch.save(content, written)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            with scratch.open("wb") as file:
                file.write(written.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
        except OSError:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


def _header(run: Run) -> dict[str, Any]:
    return {"format": _FORMAT, "svag": __version__, "torch": str(torch.__version__), "run": run.id}


def _computed() -> str:
    """Describe what affects a run's figures but not its id: threads, CPU, commit."""
    count = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    commit = environment()["commit"]
    code = f", commit {commit[:10]}" if commit else ""
    return f"{count} thread{'s' * (count != 1)} on {capability}{code}"


def _differing(content: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Describe how a checkpoint's header differs from the expected one; empty if it does not."""
    for name, value in expected.items():
        if content.get(name) != value:
            return f"is of {name} {content.get(name)}, not {value}"
    return ""


def _impossible(found: Checkpoint, run: Run) -> str:
    """Describe what no checkpoint of a run can have; empty if all is well."""
    if not (type(found.step) is int and 0 <= found.step < run.steps):
        return f"is of step {found.step!r:.60}, of a run of {run.steps}"
    if (taken := found.state.get("taken", found.step)) != found.step:
        return f"is of step {found.step}, its state of step {taken!r:.60}"
    if not 0 <= found.seconds < float("inf"):
        return f"is of {found.seconds!r:.60} seconds"
    record = of_lines(run, found.lines)
    last = record.evals[-1]["step"] if record.evals else -1
    if record.end is not None or last != found.step // run.eval_every * run.eval_every:
        return f"is of step {found.step}, its lines end with step {last}"
    return ""


def _after(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.perf_counter() + seconds
