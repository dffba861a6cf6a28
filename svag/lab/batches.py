"""The batches of a run: an endless iterator with a new order of examples for every epoch."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from svag.errors import InvalidOption
from svag.problems import Split
from svag.problems.nested import Nested, mapped


class Batches:
    """Batches ``(inputs, targets)`` of a split; a smaller last batch of an epoch is left out.

    Args:
        split: the examples.
        size: examples in a batch.
        seed: seed of the order of examples, and of the augmentation.
        augment: changes the inputs of a batch, given a generator on the device of the split.
        prepare: converts inputs to the model's inputs, after ``augment``.
        in_order: whether batches are consecutive rows, instead of a new order every epoch.
        at_epoch: called at the start of every epoch.

    Raises:
        InvalidOption: the split has fewer examples than a batch.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        *,
        seed: int,
        augment: Callable[[Nested, torch.Generator], Nested] | None = None,
        prepare: Callable[[Nested], Nested] | None = None,
        in_order: bool = False,
        at_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        if size > len(split):
            raise InvalidOption(
                f"a batch of {size} is more than the {len(split)} examples to train on; choose a "
                "smaller batch size"
            )
        self._split, self._size = split, size
        self._augment, self._prepare = augment, prepare
        self._in_order, self._at_epoch = in_order, at_epoch
        self._generator = torch.Generator().manual_seed(seed)
        self._augmenting = torch.Generator(split.device).manual_seed(seed)
        self._waiting: list[Tensor] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, Any]:
        """Return the next batch."""
        return self.take(self.choose())

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators on the device that a batch draws random numbers from."""
        return [self._augmenting]

    def choose(self) -> Tensor:
        """Return the indices of the next batch."""
        if not self._waiting:
            self._begin_epoch()
        return self._waiting.pop()

    def take(self, chosen: Tensor) -> tuple[Any, Any]:
        """Return the batch of these examples, augmented and prepared."""
        inputs, targets = self._split.inputs, self._split.targets
        inputs = inputs[chosen] if isinstance(inputs, Tensor) else _taken(inputs, chosen)
        targets = targets[chosen] if isinstance(targets, Tensor) else _taken(targets, chosen)
        if self._augment is not None:
            inputs = self._augment(inputs, self._augmenting)
        if self._prepare is not None:
            inputs = self._prepare(inputs)
        return inputs, targets

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch and the states of the generators."""
        return {
            "order": self._generator.get_state(),
            "augmentation": self._augmenting.get_state(),
            "waiting": torch.stack(self._waiting) if self._waiting else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position and the states of the generators."""
        self._generator.set_state(state["order"])
        self._augmenting.set_state(state["augmentation"])
        waiting = state["waiting"]
        if waiting is not None:
            whole = waiting.dtype == torch.long and waiting.shape[1:] == (self._size,)
            if not (whole and waiting.min() >= 0 and waiting.max() < len(self._split)):
                raise ValueError("the batches that are left of the epoch are not of this split")
        self._waiting = [] if waiting is None else list(waiting.unbind())

    def _begin_epoch(self) -> None:
        count = len(self._split)
        if self._in_order:
            order = torch.arange(count)
        else:
            order = torch.randperm(count, generator=self._generator)
        whole = order[: count // self._size * self._size]
        self._waiting = list(whole.split(self._size))[::-1]
        self._at_epoch()


def _taken(value: Nested, chosen: Tensor) -> Nested:
    return mapped(lambda tensor: tensor[chosen], value)
