"""What an engine is handed: the rule with its switches set, and the tensors it applies to."""

from dataclasses import dataclass, field
from typing import NamedTuple

from svag.anatomy import Anatomy
from svag.optim.arithmetic import Operand, Scalar


class Rule(NamedTuple):
    """One parameter group's update, every option decided.

    Attributes:
        anatomy: direction and factor.
        lr: step size, float or 0-dimensional tensor.
        beta: decay of the first moment, and of the second unless the anatomy is raw.
        beta2: decay of the second moment.
        eps: added to sqrt(v) in raw rows.
        weight_decay: coefficient lambda.
        decoupled: shrink the parameter by lr * lambda instead of adding lambda * parameter to
            the gradient.
        maximize: follow the negated gradient.
        dither_param: round bfloat16 parameters stochastically.
        dither_state: round bfloat16 averages stochastically.
        seed: of the noise that they are rounded with.
    """

    anatomy: Anatomy
    lr: Scalar
    beta: Scalar
    beta2: Scalar
    eps: float
    weight_decay: Scalar
    decoupled: bool
    maximize: bool
    dither_param: bool = False
    dither_state: bool = False
    seed: int = 0


class Row(NamedTuple):
    """One parameter with its gradient, their variance and its buffers; None where unneeded.

    Inside an engine a row may also hold lists of tensors (:mod:`svag.optim.arithmetic`).
    """

    param: Operand
    grad: Operand
    exp_avg: Operand | None = None
    exp_avg_sq: Operand | None = None
    max_exp_avg_sq: Operand | None = None
    exp_avg_var: Operand | None = None
    grad_var: Operand | None = None


@dataclass(slots=True)
class Bucket:
    """Rows of one device, dtype and step.

    ``step`` is the number of the step being taken, from 1: a float, or one tensor if traced.
    ``places`` are the parameters' places in the optimizer, which tell their noise apart.
    """

    step: Scalar
    rows: list[Row] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
