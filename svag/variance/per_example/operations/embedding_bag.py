"""The rule for EmbeddingBag: an embedding, and a reduction over each bag."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from svag.errors import PerExampleError
from svag.variance.per_example.recording.functions import Call
from svag.variance.per_example.recording.interception import Interception, Rule

_SIGNATURE = inspect.signature(functional.embedding_bag)


def _bags(mode: Interception, _: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    indices, padding = given["input"], given["padding_idx"]
    if indices.dim() != 2:
        raise PerExampleError(
            "embedding_bag was given one list of indices with offsets, in which svag cannot tell "
            "the examples apart; give (batch, bag) indices, shorter bags filled up with a "
            "padding_idx, or use svag.micro_batch_variance"
        )
    own = given["per_sample_weights"]
    with torch.no_grad():  # only so that torch checks the arguments
        first = None if own is None else own[:1].detach()
        one = {**given, "input": indices[:1], "weight": given["weight"].detach()}
        functional.embedding_bag(**{**one, "per_sample_weights": first})
    names = ("max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    options = {name: given[name] for name in names}
    with mode:
        rows = functional.embedding(indices, given["weight"], padding, **options)
        counts = torch.ones_like(indices, dtype=torch.bool)
        if padding is not None:
            counts = indices != padding % given["weight"].shape[0]
        return _reduced(rows, counts.unsqueeze(-1), given["mode"], own)


def _reduced(rows: Tensor, counts: Tensor, how: str, weights: Tensor | None) -> Tensor:
    """Reduce ``(B, N, width)`` over the positions that count; an empty bag gives 0."""
    if how == "max":
        largest = rows.masked_fill(~counts, -torch.inf).max(1).values
        return largest.masked_fill(~counts.any(1), 0)
    if weights is not None:
        rows = rows * weights.unsqueeze(-1)
    total = rows.masked_fill(~counts, 0).sum(1)
    return total if how == "sum" else total / counts.sum(1).clamp(min=1)


RULES: dict[Call, Rule] = {functional.embedding_bag: _bags}
