"""Which passes are verified: the first of its kind, and every n-th after it."""

import weakref
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import nn

from svag.variance.per_example.structures import tensors_in

CHECK_EVERY = 100

_passes: "weakref.WeakKeyDictionary[nn.Module, Counter[Hashable]]" = weakref.WeakKeyDictionary()


def turn_of(model: nn.Module, kind: Hashable) -> int:
    """Count one more pass of a kind, over all contexts; return how many there were before."""
    counts = _passes.setdefault(model, Counter())
    counts[kind] += 1
    return counts[kind] - 1


def kind_of(
    model: nn.Module, module: nn.Module, examples: int, args: Sequence[Any], kwargs: dict[str, Any]
) -> Hashable:
    """Return what tells passes apart that may go another way through the model.

    The module called, its mode, which parameters are trained, precision, and the inputs: how many
    examples, and of each tensor the dtype and which sizes are multiples of the number of examples.
    Other sizes do not matter: sequences of every length are of one kind.
    """
    trained = sum(p.requires_grad for p in model.parameters())
    modes = sum(m.training for m in model.modules())
    shapes = tuple(
        (key, t.dtype, t.device.type, tuple(n % max(examples, 1) == 0 for n in t.shape))
        for key, v in (*enumerate(args), *sorted(kwargs.items()))
        for t in tensors_in((v,))
    )
    precision = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return type(module), id(module), examples, modes, trained, precision, shapes
