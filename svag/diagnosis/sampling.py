"""Mini-batches to measure on: a stream for gradients, and held ones for losses."""

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError, InvalidOption
from svag.problems.nested import Nested

_MOST_SKIPPED = 1000


class Sampling:
    """The user's batches, without end, as long as they can be started again.

    A batch of another size than the first ones, such as the last of an epoch, is left out.

    Args:
        objective: the model and its loss.
        batches: an iterable of batches. A ``DataLoader`` or list is started again when it ends.
        reorder: whether to shuffle a list each time it is started again, as a ``DataLoader`` with
            ``shuffle`` does; never where state is carried. Without it, the orders of a race would
            all be one order with different starting points.

    Attributes:
        batch_size: examples in a batch; None if batches have no tensors or sizes differ.
        notes: what was left out, in a sentence each.

    Raises:
        DissectionError: there is no batch.
        InvalidOption: the batches cannot be iterated over, or are single examples.
    """

    def __init__(self, objective: Objective, batches: Iterable[Any], reorder: bool = False) -> None:
        self._objective = objective
        self._reorder = reorder and not objective.carries
        _refuse_unless_batches(batches)
        self._iterator = iter(batches)
        self._batches = None if self._iterator is batches else batches
        self._carried: Nested = None
        self._seeds = itertools.count(1)
        self._orders = random.Random(0)
        self._taken = 0
        self._last: dict[int, tuple[torch.Tensor, int]] = {}
        self.notes: list[str] = []
        first = self._raw()
        self._waiting = [first]
        more = [self._raw() for _ in range(2)] if self._batches is not None else []
        self._waiting += more
        sizes = Counter(Batch(content, 0).size for content in self._waiting)
        self.batch_size, count = sizes.most_common(1)[0]
        if count < len(self._waiting) and len(sizes) == len(self._waiting):
            self.batch_size = None

    def held(self, count: int) -> list[Batch]:
        """Return batches to evaluate losses on; where state is carried, each with its own."""
        batches = []
        for batch in itertools.islice(self.stream(), count):
            batches.append(batch)
            if self._objective.carries:
                self._objective.loss(batch)
                self.note_state()
        return batches

    def stream(self) -> Iterator[Batch]:
        """Yield batches to take gradients on.

        Where state is carried, call :meth:`note_state` after the forward pass of each.

        Raises:
            DissectionError: the batches have ended and cannot be started again.
        """
        while True:
            yield self._next()

    def note_state(self) -> None:
        """Keep the state that the model has after a batch of the stream, for the next one."""
        if self._objective.carries:
            self._carried = self._objective.state_after()

    def _next(self) -> Batch:
        for _ in range(_MOST_SKIPPED):
            if self._objective.carries:  # a new epoch sets it to None
                setattr(self._objective.model, "carried_state", self._carried)  # noqa: B010
            content = self._waiting.pop(0) if self._waiting else self._raw()
            if self._objective.carries:
                self._carried = self._objective.model.carried_state
            batch = Batch(content, next(self._seeds), self._carried)
            if self.batch_size is None or batch.size == self.batch_size:
                return batch
            note = f"batches of other sizes than {self.batch_size} were left out"
            if note not in self.notes:
                self.notes.append(note)
        raise DissectionError(
            f"no batch of {self.batch_size} examples among {_MOST_SKIPPED}; make batches of one "
            "size, for instance DataLoader(..., drop_last=True)"
        )

    def _reordered(self, batches: Iterable[Any]) -> Iterable[Any]:
        if not self._reorder or not isinstance(batches, list | tuple):
            return batches
        return self._orders.sample(batches, len(batches))

    def _raw(self) -> Any:
        for again in (False, True):
            if again:
                if self._batches is None:
                    break
                self._iterator = iter(self._reordered(self._batches))
            for content in self._iterator:
                self._taken += 1
                self._refuse_refilled(content)
                return content
        if not self._taken:
            raise DissectionError(
                "there is no batch: the iterable is empty. Give a DataLoader, a list of batches, "
                "or a generator that has some"
            )
        raise DissectionError(
            f"the batches ended after {self._taken}, and a generator cannot be started again; "
            "give something that can, such as a DataLoader, or a generator without end"
        )

    def _refuse_refilled(self, content: Any) -> None:
        """Refuse a loader that writes each batch into the tensors of the one before."""
        for tensor, version in self._last.values():
            if tensor._version != version:
                raise DissectionError(
                    "the loader writes each batch into the tensors of the one before; batches are "
                    "kept here, so yield new tensors, such as tensor.clone()"
                )
        found = [t for t in Batch(content, 0).tensors() if not t.is_inference()]
        self._last = {id(t): (t, t._version) for t in found}


def _refuse_unless_batches(batches: object) -> None:
    """Raise InvalidOption for what cannot be iterated over, and for a data set of examples."""
    iterates = hasattr(type(batches), "__iter__")
    if isinstance(batches, Dataset) and not iterates:
        raise InvalidOption(
            f"batches is a {type(batches).__name__}, which has examples and not batches; give "
            "DataLoader(dataset, batch_size=..., shuffle=True), or DataLoader(dataset, "
            "batch_size=None) if its items are batches"
        )
    if not iterates and not hasattr(type(batches), "__getitem__"):
        raise InvalidOption(
            f"batches={batches!r:.60} cannot be iterated over; give a DataLoader or a list of "
            "batches"
        )


@contextlib.contextmanager
def generators_kept(batches: Any) -> Iterator[None]:
    """Restore the generators of a ``DataLoader`` and of its samplers at the end.

    Persistent workers, which may be in the middle of the user's epoch, are left alone.
    """
    sampler = getattr(batches, "batch_sampler", None)
    owners = (
        batches,
        getattr(batches, "sampler", None),
        sampler,
        getattr(sampler, "sampler", None),
    )
    found = [getattr(owner, "generator", None) for owner in owners]
    kept = [(one, one.get_state()) for one in found if isinstance(one, torch.Generator)]
    loader = batches if isinstance(batches, DataLoader) else None
    workers = getattr(loader, "_iterator", None)
    if loader is not None:
        loader._iterator = None
    try:
        yield
    finally:
        if loader is not None:
            loader._iterator = workers
        for generator, state in kept:
            generator.set_state(state)
