"""One run: a problem, a method, a step size, a seed -> a record.

Numerical failure is a status, not an exception: a run has diverged when a loss, an evaluated loss
or a parameter is no longer a finite number. Nothing else is divergence: losses may be negative, may
rise and fall again, and may end above where they began; the metric judges that.
"""

import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from svag.errors import RecordError, SvagError, in_one_line
from svag.lab.evaluation import Figures
from svag.lab.record_format import Status
from svag.lab.records import Recorder, Run
from svag.lab.session import Session
from svag.problems import Data, Problem

_BROADCAST = "Using a target size .* that is different to the input size"
"""What torch warns of where a loss compares (n, 1) with (n,), that is each with every other."""


class TimedOut(SvagError):
    """A run took longer than it may."""


def train(
    problem: Problem,
    data: Data,
    run: Run,
    directory: Path,
    *,
    progress: Callable[[int], None] = lambda step: None,
    timeout: float | None = None,
) -> None:
    """Train once and record it; whatever ends the run is in the record as its status.

    Args:
        problem: the task.
        data: its data, as ``problem.load`` returned them.
        run: method, step size, seed and length.
        directory: its folder ``records`` receives the record.
        progress: called with the number of steps taken after each evaluation.
        timeout: seconds after which the run ends in error; None for as long as it takes.

    Raises:
        KeyboardInterrupt: passed on after the record has been closed as interrupted.
        RecordError: the record cannot be written.
    """
    noted = {"source": problem.source, "threads": torch.get_num_threads()}
    started = time.perf_counter()
    with Recorder(directory, run, **noted) as recorder, warnings.catch_warnings():
        warnings.filterwarnings("error", _BROADCAST)
        try:
            session, figures = _run(problem, data, run, recorder, progress, timeout)
        except KeyboardInterrupt:
            recorder.end("interrupted", wall_time=_since(started))
            raise
        except RecordError:
            raise
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
            recorder.end(
                "error", message=in_one_line(error), traceback=trace, wall_time=_since(started)
            )
        else:
            status: Status = "diverged" if session.diverged else "done"
            recorder.end(status, step=session.step, **figures, wall_time=_since(started))


def _run(
    problem: Problem,
    data: Data,
    run: Run,
    recorder: Recorder,
    progress: Callable[[int], None],
    timeout: float | None,
) -> tuple[Session, Figures]:
    """Train until the end or until the run diverges; return its last figures."""
    limit = None if timeout is None else time.perf_counter() + timeout

    def due() -> None:
        if limit is not None and time.perf_counter() > limit:
            raise TimedOut(f"timed out after {timeout:g} s (--timeout)")

    session, figures = Session(problem, data, run), Figures()
    for step in session.stops(due):
        figures = session.evaluate()
        recorder.eval(step, **figures)
        if session.agreement:
            recorder.agreement(step, session.agreement.correlations())
        progress(step)
    return session, {} if session.step < run.steps else figures


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
