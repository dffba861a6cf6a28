"""Extreme eigenvalues and the spectral density of a symmetric matrix, from products with vectors.

Lanczos' method builds orthonormal vectors q_1, ..., q_m of the span of q_1, H q_1, ..., H^(m-1) q_1
and the small matrix T = Q^T H Q, whose eigenvalues (Ritz values) approach the extreme ones of H.
Every new vector is orthogonalised against all the earlier ones, twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svag.diagnosis.curvature.linear_operator import LinearOperator, length_of
from svag.errors import DissectionError, InvalidOption

Which: TypeAlias = Literal["largest", "smallest", "largest magnitude"]

MAX_BYTES = 2**30
"""Default limit of the memory for the basis."""


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """An extreme eigenvalue, certified by its residual.

    Some eigenvalue lies within ``residual`` of ``value``. That it is the extreme one is not
    certified, but likely: Ritz values lie inside the spectrum, so a largest one is too small, if
    anything.

    Attributes:
        which: ``"largest"`` or ``"smallest"`` with the sign, or ``"largest magnitude"``.
        value: lambda; None if it has not converged.
        residual: |H v - lambda v| of the unit vector v.
        converged: whether the residual is within the tolerance.
        products: products with H until it converged, or in all.
    """

    which: Which
    value: float | None
    residual: float
    converged: bool
    products: int


@dataclass(frozen=True, slots=True)
class Density:
    """A spectral density as weighted points: the share of eigenvalues near each node.

    Attributes:
        nodes: points on the axis of eigenvalues, ascending.
        weights: their weights, which sum to 1.
        products: products with H that it took.
    """

    nodes: list[float]
    weights: list[float]
    products: int


def extreme_eigenvalues(
    operator: LinearOperator,
    start: Tensor,
    *,
    which: Sequence[Which] = get_args(Which),
    steps: int = 50,
    tolerance: float = 0.01,
    max_bytes: int = MAX_BYTES,
) -> list[Eigenvalue]:
    """Return extreme eigenvalues by Lanczos' method, as soon as all of them have converged.

    A value lambda has converged if its residual is at most

        tolerance * max(|lambda|, tolerance * largest magnitude),

    so that a small eigenvalue is resolved, too. The residual includes the effects of rounding and
    of an asymmetric H: all entries of Q^T H Q enter it, also those that would be 0 without these.

    Args:
        operator: H.
        start: a vector of shape (d,), not 0 and partly random, so that it is orthogonal to no
            eigenvector.
        which: the eigenvalues to find.
        steps: most products with H, each of which keeps a vector of shape (d,).
        tolerance: relative to the eigenvalue.
        max_bytes: memory for these vectors; fewer steps are made if it would be exceeded.

    Raises:
        InvalidOption: there is no such eigenvalue, or ``steps`` is below 1.
        DissectionError: less than two vectors fit into ``max_bytes``, or H is not finite.

    Example:
        >>> matrix = torch.diag(torch.tensor([-1.0, 0.5, 3.0]))
        >>> operator = LinearOperator(lambda vectors: vectors @ matrix, 3)
        >>> found = extreme_eigenvalues(operator, torch.ones(3))
        >>> [(e.which, round(e.value, 4), e.converged) for e in found]
        [('largest', 3.0, True), ('smallest', -1.0, True), ('largest magnitude', 3.0, True)]
    """
    for name in which:
        if name not in get_args(Which):
            raise InvalidOption(f"which={name!r}; choose of {', '.join(get_args(Which))}")
    basis = _Basis(operator, start, _affordable(operator, steps, max_bytes))
    found: dict[Which, Eigenvalue] = {}
    while len(found) < len(set(which)) and basis.extend():
        values, _, residuals = basis.ritz()
        for name in set(which) - found.keys():
            candidate = _extreme(name, values, residuals, tolerance, basis.size)
            if candidate.converged or not basis.can_grow:
                found[name] = candidate
    return [found[name] for name in which]


def spectral_density(
    operator: LinearOperator,
    *,
    starts: int = 4,
    steps: int = 40,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Density:
    """Estimate the distribution of the eigenvalues by stochastic Lanczos quadrature.

    From each of several random unit vectors, Lanczos' method gives the nodes and weights of a Gauss
    quadrature; their mean is unbiased for polynomials up to degree 2 m - 1 in the eigenvalues:

        sum_k w_k f(x_k)  estimates  tr f(H) / d

    Args:
        operator: H.
        starts: number of random vectors.
        steps: m, the products with H for each.
        seed: draws the vectors.
        max_bytes: memory for m vectors; fewer steps are made if it would be exceeded.

    Raises:
        InvalidOption: ``starts`` or ``steps`` is below 1.
        DissectionError: less than two vectors fit into ``max_bytes``, or H is not finite.

    Example:
        >>> operator = LinearOperator(lambda vectors: 2 * vectors, 5)
        >>> density = spectral_density(operator, starts=1)
        >>> [round(node, 4) for node in density.nodes], density.weights
        ([2.0], [1.0])
    """
    if starts < 1:
        raise InvalidOption(f"starts={starts!r} random vectors; use at least 1")
    before = operator.products
    points: list[tuple[float, float]] = []
    for number in range(starts):
        start = operator.gaussian(1, seed + number)[0]
        basis = _Basis(operator, start, _affordable(operator, steps, max_bytes))
        while basis.extend():
            pass
        values, vectors, _ = basis.ritz()
        points += zip(values.tolist(), (vectors[0] ** 2 / starts).tolist(), strict=True)
    nodes, weights = zip(*sorted(points), strict=True)
    return Density(list(nodes), list(weights), operator.products - before)


class _Basis:
    """The orthonormal vectors q_1, ..., q_m and the coefficients of H q_j on them."""

    def __init__(self, operator: LinearOperator, start: Tensor, steps: int) -> None:
        self._operator, self._steps = operator, steps
        self._basis = torch.empty(steps, operator.size, dtype=operator.dtype, device=start.device)
        self._basis[0] = start / length_of(start)
        self._projected = np.zeros((steps + 1, steps))
        self.size = 0
        self.can_grow = True

    def extend(self) -> bool:
        """Make a step, and return whether one could be made."""
        if not self.can_grow:
            return False
        m = self.size
        image = self._operator(self._basis[m : m + 1])[0].clone()
        known = self._basis[: m + 1]
        for _ in range(2):
            coefficients = known @ image
            image -= coefficients @ known
            self._projected[: m + 1, m] += coefficients.double().cpu().numpy()
        length = length_of(image)
        if not np.isfinite(self._projected).all() or not np.isfinite(length):
            raise DissectionError("a product with the matrix is not finite; it has no eigenvalues")
        self._projected[m + 1, m] = length
        self.size += 1
        exhausted = length <= 10 * torch.finfo(image.dtype).eps * np.abs(self._projected).max()
        self.can_grow = self.size < self._steps and not exhausted
        if self.can_grow:
            self._basis[m + 1] = image / length
        return True

    def ritz(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues and eigenvectors of T, and their residuals as eigenvalues of H."""
        projected = self._projected[: self.size, : self.size]
        beyond = self._projected[self.size, : self.size]
        values, vectors = np.linalg.eigh((projected + projected.T) / 2)
        inside = projected @ vectors - values * vectors
        return values, vectors, np.hypot(np.linalg.norm(inside, axis=0), beyond @ vectors)


def _extreme(
    which: Which,
    values: NDArray[np.float64],
    residuals: NDArray[np.float64],
    tolerance: float,
    products: int,
) -> Eigenvalue:
    scale = float(np.abs(values).max())
    index = {
        "largest": len(values) - 1,
        "smallest": 0,
        "largest magnitude": int(np.abs(values).argmax()),
    }[which]
    value, residual = float(values[index]), float(residuals[index])
    converged = residual <= tolerance * max(abs(value), tolerance * scale)
    return Eigenvalue(which, value if converged else None, residual, converged, products)


def _affordable(operator: LinearOperator, steps: int, max_bytes: int) -> int:
    """Number of steps whose vectors fit into memory."""
    if steps < 1:
        raise InvalidOption(f"steps={steps!r} of Lanczos' method; use at least 1")
    fitting = max_bytes // operator.vector_bytes
    if fitting < min(2, operator.size):
        raise DissectionError(
            f"{max_bytes} bytes do not hold two vectors of {operator.size} entries; set "
            f"max_bytes to a multiple of {operator.vector_bytes}"
        )
    return min(steps, operator.size, fitting)
