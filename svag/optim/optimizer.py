"""The one optimizer: parameter groups, state and dispatch around the rule of the family."""

import itertools
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, TypeAlias, Unpack, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from svag.anatomy import Anatomy
from svag.errors import InvalidOption, MissingVariance, SparseGradient
from svag.optim import options, state_translation
from svag.optim import state as states
from svag.optim.adaptation import Adaptive
from svag.optim.dispatch import Entry, Plan, in_turns, may_be_fused
from svag.optim.dtensor import (
    gradients_placed_as_parameters,
    local,
    local_gradient,
    shares_memory,
)
from svag.optim.engines import eager
from svag.optim.engines.eager import Bucket, Operands
from svag.optim.moments import as_scalar, step_of
from svag.optim.options import Options
from svag.optim.restored_step_size import StepSizeChange
from svag.optim.rule import Settings
from svag.variance import grad_var
from svag.variance.rescaling import follow_torch

# torch renamed its refusal to capture a step whose groups are not capturable.
_CHECK_CAPTURE: Callable[[Optimizer], None] = (
    getattr(Optimizer, "_accelerator_graph_capture_health_check", None)
    or Optimizer.__dict__["_cuda_graph_capture_health_check"]
)

# Whether this PyTorch is built for an accelerator, on which a step might be captured.
_HAS_ACCELERATOR = torch.accelerator.current_accelerator() is not None

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Dissected(Adaptive):
    """Any recombination of direction and factor.

        theta <- theta - lr * gamma * d        d in {g, m, sign g, sign m}

    The named methods (:class:`svag.MSVAG`, :class:`svag.Adam`, ...) are rows of
    :data:`svag.METHODS`; this class takes any :class:`svag.Anatomy`.

    State per parameter, as ``torch.optim.Adam`` names it and only as far as the anatomy needs it:
    ``step`` (number of steps taken), ``exp_avg`` (m before debiasing), ``exp_avg_sq`` (v before
    debiasing), ``max_exp_avg_sq`` (amsgrad), ``exp_avg_var`` (the variance of ``exp_avg``, where
    mini-batches give that of g). SGD and SSD have no state. Half-precision parameters have
    half-precision state unless ``state_dtype`` says otherwise, beside a ``grad_var`` in float32;
    complex ones are pairs of reals.

    At the first step (t = 0), and at ``beta=0``, the averages hold one gradient and no variance:
    gamma = 1. A coordinate with m = v = 0 does not move; sign(0) = 0. There is no epsilon except
    in raw rows.

    The dtype of the state bounds what it can average. Where (1 - beta) g^2 underflows (at
    beta = 0.9, |g| below 4e-19 in float32 and 8e-4 in float16) no variance is seen: corrected
    rows have gamma = 1, raw rows divide by eps. Where it overflows (|g| above 1e19 in float32,
    8e2 in float16) gamma = 0 until the state is reset. Neither makes a NaN of a finite gradient;
    a NaN gradient, or a NaN variance from the mini-batch, makes the parameter NaN in every row,
    with the sign too. In float16 averages
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
        self.anatomy = anatomy
        self._plan: Plan | None = None
        self._saved_lrs: StepSizeChange | None = None
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
        self._step_supports_amp_scaling = bool(defaults["fused"])
        if anatomy.within_batch:
            follow_torch()

    def __getstate__(self) -> dict[str, Any]:
        scaling = self._step_supports_amp_scaling
        return {
            **super().__getstate__(),
            "anatomy": self.anatomy,
            "_step_supports_amp_scaling": scaling,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.anatomy.within_batch:
            follow_torch()
        self._plan = None
        self._saved_lrs = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with options of its own; those it does not name are the optimizer's.

        Raises:
            InvalidOption: an option of the group is outside its set.
            UnknownOption: the group has an option that this optimizer has not.
        """
        if isinstance(param_group, dict):
            # A group that another optimizer has filled in says what that one was.
            known = isinstance(param_group.get("anatomy"), str)
            param_group = {k: v for k, v in param_group.items() if not (known and k == "anatomy")}
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
        starts at m^2, which is zero variance; between ``exp_avg_sq`` and the ``exp_avg_var`` of
        within-batch rows, the variance of m is kept. The ``momentum_buffer`` of
        ``torch.optim.SGD`` is taken as the average of a long run; averages by these names of
        another library's optimizer, its steps counted by parameter or by group, as well. The
        warning says what was found, and what starts afresh.

        Where a scheduler has set ``initial_lr`` in both groups, ``lr`` is the same share of it as
        the saved one. A scheduler's own state brings the saved step sizes back: a change from this
        optimizer's to them is warned of in the step that follows (docs/from-adam.md). Pre-hooks
        see what has been taken.
        """
        translated = state_translation.translate(state_dict, self.anatomy, self.param_groups)
        super().load_state_dict(translated)
        foreign = not state_translation.is_own(state_dict, self.anatomy)
        saved_groups = state_dict["param_groups"]
        self._saved_lrs = StepSizeChange(self.param_groups, saved_groups) if foreign else None
        # torch has cast the averages to the parameters' dtypes.
        saved = (index for group in translated["param_groups"] for index in group["params"])
        own = ((group, param) for group in self.param_groups for param in group["params"])
        for index, (group, param) in zip(saved, own, strict=True):
            state = self.state.get(param, {}) if group["state_dtype"] is not None else {}
            for name in state.keys() & states.buffers(self.anatomy, group):
                dtype = states.dtype_of(group, param)
                state[name] = translated["state"][index][name].to(param.device, dtype, copy=True)

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
        if _HAS_ACCELERATOR:
            _CHECK_CAPTURE(self)
        if self._saved_lrs is not None and self._saved_lrs.are_decided(self.param_groups):
            self._saved_lrs = None
        if self.anatomy.within_batch:
            self._check_variances()
        with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
            compiling = torch.compiler.is_compiling()
            if compiling or not any(map(may_be_fused, self.param_groups)):
                if not compiling:  # Dynamo of torch 2.9 cannot trace the assignment
                    self._plan = None
                self._step_eagerly(self._entries())
                return loss
            every = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
            with gradients_placed_as_parameters(every):
                self._step_by_plan()
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _check_variances(self) -> None:
        """Find a variance that is missing or stale before anything has changed.

        Gradients of zero that none has a variance come from torch.distributed.checkpoint, which
        primes a fresh optimizer by a step with them: they have a variance of zero.
        """
        every = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        params = [param for param in every if param.grad is not None]
        try:
            for param in params:
                grad_var.current(param)
        except MissingVariance:
            if not grad_var.are_zero(params):
                raise
            for param in params:
                grad_var.attach(param, torch.zeros_like(param.grad))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to zero, and drop their variances."""
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            grad_var.clear(group["params"])

    def _entries(self, places: Container[int] | None = None, *, idle: bool = False) -> list[Entry]:
        """Return parameters that have a gradient, with their states.

        Args:
            places: those among which to look; all by default.
            idle: take in those that have a state and no gradient now.
        """
        entries, place = [], 0
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                if param.grad is not None and (places is None or place in places):
                    entries.append(Entry(param, place, index, self._state(group, param)))
                elif idle and isinstance(self.state.get(param, {}).get("step"), Tensor):
                    entries.append(Entry(param, place, index, self.state[param]))
                place += 1
        return entries

    def _step_by_plan(self) -> None:
        of_plan = self.anatomy, self.param_groups, self.state
        plan, self._plan = self._plan, None  # none is left where a step is refused or interrupted
        if plan is None or not plan.holds(*of_plan):
            plan = Plan(*of_plan, self._entries(idle=True))
        if plan.settings is None:
            groups = self.param_groups
            plan.settings = [self._settings(g, traced=bool(g["capturable"])) for g in groups]
        plan.launch(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        if plan.rest:
            self._step_eagerly(self._entries(plan.rest))
        self._plan = plan

    def _step_eagerly(self, entries: Sequence[Entry]) -> None:
        found_inf = getattr(self, "found_inf", None)
        if not entries or (found_inf is not None and found_inf.item()):
            return
        for index, of_group in itertools.groupby(entries, key=lambda entry: entry.group):
            group = self.param_groups[index]
            traced = bool(group["capturable"]) or torch.compiler.is_compiling()
            followed = traced or bool(group["differentiable"])
            update = eager.Update(
                options.switches_of(self.anatomy, group),
                self._settings(group, traced=followed),
                *options.dithers(group),
                foreach=False if followed else group["foreach"],
            )
            together = list(of_group)
            seen_through = torch.compiler.is_compiling() or group["differentiable"]
            for turn in [together] if seen_through else in_turns(together):
                for bucket in self._buckets(group, turn, traced=traced):
                    update.apply(bucket)

    def _settings(self, group: dict[str, Any], *, traced: bool) -> Settings:
        betas = group.get("betas") or (group.get("beta", 0.0),) * 2
        beta, beta2 = (as_scalar(beta, traced=traced) for beta in betas)
        decay = as_scalar(group["weight_decay"], traced=traced)
        return Settings(
            lr=as_scalar(group["lr"], traced=traced),
            beta=beta,
            beta2=beta2,
            eps=group.get("eps", 0.0),
            weight_decay=0.0 if group["decoupled_weight_decay"] else decay,
            decoupled_weight_decay=decay if group["decoupled_weight_decay"] else 0.0,
            gradient=-1.0 if group["maximize"] else 1.0,
            seed=group["seed"],
        )

    def _buckets(
        self, group: dict[str, Any], entries: list[Entry], *, traced: bool
    ) -> Iterable[Bucket]:
        """Advance the steps and gather tensors of one device, dtype and step.

        A traced step must not be read, so there each tensor is a bucket of its own.
        """
        buffers = states.buffers(self.anatomy, group)
        if buffers:
            for state in (entry.state for entry in entries):
                state["step"] = step_of(state["step"])
            torch._foreach_add_([entry.state["step"] for entry in entries], 1)
        grad_scale = getattr(self, "grad_scale", None)
        buckets: dict[Any, Bucket] = {}
        unique = itertools.count()
        for param, place, _, state in entries:
            step = 1.0
            if buffers:
                step = (
                    as_scalar(state["step"], traced=True) if traced else states.count(state["step"])
                )
            key = next(unique) if traced else (param.device, param.dtype, step)
            if group["differentiable"]:
                state.update({name: state[name].clone() for name in buffers})
            grad = local_gradient(param).resolve_conj()
            if not traced and shares_memory(local(param), grad):
                grad = grad.clone()  # as it is before the parameter moves
            kept = {name: local(state[name]) for name in buffers}
            if self.anatomy.within_batch:
                kept["grad_var"] = local(cast(Any, param).grad_var)
            if grad_scale is not None:
                scale = grad_scale.to(grad.device)
                grad = grad / scale
                if self.anatomy.within_batch:
                    kept["grad_var"] = kept["grad_var"] / scale / scale
            bucket = buckets.setdefault(key, Bucket(step))
            bucket.rows.append(Operands(local(param), grad, **kept))
            bucket.places.append(place)
        return buckets.values()

    def _state(self, group: dict[str, Any], param: Tensor) -> dict[str, Any]:
        """Return a parameter's state, created at its first gradient."""
        if param.grad is not None and param.grad.is_sparse:
            name = type(self).__name__
            raise SparseGradient(
                f"{name} does not support sparse gradients, please consider SparseAdam instead, "
                f"or make the layer's gradient dense (nn.Embedding(..., sparse=False))"
            )
        return states.of(self.state, self.anatomy, group, param)
