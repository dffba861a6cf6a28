"""What can be said of a training's variance before its first step."""

import warnings
from collections.abc import Iterable
from math import isfinite
from typing import Any

from torch.utils.data import BatchSampler

from svag.errors import InvalidOption
from svag.optim.optimizer import Dissected


def check_last_step(
    loader: Any,
    *,
    micro_batches: bool,
    accumulated: int,
    steps: int,
    batches: float | None = None,
) -> None:
    """Look whether the last step of an epoch has a variance, where lengths are known.

    It warns of a last mini-batch of one example; a loader may put several into an item.

    Args:
        loader: of the training.
        micro_batches: whether the variance is over micro-batches, otherwise over examples.
        accumulated: number of micro-batches in a step.
        steps: at which training ends; not positive for no bound.
        batches: mini-batches of an epoch, if not all of the loader.

    Raises:
        InvalidOption: (a ValueError) the last step of an epoch has one micro-batch.
    """
    all_ = _length(loader)
    used = all_ if batches is None else batches
    if used is None or not isfinite(used) or 0 < steps < -(-used // accumulated):
        return
    if micro_batches and used % accumulated == 1:
        raise InvalidOption(
            f"an epoch has {used:g} mini-batches and a step accumulates {accumulated}, so the last "
            "step of an epoch has one, which has no variance; choose another batch size or number "
            "of accumulation steps, or leave examples out"
        )
    if not micro_batches and used == all_ and _last(loader) == 1:
        warnings.warn(
            "the last mini-batch of an epoch has 1 example, which has no variance: the step will "
            "raise TooFewSamples; set drop_last=True of the DataLoader (dataloader_drop_last=True "
            "in TrainingArguments)",
            UserWarning,
            stacklevel=3,
        )


def warn_of_unused(optimizers: Iterable[Any]) -> None:
    """Warn if an optimizer could use the within-batch variance and was not told to."""
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(inner, Dissected) or inner.anatomy.factor == "none":
            continue
        if inner.anatomy.variance != "within-batch" and not inner.anatomy.raw:
            name = type(inner).__name__
            warnings.warn(
                f"the within-batch variance is estimated, and {name} does not use it; make it by "
                f'svag.{name}(..., variance="within-batch"), or leave the estimation out',
                UserWarning,
                stacklevel=3,
            )


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # iterable data have no length
        return None


def _last(loader: Any) -> int | None:
    """Return the number of items in the last mini-batch; None if it is not known."""
    sampler = getattr(loader, "batch_sampler", None)
    if type(sampler) is not BatchSampler or (items := _length(sampler.sampler)) is None:
        return None
    rest = items % sampler.batch_size
    return sampler.batch_size if sampler.drop_last or rest == 0 else rest
