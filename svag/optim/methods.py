"""The named methods: rows of :data:`svag.METHODS` with the signatures people type.

In every docstring g is the stochastic gradient; m and v are moving averages of g and g^2, debiased
(Eqs. 4 and 5); rho is Eq. (21); and, at step t,

    s = (v - m^2) / (1 - rho(beta, t))                                                   (22)

estimates the variance of g. A mean gradient that moves by b in every step adds
b^2 (1 + beta)/(2 (1 - beta)^2) to it, 95 b^2 at beta = 0.9 (:mod:`svag.theory.drift`);
``variance="within-batch"`` sees noise alone. Options common to all:
:class:`svag.optim.options.Options`; state, limits and errors: :class:`svag.Dissected`.
"""

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from svag.anatomy import METHODS, Anatomy, Variance
from svag.optim.optimizer import Dissected, Params
from svag.optim.options import Options


def _adapted(key: str, variance: Variance) -> Anatomy:
    return replace(METHODS[key].anatomy, variance=variance)


class SGD(Dissected):
    """Stochastic gradient descent.

        theta <- theta - lr * g

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha.
        options: weight decay, engine, dtype of the state: :class:`svag.optim.options.Options`.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = svag.SGD(model.parameters(), lr=0.1)
    """

    def __init__(self, params: Params, lr: float | Tensor = 0.1, **options: Unpack[Options]):
        super().__init__(params, lr, anatomy=METHODS["sgd"].anatomy, **options)


class MSGD(Dissected):
    """Momentum SGD in the paper's form: along the debiased average of gradients (Algorithm 2).

        theta <- theta - lr * m

    ``torch.optim.SGD(momentum=beta)`` sums what this averages and does not debias: once the
    start-up has passed (beta^t << 1), its ``lr`` is this one times (1 - beta).

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha.
        beta: decay of the average, in [0, 1).
        options: weight decay, engine, dtype of the state: :class:`svag.optim.options.Options`.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = svag.MSGD(model.parameters(), lr=0.1, beta=0.9)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.1,
        beta: float = 0.9,
        **options: Unpack[Options],
    ):
        super().__init__(params, lr, anatomy=METHODS["m-sgd"].anatomy, beta=beta, **options)


class SSD(Dissected):
    """Stochastic sign descent (§1.2).

        theta <- theta - lr * sign(g)

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha, the distance every coordinate moves in a step.
        options: weight decay, engine, dtype of the state: :class:`svag.optim.options.Options`.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = svag.SSD(model.parameters(), lr=1e-3)
    """

    def __init__(self, params: Params, lr: float | Tensor = 1e-3, **options: Unpack[Options]):
        super().__init__(params, lr, anatomy=METHODS["ssd"].anatomy, **options)


class MSSD(Dissected):
    """Momentum sign descent: Adam's sign without its variance adaptation (Algorithm 2).

        theta <- theta - lr * sign(m)

    One buffer, half of Adam's memory.

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha, the distance every coordinate moves in a step.
        beta: decay of the average, in [0, 1).
        options: weight decay, engine, dtype of the state: :class:`svag.optim.options.Options`.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = svag.MSSD(model.parameters(), lr=1e-3, beta=0.9)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        beta: float = 0.9,
        **options: Unpack[Options],
    ):
        super().__init__(params, lr, anatomy=METHODS["m-ssd"].anatomy, beta=beta, **options)


class SVAG(Dissected):
    """Stochastic variance-adapted gradient (§3.2).

        gamma = m^2 / (m^2 + s)                                                          (23)
        theta <- theta - lr * gamma * g

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha.
        beta: decay of both averages, in [0, 1), default 0.9; there are none within-batch.
        variance: where s comes from; within-batch, gamma = g^2 / (g^2 + s).
        options: weight decay, engine, dtype of the state: :class:`svag.optim.options.Options`.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = svag.SVAG(model.parameters(), lr=0.1, beta=0.9)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.1,
        beta: float | None = None,
        *,
        variance: Variance = "moving-average",
        **options: Unpack[Options],
    ):
        super().__init__(params, lr, anatomy=_adapted("svag", variance), beta=beta, **options)


class MSVAG(Dissected):
    """Momentum SVAG: Adam's variance adaptation without its sign (Algorithm 1).

        gamma = m^2 / (m^2 + rho(beta, t) s)                                             (25)
        theta <- theta - lr * gamma * m

    Use it where Adam is fast but generalises badly, with step sizes of the order of SGD's.

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha.
        beta: decay of both averages, in [0, 1).
        variance: where s comes from: ``"moving-average"``, or ``"within-batch"``, from the
            ``grad_var`` that :func:`svag.within_batch_variance`,
            :func:`svag.micro_batch_variance` or :func:`svag.rank_variance` leaves beside ``grad``.
            The variance of m is then that of a sum of independent gradients (§4.1).
        options: weight decay, engine, dtype of the state: :class:`svag.optim.options.Options`.

    Example:
        >>> import torch
        >>> from svag import MSVAG
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = MSVAG(model.parameters(), lr=0.1, beta=0.9)
        >>> model(torch.ones(8, 3)).mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.1,
        beta: float = 0.9,
        *,
        variance: Variance = "moving-average",
        **options: Unpack[Options],
    ):
        super().__init__(params, lr, anatomy=_adapted("m-svag", variance), beta=beta, **options)


class Adam(Dissected):
    """Adam, as ``torch.optim.Adam`` has it: the sign of m and an estimate of its reliability.

        theta <- theta - lr * m / (sqrt(v) + eps)                                         (6)
               = theta - lr * (1 + (v - m^2)/m^2)^(-1/2) * sign(m)        for eps = 0     (7)

    The one row with the *raw* relative variance: two betas, no correction by rho, and a factor
    that can exceed 1 because v - m^2 can be negative. ``decoupled_weight_decay=True`` is AdamW.

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha.
        betas: decays of m and v, each in [0, 1).
        eps: added to sqrt(v).
        weight_decay: coefficient of the L2 term, or of the decoupled shrinkage.
        amsgrad: use the largest v~ so far.
        foreach, maximize, capturable, differentiable, fused: as in
            :class:`svag.optim.options.Options`.
        state_dtype, stochastic_rounding, seed: likewise.
        decoupled_weight_decay: AdamW's weight decay.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = svag.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.999))

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ):
        super().__init__(
            params,
            lr,
            anatomy=METHODS["adam"].anatomy,
            betas=betas,
            eps=eps,
            amsgrad=amsgrad,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
            differentiable=differentiable,
            state_dtype=state_dtype,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
        )


class AdamStar(Dissected):
    """Adam*: M-SSD with Adam's factor, the relative variance corrected to that of m (§C.2).

        gamma = (1 + rho(beta, t) s / m^2)^(-1/2)
        theta <- theta - lr * gamma * sign(m)

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: step size alpha.
        beta: decay of both averages, in [0, 1).
        variance: where s comes from.
        options: weight decay, engine, dtype of the state: :class:`svag.optim.options.Options`.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = svag.AdamStar(model.parameters(), lr=1e-3, beta=0.9)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        beta: float = 0.9,
        *,
        variance: Variance = "moving-average",
        **options: Unpack[Options],
    ):
        super().__init__(params, lr, anatomy=_adapted("adam-star", variance), beta=beta, **options)
