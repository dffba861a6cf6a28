"""TensorBoard: one folder for each run with its curves, final figures and hyperparameters."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from svag.errors import RecordError
from svag.lab.record_format import Status
from svag.trackers.runs import Tracked
from svag.trackers.sending import TrackerError

_NOTE: Final = "svag.json"
_VERSION: Final = "brain.Event:2"
"""Version of the file format, in the first event of every event file."""

_STATUS: Final[dict[Status, str]] = {
    "done": "STATUS_SUCCESS",
    "diverged": "STATUS_FAILURE",
    "error": "STATUS_FAILURE",
    "interrupted": "STATUS_UNKNOWN",
}


class TensorBoard:
    """Writes event files; TensorBoard keeps values in float32.

    Args:
        folder: the folder for ``tensorboard --logdir``.

    Raises:
        TrackerError: tensorboard is not installed.
    """

    name, replaces = "tensorboard", True

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: F401
        except ImportError as error:
            raise TrackerError(
                "event files need tensorboard; pip install 'svag[trackers]'"
            ) from error
        self._folder = folder

    def sent(self, run: Tracked) -> str | None:
        """Return the digest from the file beside the events."""
        try:
            note = json.loads((self._path(run) / _NOTE).read_text(encoding="utf-8"))
            return str(note["digest"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return "unknown"  # so that the run is written again

    def send(self, run: Tracked) -> None:
        """Write a run's folder anew; event files get their final name when they are complete.

        The digest is written last, so that an interrupted run is written again.
        """
        path = self._path(run)
        scratch = path / "events.part"
        try:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
            _write(scratch, run)
            scratch.rename(path / f"events.out.tfevents.{int(run.started)}.svag")
            note = {"run": run.id, "digest": run.digest, "status": run.status}
            (path / _NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8")
        except OSError as error:
            raise RecordError(
                f"cannot write {path}: {error.strerror}; choose another folder with --where"
            ) from error

    def _path(self, run: Tracked) -> Path:
        name = re.sub(r"[^\w.@=+-]+", "_", run.name)[:80]
        return self._folder / run.problem / f"{name}-{run.id}"


def _write(path: Path, run: Tracked) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("wb") as file:
        writer = RecordWriter(file)
        for event in _events(run):
            writer.write(event.SerializeToString())
        writer.flush()


def _events(run: Tracked) -> Iterator[Any]:
    """Yield a run's events with the times at which they happened."""
    from tensorboard.compat.proto.event_pb2 import Event

    end = run.started + run.seconds
    yield Event(wall_time=run.started, file_version=_VERSION)
    yield Event(wall_time=run.started, summary=_begun(run))
    for point in run.points:
        yield Event(
            wall_time=run.started + point.seconds,
            step=point.step,
            summary=_scalars(point.figures),
        )
    if run.final:
        last = run.hyperparameters["steps"]
        yield Event(wall_time=end, step=last, summary=_scalars(run.final))
    yield Event(wall_time=end, summary=_ended(run, end))


def _scalars(figures: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(
        value=[Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
    )


def _begun(run: Tracked) -> Any:
    """Return TensorBoard's hparams summary of the start of a run: its hyperparameters."""
    from tensorboard.plugins.hparams import summary_v2

    shown = {**run.hyperparameters, "problem": run.problem, "status": run.status}
    shown |= {name: run.noted[name] for name in ("role", "study") if name in run.noted}
    return summary_v2.hparams_pb(shown, trial_id=run.id, start_time_secs=run.started)


def _ended(run: Tracked, when: float) -> Any:
    """Return TensorBoard's hparams summary of the end of a run: status and time."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.Status.Value(_STATUS[run.status])
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=when)
    described = metadata.create_summary_metadata(
        plugin_data_pb2.HParamsPluginData(session_end_info=info)
    )
    tag, nothing = metadata.SESSION_END_INFO_TAG, metadata.NULL_TENSOR
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=nothing)])
