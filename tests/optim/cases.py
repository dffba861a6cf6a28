"""The one table of cases that drives every cross-cutting optimizer test.

A case states its anatomy by hand, as the supplement's table does, so that a wrong row of
``svag.METHODS`` or a wrong class is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference import Step, run

import svag
from svag import Anatomy
from svag.variance.grad_var import attach

BETAS = (0.0, 0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Case:
    """A method or a recombination; ``kind`` None means it is built through ``Dissected``."""

    name: str
    anatomy: Anatomy
    kind: type[torch.optim.Optimizer] | None = None
    amsgrad: bool = False

    def __str__(self) -> str:
        return self.name + ("/batch" if self.within_batch else "")

    @property
    def raw(self) -> bool:
        return self.anatomy.relative_variance == "raw"

    @property
    def within_batch(self) -> bool:
        return self.anatomy.variance == "within-batch"

    @property
    def averages(self) -> bool:
        """Whether any moving average is kept, i.e. whether there is a beta to choose."""
        adapted = self.anatomy.factor != "none" and self.anatomy.variance == "moving-average"
        return self.anatomy.direction == "momentum" or adapted

    @property
    def lr(self) -> float:
        return 1e-3 if self.anatomy.sign else 0.1

    def decay(self, beta: float, beta2: float = 0.999) -> dict[str, Any]:
        """The options, for optimizer and reference alike, that say how gradients are averaged."""
        if self.raw:
            return {"betas": (beta, beta2), "amsgrad": self.amsgrad}
        return {"beta": beta} if self.averages else {}

    def build(self, params: Any, **options: Any) -> Any:
        if self.amsgrad:
            options = {"amsgrad": True, **options}
        if self.kind is None:
            return svag.Dissected(params, anatomy=self.anatomy, **options)
        if self.within_batch:
            options["variance"] = "within-batch"
        return self.kind(params, **options)

    def reference(self, gradients: Any, theta: Any, **options: Any) -> list[Step | None]:
        return list(run(self.anatomy, gradients, theta, **options))


METHODS = (
    Case("sgd", Anatomy("gradient"), svag.SGD),
    Case("m-sgd", Anatomy("momentum"), svag.MSGD),
    Case("ssd", Anatomy("gradient", sign=True), svag.SSD),
    Case("m-ssd", Anatomy("momentum", sign=True), svag.MSSD),
    Case("svag", Anatomy("gradient", factor="svag"), svag.SVAG),
    Case("m-svag", Anatomy("momentum", factor="svag"), svag.MSVAG),
    Case("adam", Anatomy("momentum", True, "sqrt", "raw"), svag.Adam),
    Case("adam-star", Anatomy("momentum", True, "sqrt"), svag.AdamStar),
)

RECOMBINATIONS = (
    # the exact Gaussian factor, and variance-adapted sign descent
    Case("m-ssd-erf", Anatomy("momentum", True, "erf")),
    Case("ssd-sqrt", Anatomy("gradient", True, "sqrt")),
    Case("ssd-erf", Anatomy("gradient", True, "erf")),
    # factors that Lemma 1 makes for the other kind of direction
    Case("sgd-sqrt", Anatomy("gradient", False, "sqrt")),
    Case("m-sgd-sqrt", Anatomy("momentum", False, "sqrt")),
    Case("sgd-erf", Anatomy("gradient", False, "erf")),
    Case("m-sgd-erf", Anatomy("momentum", False, "erf")),
    Case("ssd-svag", Anatomy("gradient", True, "svag")),
    Case("m-ssd-svag", Anatomy("momentum", True, "svag")),
    # the raw relative variance, Adam's
    Case("adam-amsgrad", Anatomy("momentum", True, "sqrt", "raw"), svag.Adam, amsgrad=True),
    Case("raw-m-ssd-svag", Anatomy("momentum", True, "svag", "raw")),
    Case("raw-m-ssd-erf", Anatomy("momentum", True, "erf", "raw")),
    Case("raw-ssd-sqrt", Anatomy("gradient", True, "sqrt", "raw")),
    Case("raw-ssd-svag", Anatomy("gradient", True, "svag", "raw")),
    Case("raw-ssd-erf", Anatomy("gradient", True, "erf", "raw")),
    Case("raw-m-sgd-svag", Anatomy("momentum", False, "svag", "raw")),
    Case("raw-m-sgd-sqrt", Anatomy("momentum", False, "sqrt", "raw")),
    Case("raw-m-sgd-erf", Anatomy("momentum", False, "erf", "raw")),
    Case("raw-sgd-svag", Anatomy("gradient", False, "svag", "raw")),
    Case("raw-sgd-sqrt", Anatomy("gradient", False, "sqrt", "raw")),
    Case("raw-sgd-erf", Anatomy("gradient", False, "erf", "raw")),
)

CASES = METHODS + RECOMBINATIONS
CORRECTED = tuple(case for case in CASES if not case.raw)


ADAPTED = tuple(case for case in CORRECTED if case.anatomy.factor != "none")

WITHIN_BATCH = tuple(
    replace(case, anatomy=replace(case.anatomy, variance="within-batch")) for case in ADAPTED
)
"""The adapted corrected cases again, with the variance from inside the mini-batch."""

ENGINES: dict[str, dict[str, Any]] = {
    **({"fused": {"fused": True}} if find_spec("numba") else {}),
    "eager": {"foreach": False},
    "lists": {"foreach": True},
}
"""The ways to step on a CPU, by the flags that choose them; what None chooses is one of them."""

one_by_one = pytest.mark.parametrize(
    "flags", [flags for flags in ({}, *ENGINES.values()) if not flags.get("foreach")], ids=str
)
"""Without the lists, with which torch itself does not serve views, overlaps or a tensor as lr."""


def by_name(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parametrize a test over cases."""
    return pytest.mark.parametrize("case", cases, ids=str)


def named(*names: str) -> list[Case]:
    """Cases of the table, in the order of the names; those of a mini-batch after a slash."""
    table = {str(case): case for case in CASES + WITHIN_BATCH}
    return [table[name] for name in names]


EVERY_KIND = named("sgd", "m-ssd", "svag", "m-svag", "adam", "m-ssd-erf", "raw-m-sgd-svag")
"""No average, one and two; a factor of each kind, corrected and raw. For what no row can change."""

FEW = [*EVERY_KIND, *named("m-svag/batch", "ssd-erf/batch")]
"""And of a mini-batch's variance, with an average and without."""

ROWS = (*METHODS, *named("m-svag/batch", "ssd-erf/batch"))
"""The methods, and a mini-batch's variance likewise."""

every_method = by_name(METHODS)
every_row = by_name(ROWS)


def descend(
    optimizer: torch.optim.Optimizer,
    params: Sequence[torch.Tensor],
    gradients: Sequence[Sequence[torch.Tensor | None]],
    variances: Sequence[Sequence[torch.Tensor]] | None = None,
) -> list[list[NDArray[np.float64]]]:
    """Step through ``gradients[t][i]``; the parameters after each step, flat and in float64."""
    history = []
    for t, step in enumerate(gradients):
        for i, (param, gradient) in enumerate(zip(params, step, strict=True)):
            param.grad = None if gradient is None else gradient.clone()
            if variances is not None and gradient is not None:
                attach(param, variances[t][i].clone())
        optimizer.step()
        history.append([flat(param) for param in params])
    return history


def give(param: Any, gradient: Any, variance: Any = None) -> None:
    """A gradient of the parameter's dtype, and its variance as a recorder leaves it.

    Both may be tensors, arrays, lists, or one number for all elements.
    """
    gradient = torch.as_tensor(gradient).detach()
    param.grad = gradient.expand(param.shape).to(param.dtype, copy=True)
    if variance is not None:
        attach(param, torch.as_tensor(variance).detach().expand(param.shape).clone())


def flat(tensor: torch.Tensor) -> NDArray[np.float64]:
    """A float64 copy of the entries in logical order; complex entries as pairs of reals."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.to(torch.float64).reshape(-1).numpy().copy()
