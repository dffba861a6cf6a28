"""Expensive figures for a monitor: functions with forward and backward passes of their own."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from svag.diagnosis.monitoring.noise_figures import RunningNoiseScale, Sample, figures
from svag.diagnosis.objective import BatchLoss, Loss, Objective
from svag.diagnosis.sampling import Sampling
from svag.errors import InvalidOption
from svag.optim.adaptation import Moments
from svag.variance.grad_var import current
from svag.variance.micro_batches import micro_batch_variance
from svag.variance.per_example import within_batch_variance


def within_batch_noise(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss | None = None,
    *,
    batch_loss: BatchLoss | None = None,
    micro_batches: int | None = None,
) -> Callable[[], dict[str, float]]:
    """Return a probe that measures the gradient's noise inside one mini-batch.

    It takes the variance from examples at the present parameters, so that neither drift nor
    oscillation of the mean counts as noise. One call costs a forward and a backward pass inside
    :func:`svag.within_batch_variance`, or ``micro_batches`` passes. Parameters, gradients, buffers,
    modes and generators are restored to the bit.

    Args:
        model: the model in training.
        batches: its mini-batches, which can be iterated over again, or without end.
        loss_fn: mean loss from outputs and targets, for batches ``(inputs, targets)``.
        batch_loss: instead, the loss from model and batch.
        micro_batches: estimate from this many batches, at least two, by
            :func:`svag.micro_batch_variance`; for models that have no per-example gradient, such
            as those with BatchNorm.

    Returns:
        A function without arguments, for ``Monitor(probes={"noise": ...})``. It returns
        ``grad_sq``, ``variance``, ``noise_scale`` (if batches have a size; averaged over about the
        last ten calls) and quantiles of eta^2 = s/g^2, g and s being those of the mini-batch, or
        of all micro-batches together. As g is one gradient, the median levels off at 2.2, where
        the sign of g is chance. A coordinate with g = s = 0 does not count.

    Raises:
        InvalidOption: there is no loss, or fewer than two micro-batches.
        DissectionError: there are no batches.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(3)]
        >>> probe = within_batch_noise(model, batches, torch.nn.functional.mse_loss)
        >>> sorted(probe())[-3:]
        ['grad_sq', 'noise_scale', 'variance']
    """
    if micro_batches is not None and micro_batches < 2:
        raise InvalidOption(
            f"micro_batches={micro_batches!r}: a variance needs at least two; None takes the "
            "examples of one batch"
        )
    sampling = Sampling(Objective(model, loss_fn, batch_loss=batch_loss), batches)
    stream, size = sampling.stream(), sampling.batch_size
    scale = None if size is None else RunningNoiseScale(size * (micro_batches or 1))

    def probe() -> dict[str, float]:
        objective = Objective(model, loss_fn, batch_loss=batch_loss)  # with buffers as they are now
        with objective.dissected():
            taken = list(islice(stream, micro_batches or 1))
            if micro_batches is None:
                with within_batch_variance(model):
                    objective.gradient(taken[0])
            else:
                _accumulate(objective, taken)
            found = _figures(objective)
        return found if scale is None else {**found, "noise_scale": scale.add(found)}

    return probe


def _accumulate(objective: Objective, batches: list[Any]) -> None:
    """Leave the mean gradient of several batches, and its variance, beside the parameters."""
    with micro_batch_variance(objective.params) as variance:
        for param in objective.params:
            param.grad = None
        for batch in batches:
            loss, _ = objective.graph(batch)
            (loss / len(batches)).backward()
            objective.restore()
            variance.micro_step()


def _figures(objective: Objective) -> dict[str, float]:
    samples = [
        Sample(name, grad.numel(), Moments(grad, variance, 1.0), None)
        for name, param in zip(objective.names, objective.params, strict=True)
        if param.grad is not None
        for grad, variance in [(_vector(param.grad), _vector(current(param)))]
    ]
    found = figures(samples)
    return {
        name: value
        for name, value in found.items()
        if name.startswith("eta_sq") or name in ("grad_sq", "variance")
    }


def _vector(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().double().flatten().cpu()
