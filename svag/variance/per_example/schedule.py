"""Counts passes by kind: the first of a kind and every n-th after it are verified."""

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
    """Count a pass of a kind, over all contexts; return the number of passes before it."""
    counts = _passes.setdefault(model, Counter())
    counts[kind] += 1
    return counts[kind] - 1


def forget_passes(model: nn.Module) -> None:
    """Verify the next pass of every kind, since one was refused.

    Args:
        model: the model.
    """
    _passes.pop(model, None)


def kind_of(
    model: nn.Module, module: nn.Module, examples: int, args: Sequence[Any], kwargs: dict[str, Any]
) -> Hashable:
    """Return the kind of a pass: a key that differs if the model may run other operations.

    It consists of the module, its mode, the trainable parameters, the precision, the number of
    examples, and for each input tensor its dtype and which sizes are multiples of the number of
    examples. Other sizes do not count, so that sequences of all lengths have the same kind.

    Args:
        model: the model.
        module: the module that is called: the model or a part of it.
        examples: the number of examples.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
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
