"""The one optimizer: parameter groups, state and dispatch around the rule of the family."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, Unpack, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from svag.anatomy import Anatomy
from svag.errors import InvalidOption, SparseGradient
from svag.optim import checkpoint, options
from svag.optim.engines import eager
from svag.optim.moments import as_scalar
from svag.optim.options import Options
from svag.optim.rule import Bucket, Row, Rule

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Dissected(Optimizer):
    """Any recombination of direction and factor.

        theta <- theta - lr * gamma * d        d in {g, m, sign g, sign m}

    The named methods (:class:`svag.MSVAG`, :class:`svag.Adam`, ...) are rows of
    :data:`svag.METHODS`; this class takes any :class:`svag.Anatomy`.

    State per parameter, as ``torch.optim.Adam`` names it and only as far as the anatomy needs it:
    ``step`` (number of steps taken), ``exp_avg`` (m before debiasing), ``exp_avg_sq`` (v before
    debiasing), ``max_exp_avg_sq`` (amsgrad). SGD and SSD have no state. Half-precision parameters
    have half-precision state, complex ones are pairs of reals.

    At the first step (t = 0), and at ``beta=0``, the averages hold one gradient and no variance:
    gamma = 1. A coordinate with m = v = 0 does not move; sign(0) = 0. There is no epsilon except
    in raw rows.

    The dtype of the state bounds what it can average. Where (1 - beta) g^2 underflows (at
    beta = 0.9, |g| below 4e-19 in float32 and 8e-4 in float16) no variance is seen: corrected
    rows have gamma = 1, raw rows divide by eps. Where it overflows (|g| above 1e19 in float32,
    8e2 in float16) gamma = 0 until the state is reset. Neither makes a NaN of a finite gradient;
    a NaN gradient makes the parameter NaN in every row, with the sign too. In float16 averages
    with beta = 0.999 lose increments to rounding as well; bfloat16 has float32's range.

    Learning rate schedulers work; those that cycle momentum need ``cycle_momentum=False`` where
    there are no ``betas``.

    Args:
        params: tensors, (name, tensor) pairs, or groups with their own options.
        lr: step size alpha, a float or a 1-element tensor. Default 1e-3 with the sign, else 0.1.
        anatomy: direction and factor.
        beta: decay of both moving averages, in [0, 1); default 0.9. Not in raw rows.
        betas: decays of m and v in raw rows; default (0.9, 0.999).
        eps: added to sqrt(v) in raw rows; default 1e-8.
        amsgrad: in raw rows, use the largest v~ so far.
        options: see :class:`svag.optim.options.Options`.

    Raises:
        InvalidOption: (a ValueError) a value outside its set, or no variance to feed the factor.
        UnknownOption: (a TypeError) a keyword that there is not.

    Example:
        >>> import torch
        >>> from svag import Anatomy, Dissected
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> sign_with_gaussian_factor = Anatomy("momentum", sign=True, factor="erf")
        >>> optimizer = Dissected([weight], lr=0.1, anatomy=sign_with_gaussian_factor)
        >>> weight.pow(2).sum().backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([ 0.9000, -1.9000])

    References:
        Balles and Hennig, Dissecting Adam, ICML 2018.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor | None = None,
        *,
        anatomy: Anatomy,
        beta: float | None = None,
        betas: tuple[float | Tensor, float | Tensor] | None = None,
        eps: float | None = None,
        amsgrad: bool = False,
        **options_: Unpack[Options],
    ) -> None:
        if not isinstance(anatomy, Anatomy):
            raise InvalidOption(
                f"anatomy={anatomy!r} is not an Anatomy; give svag.Anatomy(...) or "
                "svag.METHODS[key].anatomy"
            )
        if anatomy.adapted and anatomy.variance != "moving-average":
            raise InvalidOption(
                f"variance={anatomy.variance!r}: nothing in this version estimates it, so the "
                f"factor {anatomy.factor!r} has no variance to feed it; use "
                "variance='moving-average', or factor='none'"
            )
        self.anatomy = anatomy
        defaults = options.defaults(
            type(self).__name__,
            anatomy,
            lr=(1e-3 if anatomy.sign else 0.1) if lr is None else lr,
            beta=beta,
            betas=betas,
            eps=eps,
            amsgrad=amsgrad,
            options=options_,
        )
        options.check(defaults)
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "anatomy": self.anatomy}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with options of its own; those it does not name are the optimizer's.

        Raises:
            InvalidOption: an option of the group is outside its set.
            UnknownOption: the group has an option that this optimizer has not.
        """
        if isinstance(param_group, dict):
            options.check_names(param_group, self.defaults, type(self).__name__)
            options.check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, this method's or another's of the family.

        This method's own state comes back whole, options included, as in torch; a
        ``torch.optim.Adam`` state is :class:`svag.Adam`'s own. From another method, with a
        warning, only what was averaged is taken: this optimizer keeps its own options, the
        averages are rescaled to its betas' debiasing, so that m and v are what they were, and a
        parameter without ``exp_avg`` starts afresh. With ``exp_avg`` but no ``exp_avg_sq``, v
        starts at m^2, which is zero variance. Pre-hooks see what has been taken.
        """
        super().load_state_dict(checkpoint.translate(state_dict, self.anatomy, self.param_groups))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            SparseGradient: (a RuntimeError) a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
            for group in self.param_groups:
                self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        traced = bool(group["capturable"]) or torch.compiler.is_compiling()
        betas = group.get("betas") or (group.get("beta", 0.0),) * 2
        followed = traced or bool(group["differentiable"])
        beta, beta2 = (as_scalar(beta, traced=followed) for beta in betas)
        rule = Rule(
            anatomy=self.anatomy,
            lr=as_scalar(group["lr"], traced=followed),
            beta=beta,
            beta2=beta2,
            eps=group.get("eps", 0.0),
            weight_decay=as_scalar(group["weight_decay"], traced=followed),
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
        )
        for bucket in self._buckets(group, params, traced=traced):
            one_by_one = traced or group["differentiable"]
            eager.apply(rule, bucket, foreach=False if one_by_one else group["foreach"])

    def _buckets(
        self, group: dict[str, Any], params: list[Tensor], *, traced: bool
    ) -> Iterable[Bucket]:
        """Advance the steps and gather tensors of one device, dtype and step.

        A traced step must not be read, so there each tensor is a bucket of its own.
        """
        buffers = self.anatomy.buffers + ("max_exp_avg_sq",) * group.get("amsgrad", False)
        states = [self._state(group, p, buffers) for p in params]
        if buffers:
            torch._foreach_add_([state["step"] for state in states], 1)
        buckets: dict[Any, Bucket] = {}
        unique = itertools.count()
        for param, state in zip(params, states, strict=True):
            step = 1.0
            if buffers:
                step = as_scalar(state["step"], traced=True) if traced else state["step"].item()
            key = next(unique) if traced else (param.device, param.dtype, step)
            if group["differentiable"]:
                state.update({name: state[name].clone() for name in buffers})
            row = Row(param, param.grad, **{name: state[name] for name in buffers})
            buckets.setdefault(key, Bucket(step)).rows.append(row)
        return buckets.values()

    def _state(
        self, group: dict[str, Any], param: Tensor, buffers: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return a parameter's state, created at its first gradient."""
        if param.grad is not None and param.grad.is_sparse:
            name = type(self).__name__
            raise SparseGradient(
                f"{name} does not support sparse gradients, please consider SparseAdam instead, "
                f"or make the layer's gradient dense (nn.Embedding(..., sparse=False))"
            )
        state: dict[str, Any] = self.state[param]
        if buffers and not state:
            device = param.device if group["capturable"] else None
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for name in buffers:
            if name not in state:
                state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state
