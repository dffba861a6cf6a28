"""One run: a problem, a method, a step size, a seed -> a record.

Numerical failure is a status, not an exception: a run has diverged if a training loss, an evaluated
loss or a parameter is not finite. Nothing else counts as divergence: losses may be negative, may
rise and fall again, and may end above their first value, which shows in the metric.
"""

import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from svag.errors import RecordError, SvagError, in_one_line
from svag.lab import checkpoints
from svag.lab.evaluation import Figures
from svag.lab.record_format import Status
from svag.lab.records import RecordWriter
from svag.lab.run import Run
from svag.lab.session import Session, captures
from svag.problems import Data, Problem

_BROADCAST = "Using a target size .* that is different to the input size"
"""torch's warning if a loss broadcasts (n, 1) against (n,), and so compares all pairs."""


class TimedOut(SvagError):
    """A run took longer than its time limit."""


def train(
    problem: Problem,
    data: Data,
    run: Run,
    directory: Path,
    *,
    progress: Callable[[int], None] = lambda step: None,
    timeout: float | None = None,
    checkpoint_every: float | None = checkpoints.EVERY,
) -> None:
    """Train once and write the record; its status says how the run ended.

    A run that was interrupted continues from its checkpoint. On a CPU the result is the same, bit
    for bit, as without the interruption, if processor and number of threads are the same. On a GPU
    it is as reproducible as torch is there; the dropout inside cuDNN's recurrent layers is not.

    Args:
        problem: the problem.
        data: its data, as ``problem.load`` returned them.
        run: method, step size, seed and length.
        directory: its subfolder ``records`` receives the record, ``checkpoints`` the checkpoints.
        progress: called after each evaluation with the number of steps taken.
        timeout: seconds after which the run ends in error; None for no limit.
        checkpoint_every: seconds between two checkpoints; None for no checkpoints.

    Raises:
        KeyboardInterrupt: passed on after the record has been closed as interrupted.
        RecordError: the record cannot be written.
    """
    noted = {"source": problem.source, "threads": torch.get_num_threads()}
    kept = checkpoints.Checkpoints(directory, run, checkpoint_every)
    with RecordWriter(directory, run, **noted) as recorder, warnings.catch_warnings():
        warnings.filterwarnings("error", _BROADCAST)
        attempt = _Attempt(problem, data, run, recorder, kept, progress, timeout)
        try:
            status, figures = attempt.carry_out()
        except KeyboardInterrupt:
            recorder.end("interrupted", **attempt.noted())
            raise
        except RecordError:
            raise
        except (Exception, SystemExit) as error:
            trace = "".join(traceback.format_exception(error))
            message = in_one_line(error)
            recorder.end("error", message=message, traceback=trace, **attempt.noted())
        else:
            recorder.end(status, **figures, **attempt.noted())
        kept.remove()


class _Attempt:
    """One attempt at a run, from its beginning or from its checkpoint."""

    def __init__(
        self,
        problem: Problem,
        data: Data,
        run: Run,
        recorder: RecordWriter,
        kept: checkpoints.Checkpoints,
        progress: Callable[[int], None],
        timeout: float | None,
    ) -> None:
        self._problem, self._data, self._run = problem, data, run
        self._recorder, self._kept = recorder, kept
        self._progress, self._timeout = progress, timeout
        self._started, self._before = time.perf_counter(), 0.0
        self._resumed: int | None = None
        self._captured = False

    def carry_out(self) -> tuple[Status, Figures]:
        """Train until the end or until the run diverges; return its last figures."""
        session, figures = self._session(), Figures()
        for step in session.stops(lambda: self._between_steps(session)):
            figures = session.evaluate()
            self._recorder.eval(step, **figures, wall_time=self._seconds)
            if session.agreement:
                self._recorder.agreement(step, session.agreement.correlations())
            self._progress(step)
        if session.step < self._run.steps:
            return "diverged", {"step": session.step}
        if not session.evaluates_all:
            figures = session.evaluate(full=True)
        return "diverged" if session.diverged else "done", {"step": session.step, **figures}

    def noted(self) -> dict[str, float | str]:
        """Return the fields of the ``end`` line about the attempt itself, such as its wall time."""
        noted: dict[str, float | str] = {"wall_time": self._seconds}
        if self._resumed is not None:
            noted["resumed"] = self._resumed
        if self._captured:
            noted["captured"] = "as a CUDA graph"
        if self._kept.trouble:
            noted["checkpoints"] = self._kept.trouble
        return noted

    def _session(self) -> Session:
        """Return a session that continues from the checkpoint, or a new one."""
        found = self._kept.read()
        task = (self._problem, self._data, self._run)
        self._captured = self._run.device == "cuda" and captures(*task)
        session = Session(*task, captured=self._captured)
        if found is None:
            return session
        try:
            session.load_state_dict(found.state)
        except Exception as error:  # a user's load_state_dict may raise anything
            self._kept.set_aside(f"does not fit ({in_one_line(error)[:200]})")
            return Session(*task, captured=self._captured)
        self._recorder.repeat(found.lines)
        self._before, self._resumed = found.seconds, found.step
        return session

    def _between_steps(self, session: Session) -> None:
        if self._timeout is not None and self._seconds > self._timeout:
            raise TimedOut(f"timed out after {self._timeout:g} s (--timeout)")
        self._kept.write_if_due(
            lambda: checkpoints.Checkpoint(
                session.step, self._seconds, self._recorder.lines, session.state_dict()
            )
        )

    @property
    def _seconds(self) -> float:
        return round(self._before + time.perf_counter() - self._started, 3)
