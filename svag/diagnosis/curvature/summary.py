"""Curvature within a time limit: Eq. (12), extreme eigenvalues, p_diag and the spectrum.

All of it is of the mean loss of a few held batches, not of the expected loss. Eq. (12) needs the
curvature along the directions of the methods, of which a few draws are kept:

    I = s^2/(2 c),  alpha_* = s/c,    s = -E[grad . z],  c = E[z^T H z]

with the Hessian H, or with the Gauss-Newton matrix G in its place, which has no negative curvature.
Eq. (12) and the line search differ where the loss along the step is not a parabola.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor

from svag.diagnosis.curvature.lanczos import extreme_eigenvalues, spectral_density
from svag.diagnosis.curvature.p_diag_sampling import sampled_p_diag
from svag.diagnosis.curvature.products import Curvature, Forms, Matrix
from svag.diagnosis.objective import Batch, Objective

KEPT_DRAWS: Final = 8
"""Draws of each direction that are kept for Eq. (12)."""

KEPT_BYTES: Final = 2**29
"""Most memory for them."""

_MATRICES: Final[Mapping[str, Matrix]] = {"hessian": "hessian", "ggn": "gauss-newton"}
_MOST_BATCHES = 8
_PRODUCTS = 500
"""Products with one batch; if there is time for more, more batches are used."""

_LANCZOS, _LEAST_LANCZOS, _STARTS = 30, 8, 3
_LEAST_ROWS, _MOST_ROWS = 8, 200
_SHARE = 0.15
"""Share of the products for each: the directions, and of each matrix eigenvalues and spectrum."""


def curvature_rows(
    objective: Objective,
    held: Sequence[Batch],
    directions: Mapping[str, Sequence[Sequence[Tensor]]],
    seconds: float,
) -> list[dict[str, Any]]:
    """Return the curvature as records.

    Args:
        objective: the loss, being dissected.
        held: batches that may be used; how many are, and how many products are made, depends on
            the time.
        directions: some draws of each method's direction.
        seconds: time.

    Raises:
        DissectionError: torch cannot differentiate the loss twice.
    """
    started = time.perf_counter()
    affordable = _affordable(objective, held[0], seconds)
    batches = held[: max(1, min(affordable // _PRODUCTS, _MOST_BATCHES))]
    count = affordable // len(batches)
    with Curvature(objective, batches) as curvature:
        matrices = {name: of for name, of in _MATRICES.items() if name != "ggn"}
        if curvature.has_gauss_newton:
            matrices = dict(_MATRICES)
        draws = max(1, int(_SHARE * count / (2 * max(1, len(directions)))))
        steps = min(max(_LEAST_LANCZOS, int(_SHARE * count)), _LANCZOS)
        rows = [
            along(key, curvature.forms_along(drawn[:draws])) for key, drawn in directions.items()
        ]
        for name, of in matrices.items():
            rows += _eigenvalues(curvature, name, of, steps)
        spent = time.perf_counter() - started
        for number, (name, of) in enumerate(matrices.items()):
            left = (seconds - spent) * (number + 1) / len(matrices) + spent
            rows += _sampled(curvature, name, of, started + left, count)
    return [{**row, "batches": len(batches)} for row in rows]


def along(key: str, forms: Sequence[Forms]) -> dict[str, Any]:
    """Return Eq. (12) for one method; None where the mean curvature is not positive."""
    row: dict[str, Any] = {"what": "along", "method": key, "draws": len(forms)}
    slope = -float(np.mean([one.slope for one in forms]))
    for name in ("hessian", "gauss_newton"):
        bent = [getattr(one, name) for one in forms]
        mean = 0.0 if None in bent else float(np.mean(bent))
        short = "ggn" if name == "gauss_newton" else name
        usable = mean > 0 and slope > 0
        row[f"improvement_{short}"] = slope**2 / (2 * mean) if usable else None
        row[f"lr_{short}"] = slope / mean if usable else None
    return row


def _affordable(objective: Objective, batch: Batch, seconds: float) -> int:
    """Return the number of products with the Hessian of one batch that there is time for."""
    with Curvature(objective, [batch]) as curvature:
        vector = [param.detach() for param in objective.params]
        started = time.perf_counter()
        curvature.hessian_product(vector)
        one = time.perf_counter() - started
    return int(seconds / max(one, 1e-9))


def _eigenvalues(curvature: Curvature, name: str, of: Matrix, steps: int) -> list[dict[str, Any]]:
    found = extreme_eigenvalues(curvature.operator(of), curvature.start(), steps=steps)
    return [
        {
            "what": "eigenvalue",
            "matrix": name,
            "which": "largest in magnitude" if "magnitude" in one.which else one.which,
            "value": one.value,
            "residual": one.residual,
            "converged": one.converged,
            "products": one.products,
        }
        for one in found
    ]


def _sampled(
    curvature: Curvature, name: str, of: Matrix, until: float, products: int
) -> list[dict[str, Any]]:
    """Return p_diag from as many rows as there is time for, and the spectrum."""
    operator = curvature.operator(of)
    started = time.perf_counter()
    starts = min(max(1, int(_SHARE * products / _LANCZOS)), _STARTS)
    steps = min(max(_LEAST_LANCZOS, int(_SHARE * products / starts)), _LANCZOS)
    density = spectral_density(operator, starts=starts, steps=steps)
    one = (time.perf_counter() - started) / density.products
    rows: list[dict[str, Any]] = [
        {
            "what": "density",
            "matrix": name,
            "nodes": list(density.nodes),
            "weights": list(density.weights),
        }
    ]
    affordable = int((until - time.perf_counter()) / max(one, 1e-9))
    count = min(max(affordable, _LEAST_ROWS), _MOST_ROWS, max(2, operator.size))
    sampled = sampled_p_diag(operator, curvature.sizes, count)
    return rows + [
        {
            "what": "p_diag",
            "matrix": name,
            "block": part.tensor or "all",
            "value": part.value,
            "interval": part.interval,
            "rows": part.rows,
            "of": part.size,
        }
        for part in sampled
    ]


class KeptDirections:
    """Keeps some draws of each method's direction, as many as fit."""

    def __init__(self, objective: Objective, methods: int) -> None:
        each = max(1, methods) * sum(p.numel() * p.element_size() for p in objective.params)
        self._most = min(KEPT_DRAWS, KEPT_BYTES // each)
        self.drawn: dict[str, list[list[Tensor]]] = {}

    def visit(self, key: str, direction: list[Tensor], batches: Sequence[Batch]) -> None:
        """Keep a direction, unless enough are kept.

        Args:
            key: the method.
            direction: one tensor for each parameter.
            batches: not used.
        """
        kept = self.drawn.setdefault(key, [])
        if len(kept) < self._most:
            kept.append([part.clone() for part in direction])

    @property
    def usable(self) -> dict[str, list[list[Tensor]]]:
        """Draws by method; methods without any are left out."""
        return {key: drawn for key, drawn in self.drawn.items() if drawn}
