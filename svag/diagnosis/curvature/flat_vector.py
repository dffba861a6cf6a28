"""Vectors over all parameters: one tensor for each parameter, or one flat tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from svag.diagnosis.objective import Objective
from svag.errors import DissectionError

Parts = list[Tensor | None]
"""A vector in parts: one tensor for each parameter, or None where all of it is 0."""


class FlatVectors:
    """Turns vectors of one tensor for each parameter into flat ones of shape (d,), and back.

    Flat vectors are in float32, or in float64 where a parameter is.

    Args:
        objective: whose parameters they are over.

    Attributes:
        sizes: number of entries of each parameter, by its name, in order.
        dtype: of flat vectors.
        device: of flat vectors.
    """

    def __init__(self, objective: Objective) -> None:
        self._params = objective.params
        self.sizes = {n: p.numel() for n, p in zip(objective.names, objective.params, strict=True)}
        self.dtype, self.device = torch.float32, objective.device
        for param in objective.params:
            self.dtype = torch.promote_types(self.dtype, param.dtype)

    def zeros(self) -> Tensor:
        """Return the zero vector, of shape (d,)."""
        return torch.zeros(sum(self.sizes.values()), dtype=self.dtype, device=self.device)

    def flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Return a vector in parts as a flat one."""
        total = self.zeros()
        self.add(total, parts)
        return total

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Return a flat vector in parts, in the parameters' dtypes and on their devices."""
        return [
            piece.view(param.shape).to(param.device, param.dtype)
            for piece, param in zip(self.pieces(flat), self._params, strict=True)
        ]

    def pieces(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return the views of flat vectors (..., d) that belong to each parameter."""
        return torch.split(flat, list(self.sizes.values()), dim=-1)

    @torch.no_grad()
    def add(self, total: Tensor, parts: Sequence[Tensor | None]) -> None:
        """Add a vector in parts to a flat one, in place."""
        for piece, part in zip(self.pieces(total), parts, strict=True):
            if part is not None:
                piece += part.to_dense().reshape(-1).to(piece.device, piece.dtype)

    def refuse_not_finite(self, vector: Tensor, what: str) -> None:
        """Raise DissectionError if a flat vector has entries that are not finite."""
        if torch.isfinite(vector).all():
            return
        names = zip(self.sizes, self.pieces(vector), strict=True)
        name = next(name for name, piece in names if not torch.isfinite(piece).all())
        raise DissectionError(
            f"{what} is not finite at {name!r}; a square root, norm or power may have no "
            "derivative at 0. Add a small constant inside it, or dissect elsewhere"
        )
