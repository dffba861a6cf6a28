"""MLflow: one experiment for each problem, one MLflow run for each run, in a server or a file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from svag.lab.record_format import Status
from svag.trackers.runs import Tracked
from svag.trackers.sending import TrackerError

_RUN, _DIGEST = "svag.run", "svag.digest"
_AT_ONCE: Final = 1000
"""Most metrics, or runs, in one request."""

_STATUS: Final[dict[Status, str]] = {
    "done": "FINISHED",
    "diverged": "FAILED",
    "error": "FAILED",
    "interrupted": "KILLED",
}


def default_place(directory: Path) -> str:
    """Return ``$MLFLOW_TRACKING_URI``, or else a database in a folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{directory.resolve()}/mlflow.db"


class MLflow:
    """Keeps runs in an MLflow store; the tag ``svag.run`` holds a run's id in svag.

    Args:
        place: its tracking URI, such as ``sqlite:////folder/mlflow.db`` or ``http://host:5000``.
        project: name of the experiment; None for the name of the problem.

    Raises:
        TrackerError: mlflow is not installed, or there is no store at the place.
    """

    name, replaces = "mlflow", True

    def __init__(self, place: str, project: str | None = None) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise TrackerError("mlflow is not installed; pip install 'svag[trackers]'") from error
        try:
            self._client = MlflowClient(tracking_uri=place)
            self._client.search_experiments(max_results=1)
        except Exception as error:
            raise TrackerError(
                f"there is no MLflow store at {place!r} ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); give its address, or sqlite:////FOLDER/mlflow.db"
            ) from error
        self._project = project
        self._known: dict[str, dict[str, Any]] = {}

    def sent(self, run: Tracked) -> str | None:
        """Return the digest tag of the run in the store; None if it is missing or incomplete."""
        found = self._runs(self._experiment(run)).get(run.id)
        return None if found is None else found.data.tags.get(_DIGEST, "unknown")

    def send(self, run: Tracked) -> None:
        """Delete an earlier version of the run and create it anew."""
        experiment = self._experiment(run)
        known = self._runs(experiment)
        if run.id in known:
            self._client.delete_run(known.pop(run.id).info.run_id)
        begun = 1000 * run.started
        tags = {_RUN: run.id, "svag.status": run.status, **run.noted}
        if run.message:
            tags["svag.message"] = run.message[:5000]
        created = self._client.create_run(
            experiment, start_time=int(begun), tags=tags, run_name=run.name
        )
        name = created.info.run_id
        for batch in _batches(run, begun):
            self._client.log_batch(name, metrics=batch)
        self._client.log_batch(name, params=_parameters(run))
        self._client.set_terminated(
            name, _STATUS[run.status], end_time=int(begun + 1000 * run.seconds)
        )
        self._client.set_tag(name, _DIGEST, run.digest)  # last: it marks the run as complete
        known[run.id] = self._client.get_run(name)

    def _experiment(self, run: Tracked) -> str:
        name = self._project or run.problem
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name))
        if found.lifecycle_stage != "active":
            raise TrackerError(
                f"the MLflow experiment {name!r} has been deleted; restore it, or choose another "
                "with --project"
            )
        return str(found.experiment_id)

    def _runs(self, experiment: str) -> dict[str, Any]:
        """Return the experiment's runs that svag sent, by their id in svag."""
        if experiment not in self._known:
            self._known[experiment] = {
                one.data.tags[_RUN]: one for one in self._pages(experiment) if _RUN in one.data.tags
            }
        return self._known[experiment]

    def _pages(self, experiment: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([experiment], max_results=_AT_ONCE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _batches(run: Tracked, begun: float) -> Iterator[list[Any]]:
    """Yield the curves and the final figures in batches that fit one request."""
    from mlflow.entities import Metric

    last = int(run.hyperparameters["steps"])
    metrics = [
        Metric(name, value, int(begun + 1000 * point.seconds), point.step)
        for point in run.points
        for name, value in point.figures.items()
    ]
    ended = int(begun + 1000 * run.seconds)
    metrics += [Metric(name, value, ended, last) for name, value in run.final.items()]
    for first in range(0, len(metrics), _AT_ONCE):
        yield metrics[first : first + _AT_ONCE]


def _parameters(run: Tracked) -> list[Any]:
    from mlflow.entities import Param

    shown = {**run.hyperparameters, "problem": run.problem}
    return [Param(name, repr(v) if isinstance(v, float) else str(v)) for name, v in shown.items()]
