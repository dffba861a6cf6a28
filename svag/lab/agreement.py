"""Compares two estimates of the gradient's variance: moving averages and within-batch.

While a within-batch method trains, this module also keeps the moving average v of the squared
gradient. So both estimates of the relative variance of m, and both factors gamma, are known at
every step. Their agreement is the correlation of the factors over a parameter's entries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from svag.optim.engines.torch_arithmetic import on_tensors
from svag.optim.moments import debiasing, rho
from svag.optim.optimizer import Dissected
from svag.optim.rule import FACTORS


class Agreement:
    """Observes the optimizer of a within-batch method whose direction is the momentum.

    Args:
        model: the model whose parameters the optimizer updates.
        optimizer: one with ``exp_avg`` and ``exp_avg_var`` in its state.
    """

    def __init__(self, model: nn.Module, optimizer: Dissected) -> None:
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self._optimizer = optimizer
        self._squares: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def observe(self) -> None:
        """Update the moving averages with the gradients of the step that was just taken."""
        for param, beta, _ in self._watched():
            grad, square = param.grad, self._squares.setdefault(param, torch.zeros_like(param))
            assert grad is not None
            square.mul_(beta).addcmul_(grad, grad, value=1 - beta)

    @torch.no_grad()
    def correlations(self) -> dict[str, float]:
        """Return Pearson's correlation of the two factors, by the name of the parameter.

        It is taken over the parameter's entries; those whose gradient was always 0 are left out. It
        is NaN if one of the factors is constant, as both are at the first step.
        """
        result = {}
        for param, beta, step in self._watched():
            state = self._optimizer.state[param]
            weight = debiasing(beta, step)
            mean = state["exp_avg"] / weight
            share = rho(beta, step)
            if not share < 1:
                continue
            averaged = (self._squares[param] / weight - mean * mean).clamp_min(0)
            averaged *= share / (1 - share)
            sampled = state["exp_avg_var"] / (weight * weight)
            seen = self._squares[param] > 0
            factors = [self._factor(variance, mean)[seen] for variance in (averaged, sampled)]
            if factors[0].numel() > 1:
                result[self._names[param]] = _correlation(*factors)
        return result

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving averages by the names of the parameters."""
        return {self._names[param]: square for param, square in self._squares.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the moving averages."""
        named = {name: param for param, name in self._names.items()}
        self._squares = {named[name]: square for name, square in state.items()}

    def _factor(self, variance: Tensor, mean: Tensor) -> Tensor:
        square, spread = mean.double().square(), variance.double()
        gamma = FACTORS[self._optimizer.anatomy.factor](on_tensors(torch.float64))
        factor: Tensor = gamma(square / (square + spread))
        return factor

    def _watched(self) -> Iterator[tuple[Tensor, float, float]]:
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                if "exp_avg_var" in self._optimizer.state.get(param, {}):
                    yield param, float(group["beta"]), self._optimizer.state[param]["step"].item()


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    return float((x @ y / norm).item()) if norm > 0 else float("nan")
