"""Sends runs to a tracker: each once, and again only if it has changed since."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from svag.errors import SvagError, in_one_line
from svag.trackers.runs import Tracked


class TrackerError(SvagError, RuntimeError):
    """A tracker is not installed, cannot be reached, or refuses what it is sent."""


class Tracker(Protocol):
    """A tracker that runs are sent to.

    Attributes:
        name: its name in messages.
        replaces: whether the tracker can replace a run that it holds. If it cannot, runs are sent
            only after they have finished.
    """

    name: str
    replaces: bool

    def sent(self, run: Tracked) -> str | None:
        """Return the digest that the run had when it was sent; None if it was not sent."""

    def send(self, run: Tracked) -> None:
        """Send a run; it replaces an earlier version of itself."""


@dataclass(frozen=True)
class Sent:
    """Numbers of runs that were new, replaced, already there, or held back until they finish."""

    new: int = 0
    replaced: int = 0
    unchanged: int = 0
    held_back: int = 0

    def __str__(self) -> str:
        parts = [f"{self.new} runs sent"]
        if self.replaced:
            parts.append(f"{self.replaced} sent again, for they have changed")
        if self.unchanged:
            parts.append(f"{self.unchanged} there already")
        if self.held_back:
            parts.append(f"{self.held_back} held back until they have finished")
        return ", ".join(parts)


def send(
    runs: Iterable[Tracked],
    tracker: Tracker,
    progress: Callable[[Tracked], None] = lambda run: None,
) -> Sent:
    """Send runs.

    Args:
        runs: the runs to send.
        tracker: where to send them.
        progress: called after each run that was sent.

    Raises:
        TrackerError: the tracker raised; runs sent before that stay in the tracker.
    """
    counts = {"new": 0, "replaced": 0, "unchanged": 0, "held_back": 0}
    for run in runs:
        try:
            outcome = _outcome(run, tracker)
            if outcome in ("new", "replaced"):
                tracker.send(run)
        except SvagError:
            raise
        except Exception as error:
            raise TrackerError(
                f"{tracker.name} did not take run {run.id} ({run.name}): {in_one_line(error)}; "
                "the same command goes on from here"
            ) from error
        counts[outcome] += 1
        if outcome in ("new", "replaced"):
            progress(run)
    return Sent(**counts)


def _outcome(run: Tracked, tracker: Tracker) -> str:
    """Return what is to be done with a run: the field of :class:`Sent` that counts it."""
    digest = tracker.sent(run)
    if digest == run.digest or (digest is not None and not tracker.replaces):
        return "unchanged"
    if not (tracker.replaces or run.finished):
        return "held_back"
    return "new" if digest is None else "replaced"
