"""Checkpoints: one file a run, replaced as the run goes on, removed when it has ended.

``DIR/checkpoints/<run id>.pt`` holds tensors, numbers and texts alone and is read without
executing anything (``weights_only``). It is written beside its place and moved there, so that a
kill leaves the one before.
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
from svag.lab.held import NotResumable, State
from svag.lab.records import Run, environment

EVERY = 60.0
"""Seconds between two checkpoints, unless others are asked for."""

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run that was broken off.

    Attributes:
        step: steps taken.
        seconds: that it took until then.
        lines: of its record, after the ``run`` line.
        state: of the session.
    """

    step: int
    seconds: float
    lines: list[dict[str, Any]]
    state: State


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: its folder ``checkpoints`` holds them.
        run: whose they are.
        every: seconds between two; None for none.

    Attributes:
        trouble: why there are none, or why one was set aside; empty where there is nothing to say.
    """

    def __init__(self, directory: Path, run: Run, every: float | None) -> None:
        self.path = directory / "checkpoints" / f"{run.id}.pt"
        self.trouble = ""
        self._run, self._every = run, every
        self._due = _after(every)

    def read(self) -> Checkpoint | None:
        """Return the checkpoint that is there; one that cannot be used is set aside."""
        try:
            content = torch.load(self.path, weights_only=True)
            differing = _differing(content, _header(self._run))
            found = Checkpoint(**content["checkpoint"])
            there, here = content["computed"], _computed()
        except FileNotFoundError:
            return None
        except Exception as error:  # of a damaged file, torch raises all kinds of errors
            differing = f"cannot be read ({in_one_line(error)[:200]})"
        if differing:
            self.set_aside(differing)
            return None
        if there != here:
            self.trouble = (
                f"begun with {there}, gone on with {here}: figures may differ from a run in one go"
            )
        return found

    def set_aside(self, reason: str) -> None:
        """Remove what cannot be used, and remember why."""
        self.trouble = f"the checkpoint {reason}; the run began again"
        self.remove()

    def write_if_due(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Write one if it is time to; a disk that is full costs this one alone."""
        if time.perf_counter() < self._due:
            return
        try:
            self._write(checkpoint())
        except OSError as error:
            self.trouble = f"a checkpoint could not be written: {error.strerror}"
        except Exception as error:  # whatever the state_dict of a user's step raises
            reason = str(error) if isinstance(error, NotResumable) else in_one_line(error)[:200]
            self.trouble, self._every = f"no checkpoints: {reason}", None
            self.remove()
        self._due = _after(self._every)

    def remove(self) -> None:
        """Remove it; the run has ended."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            for left in self.path.parent.glob(f"{self._run.id}.*.part"):  # by a kill while writing
                left.unlink(missing_ok=True)
            self.path.parent.rmdir()  # which only an empty folder allows

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
    """Say what the figures of a run depend on that its identity has not: code, order of sums."""
    count = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    commit = environment()["commit"]
    code = f", commit {commit[:10]}" if commit else ""
    return f"{count} thread{'s' * (count != 1)} on {capability}{code}"


def _differing(content: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Say in what a checkpoint is not of this version; empty if in nothing."""
    for name, value in expected.items():
        if content.get(name) != value:
            return f"is of {name} {content.get(name)}, not {value}"
    return ""


def _after(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.perf_counter() + seconds
