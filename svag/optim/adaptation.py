"""The variance adaptation of the last step, recomputed from an optimizer's averages (§4).

    eta_sq = var[d]/E[d]^2,    gamma = factor(eta_sq)

A step keeps neither, but its averages after the step determine both. The arithmetic is in float64;
what the averages have lost to rounding stays lost (:meth:`svag.Dissected.relative_variance`).
:func:`tensors_of` names what is read of a state, :func:`moments_of` estimates mean and variance
from it, so that a caller may read a sample of the coordinates only.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from svag.anatomy import Anatomy
from svag.errors import InvalidOption, NoStepYet
from svag.optim import state as states
from svag.optim.dtensor import distributed_as, local, local_gradient
from svag.optim.engines.torch_arithmetic import on_tensors
from svag.optim.moments import as_scalar, debiasing, rho, step_of
from svag.optim.rule import FACTORS
from svag.variance import grad_var, noise


class Moments(NamedTuple):
    """Estimates that the last step had of the gradient, in float64.

    Attributes:
        mean: m (Eq. 4); within-batch rows along the gradient have g.
        variance: s, of one gradient (Eq. 22). Below 0 where v < m^2, by rounding or, with two
            betas, by much. 0 where the averages hold one gradient: none was seen.
        rho: variance of ``mean`` over s (Eq. 21); 1 where ``mean`` is one gradient.
        root: sqrt(v) + eps (Eq. 6) of raw rows, v being the largest with amsgrad; else None.
    """

    mean: Tensor
    variance: Tensor
    rho: float
    root: Tensor | None = None


def averages_gradient(anatomy: Anatomy) -> bool:
    """Return whether the estimates are made of averages, not of the last gradient alone."""
    return not (anatomy.within_batch and anatomy.direction == "gradient")


def step_count(state: Mapping[str, Any], param: Tensor) -> float:
    """Return the number of steps in a parameter's averages.

    Raises:
        NoStepYet: (a RuntimeError) there is none.
    """
    step = states.count(step_of(state["step"])) if "step" in state else 0.0
    if step < 1:
        raise NoStepYet(
            f"a parameter of shape {tuple(param.shape)} has had no step, so its averages hold no "
            "gradient: call optimizer.step() after a backward pass that reaches it"
        )
    return step


def tensors_of(
    anatomy: Anatomy, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return what the estimates are made of: ``mean`` and ``square``, or ``mean`` and ``variance``.

    With amsgrad there is ``largest`` as well. They are before debiasing; this process's shards of
    DTensors; complex ones as pairs of reals.

    Args:
        anatomy: the optimizer's.
        group: the parameter's group.
        param: the parameter.
        state: its state.

    Raises:
        NoStepYet: (a RuntimeError) there was no step, so that averages are not there yet.
        InvalidOption: (a ValueError) this optimizer keeps no average of squares, or the direction
            of the last step cannot be known because weight decay was in it.
        MissingVariance: (a RuntimeError) the row takes a variance from the mini-batch, and the
            gradient has no current one.
    """
    if not averages_gradient(anatomy):
        found = _of_the_mini_batch(group, param)
    else:
        names = {"mean": "exp_avg", "square": "exp_avg_sq"}
        if anatomy.raw and group.get("amsgrad"):
            names["largest"] = "max_exp_avg_sq"
        if anatomy.within_batch:
            names = {"mean": "exp_avg", "variance": "exp_avg_var"}
        if anatomy.adapted:
            step_count(state, param)
        missing = [name for name in names.values() if name not in state]
        if missing:
            raise InvalidOption(
                f"the update {anatomy} keeps no {' and no '.join(missing)}, so its state holds no "
                "variance; use a row with a factor, such as svag.MSVAG, or estimate the variance "
                "within the mini-batch (svag.within_batch_variance, svag.variance.noise.summarize)"
            )
        found = {role: local(state[name]) for role, name in names.items()}
    return {k: torch.view_as_real(t) if t.is_complex() else t for k, t in found.items()}


def _of_the_mini_batch(group: Mapping[str, Any], param: Tensor) -> dict[str, Tensor]:
    """Return the gradient and its variance, from which the step has kept nothing."""
    variance = grad_var.current(param)
    decay = group["weight_decay"]
    if not group["decoupled_weight_decay"] and (isinstance(decay, Tensor) or decay != 0):
        raise InvalidOption(
            f"weight_decay={decay!r} was added to the gradient before the step took its direction, "
            "and the parameter has moved since: the direction cannot be known any more. Use "
            "decoupled_weight_decay=True, or a row along the momentum, which keeps its average"
        )
    return {"mean": local_gradient(param).resolve_conj(), "variance": local(variance)}


def moments_of(
    anatomy: Anatomy, group: Mapping[str, Any], step: float, tensors: Mapping[str, Tensor]
) -> Moments:
    """Estimate mean and variance of the gradient from averages, or from some coordinates of them.

        m = m~/(1 - beta^step),  v = v~/(1 - beta2^step),  s = (v - m^2)/(1 - rho)  (4, 5, 22)

    With two betas s is unbiased as well if the gradients are independent and of one distribution,
    as E[v] does not depend on beta2. Of ``exp_avg_var`` it is var[m]/rho, as if all gradients had
    one variance.

    Args:
        anatomy: the optimizer's.
        group: the parameter's group.
        step: number of steps in the averages.
        tensors: from :func:`tensors_of`.
    """
    mean = _in_float64(tensors["mean"])
    if not averages_gradient(anatomy):
        return Moments(mean, _in_float64(tensors["variance"]), 1.0)
    betas = group.get("betas") or (group.get("beta", 0.0),) * 2
    beta, beta2 = (as_scalar(each, traced=False) for each in betas)
    weight, share = debiasing(beta, step), rho(beta, step)
    mean = mean / weight
    if anatomy.within_batch:
        return Moments(mean, _in_float64(tensors["variance"]) / (weight * weight * share), share)
    weight2 = debiasing(beta2, step)
    square = _in_float64(tensors["square"]) / weight2
    seen = share < 1
    variance = (square - mean * mean) / (1 - share) if seen else torch.zeros_like(mean)
    if not anatomy.raw:
        return Moments(mean, variance, share)
    smallest = torch.finfo(tensors["square"].dtype).tiny ** 0.5  # as in the rule
    root = (_in_float64(tensors["largest"]) / weight2 if "largest" in tensors else square).sqrt()
    root = root + group["eps"] if group["eps"] else root.clamp_min(smallest)
    return Moments(mean, variance, share, root)


def relative_variance_of(anatomy: Anatomy, moments: Moments) -> Tensor:
    """Return the relative variance that the row's factor is a function of, in float64.

        s/m^2 (23),    rho s/m^2 (25),    or ((sqrt(v) + eps)^2 - m^2)/m^2 in raw rows (9)

    Infinite where m = 0 and a variance was seen, 0 where both are 0 (in raw rows inf).
    """
    mean, variance, share, root = moments
    if root is not None:
        ratio = root / mean.abs()
        return ratio * ratio - 1
    along = share if anatomy.direction == "momentum" else 1.0
    return noise.relative_variance(mean, variance.clamp_min(0) * along)


def factor_of(anatomy: Anatomy, moments: Moments) -> Tensor:
    """Return gamma as the row's factor makes it of the relative variance, in float64.

    Where m = v = 0 it is 1 in corrected rows, 0 in raw ones; nothing moves there.
    """
    if not anatomy.adapted:
        return torch.ones_like(moments.mean)
    if moments.root is not None:
        ratio = moments.mean / moments.root
        inverse = ratio * ratio
    else:
        inverse = 1 / (1 + relative_variance_of(anatomy, moments))
    gamma: Tensor = FACTORS[anatomy.factor](on_tensors(torch.float64))(inverse)
    return gamma


def _in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64; on the CPU, if its device has no float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)


def _shaped(result: Tensor, param: Tensor) -> Tensor:
    """Return a result as the parameter is: complex, or distributed over processes."""
    if param.is_complex():
        result = torch.view_as_complex(result.contiguous())
    return distributed_as(result, param)


class Adaptive(Optimizer):
    """An optimizer that tells how its last step was adapted to the variance."""

    anatomy: Anatomy

    @torch.no_grad()
    def relative_variance(self, param: Tensor) -> Tensor:
        """Return the relative variance eta^2 of a parameter's direction, as of the last step.

            eta_sq = s/m^2 along g,  rho s/m^2 along m,  s = (v - m^2)/(1 - rho)       (22 to 25)

        In raw rows it is Adam's ((sqrt(v) + eps)^2 - m^2)/m^2, Eq. (9), which may be negative; in
        within-batch rows s, or the variance of m, comes from the mini-batches. Estimates of single
        coordinates scatter by about their own size; :class:`svag.Monitor` has figures of many.

        At the first step, and with ``beta=0``, corrected rows have seen no variance: 0. Where
        m = v = 0 it is 0 as well, in raw rows inf; where m = 0 otherwise, inf. In rows without a
        factor, it is known only if the state has ``exp_avg_sq``. SVAG within-batch keeps nothing,
        so there it is that of the present ``p.grad`` and ``p.grad_var``: ask before the next
        backward pass.

        It is computed in float64 from the averages as they are stored, which v - m^2 needs: noise
        below their rounding is lost. At beta in [0.1, 0.999], gamma is within 2e-6 (along m) or
        1e-4 (along g) of that in exact arithmetic with float32 averages, 0.07 or 0.25 with
        bfloat16 ones (measured); it grows like 1/beta below. The step's own has smaller errors.

        Args:
            param: one of this optimizer's parameters.

        Returns:
            A float64 tensor of its shape and where its averages are; complex if it is, one real
            for each part; distributed as it is.

        Raises:
            NoStepYet: (a RuntimeError) the parameter has had no step.
            InvalidOption: (a ValueError) the parameter is another optimizer's, or no variance is
                kept of it.
            MissingVariance: (a RuntimeError) the variance of the mini-batch is gone.

        Example:
            >>> import torch, svag
            >>> weight = torch.nn.Parameter(torch.zeros(3))
            >>> optimizer = svag.MSVAG([weight], lr=0.1, beta=0.9)
            >>> for gradient in ([1.0, 1.0, 0.0], [1.0, -0.5, 0.0]):
            ...     weight.grad = torch.tensor(gradient)
            ...     optimizer.step()
            >>> optimizer.relative_variance(weight).round(decimals=3)
            tensor([ 0.0000, 12.7270,  0.0000], dtype=torch.float64)
            >>> optimizer.factor(weight).round(decimals=3)
            tensor([1.0000, 0.0730, 1.0000], dtype=torch.float64)
        """
        return _shaped(relative_variance_of(self.anatomy, self._moments(param)), param)

    @torch.no_grad()
    def factor(self, param: Tensor) -> Tensor:
        """Return the factor gamma of a parameter's last step.

            theta_(t+1) = theta_t - lr * gamma * d

        It lies in [0, 1] in corrected rows, and is 1 in rows without a factor; Adam's,
        |m|/(sqrt(v) + eps), can exceed 1. Conventions, arguments, result and errors are those of
        :meth:`relative_variance`.
        """
        if self.anatomy.adapted:
            return _shaped(factor_of(self.anatomy, self._moments(param)), param)
        self._group_of(param)
        shard = local(param)
        reals = torch.view_as_real(shard) if shard.is_complex() else shard
        return _shaped(torch.ones_like(_in_float64(reals)), param)

    def _moments(self, param: Tensor) -> Moments:
        group, state = self._group_of(param), self.state.get(param, {})
        tensors = tensors_of(self.anatomy, group, param, state)
        step = step_count(state, param) if averages_gradient(self.anatomy) else 1.0
        return moments_of(self.anatomy, group, step, tensors)

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(param is own for own in group["params"]):
                return group
        shape = tuple(param.shape) if isinstance(param, Tensor) else param
        raise InvalidOption(
            f"a parameter of shape {shape} is not one of this optimizer's; give one that is in "
            "optimizer.param_groups (a model's parameters are others after they were replaced)"
        )
