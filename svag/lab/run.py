"""What identifies a run: its settings, and a hash of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from svag.lab.record_format import Better, Select
from svag.quantity import Quantity

STUDY = (
    *("problem", "version", "data", "metric", "steps", "batch_size", "weight_decay"),
    *("eval_every", "eval_examples", "select", "device", "autocast", "channels_last"),
)
"""Fields of a run that are the same in all runs of a study."""

_DESCRIBED = {"identity": False}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings that identify a run; versions of libraries are recorded but not part of it.

    Attributes:
        problem: its name.
        version: its version, for a user's own problem a hash of the code that it reaches.
        data: fingerprint of the data.
        method: key of the method, with its options.
        anatomy: the method's update in symbols; empty for an optimizer from outside svag.
        optimizer: version of the code of an optimizer from outside svag; empty for others.
        beta: decay of its moving averages; None if it has none.
        beta2: decay of its second moment; None if it has no beta2.
        lr: step size.
        seed: seed of the initialisation and of the order of examples.
        steps: number of steps, on which schedules depend too.
        batch_size: examples in a batch.
        weight_decay: lambda of the L2 term ``lambda/2 |w|^2`` on weights.
        eval_every: steps between two evaluations.
        eval_examples: examples of each split to evaluate during the run; None for all. At the end
            all are evaluated.
        select: data on which step sizes are chosen: ``test``, or ``validation``, a tenth of the
            training data.
        device: where it runs, ``cpu`` or ``cuda``.
        autocast: dtype of autocast, such as ``bfloat16``; None if it is off.
        channels_last: whether 4-dimensional parameters have the channels-last memory format.
        metric: name of the metric by which step sizes are chosen and methods are compared.
        metric_better: ``larger`` or ``smaller``.
        metric_unit: printed after values; ``%`` for fractions, which are printed times 100.
        metric_low: least possible value of the metric; None if unbounded.
        metric_high: greatest possible value of the metric; None if unbounded.
    """

    problem: str
    version: str
    data: str
    method: str
    anatomy: str
    optimizer: str = ""
    beta: float | None
    beta2: float | None
    lr: float
    seed: int
    steps: int
    batch_size: int
    weight_decay: float = 0.0
    eval_every: int
    eval_examples: int | None = None
    select: Select = "test"
    device: str = "cpu"
    autocast: str | None = None
    channels_last: bool = False
    metric: str = "accuracy"
    metric_better: Better = "larger"
    metric_unit: str = field(default="%", metadata=_DESCRIBED)
    metric_low: float | None = field(default=0.0, metadata=_DESCRIBED)
    metric_high: float | None = field(default=1.0, metadata=_DESCRIBED)

    @cached_property
    def id(self) -> str:
        """Id of the run: a hash of its fields, except those that describe the metric."""
        return run_id(vars(self))

    @property
    def quantity(self) -> Quantity:
        """The metric as a :class:`Quantity`."""
        return Quantity(
            self.metric,
            self.metric_better == "larger",
            self.metric_unit,
            self.metric_low,
            self.metric_high,
        )


_IDENTIFYING = tuple(field.name for field in fields(Run) if not field.metadata)
_CANONICAL = json.JSONEncoder(sort_keys=True)


def run_id(settings: Mapping[str, Any]) -> str:
    """Return the id of the run with these settings, by the name of the field of :class:`Run`.

    0, 0.0 and -0.0 are one number.
    """
    named = {name: settings[name] for name in _IDENTIFYING}
    for name in ("lr", "weight_decay", "beta", "beta2"):
        named[name] = None if named[name] is None else float(named[name]) + 0.0
    return hashlib.sha256(_CANONICAL.encode(named).encode()).hexdigest()[:16]
