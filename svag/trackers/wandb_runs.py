"""Weights & Biases: one wandb run for each run, sent at once or written for ``wandb sync``."""

import json
from pathlib import Path
from typing import Any, Final

from svag.errors import RecordError
from svag.trackers.runs import Tracked
from svag.trackers.sending import TrackerError

PROJECT: Final = "svag"
_NOTE: Final = "svag-sent.json"


class WeightsAndBiases:
    """Sends runs that have finished, since a run in wandb cannot be replaced.

    A file in the folder lists the runs that have been sent; a run whose sending was interrupted is
    sent again, under the same id.

    Args:
        folder: wandb's files are kept in its subfolder ``wandb``.
        project: name of the project.
        offline: whether to only write files, for ``wandb sync``; if False, ``$WANDB_MODE``
            decides.

    Raises:
        TrackerError: wandb is not installed.
    """

    name, replaces = "wandb", False

    def __init__(self, folder: Path, project: str = PROJECT, *, offline: bool = False) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrackerError("wandb is not installed; pip install 'svag[trackers]'") from error
        self._wandb: Any = wandb
        self._folder, self._project, self._offline = folder, project, offline
        self._note = folder / "wandb" / _NOTE
        self._sent: dict[str, dict[str, str]] = self._read()

    def sent(self, run: Tracked) -> str | None:
        """Return the digest that the run had when it was sent; None if it was not sent."""
        return self._sent.get(self._project, {}).get(run.id)

    def send(self, run: Tracked) -> None:
        """Send a run: its settings, curves, final figures and status."""
        begun = self._wandb.init(
            project=self._project,
            id=run.id,
            name=run.name,
            group=str(run.hyperparameters["method"]),
            job_type=run.noted.get("role"),
            tags=[run.problem, run.status],
            config={**run.hyperparameters, "problem": run.problem, "recorded": dict(run.noted)},
            dir=str(self._folder),
            mode="offline" if self._offline else None,
            reinit="create_new",
            settings=self._settings(),
        )
        for point in run.points:
            begun.log({**point.figures, "seconds": point.seconds}, step=point.step)
        begun.summary.update({**run.final, "status": run.status, "seconds": run.seconds})
        begun.finish(exit_code=0 if run.status == "done" else 1)
        self._sent.setdefault(self._project, {})[run.id] = run.digest
        self._write()

    def _settings(self) -> Any:
        """Return settings without system data: another machine may have trained the run."""
        return self._wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
            found = json.loads(self._note.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._refused(error) from error
        except ValueError:
            found = None
        if not (isinstance(found, dict) and all(isinstance(v, dict) for v in found.values())):
            raise RecordError(
                f"{self._note} is not a list of the runs that have been sent; move it away to send "
                "all runs again, or restore it from a copy"
            )
        return found

    def _write(self) -> None:
        scratch = self._note.with_suffix(".part")
        try:
            scratch.write_text(json.dumps(self._sent, indent=1) + "\n", encoding="utf-8")
            scratch.replace(self._note)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RecordError:
        return RecordError(
            f"cannot keep {self._note}: {error.strerror}; choose another folder with --where"
        )
