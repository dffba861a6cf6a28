"""What gradients and their variances say about noise: relative variance, signs, noise scale.

Elementwise functions take a gradient g and its variance s as tensors of one shape; the noise scale
takes sums over all entries. Nothing here changes a gradient or waits for an accelerator, except
:func:`summarize`, which returns numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from svag.errors import InvalidOption
from svag.variance.attachment import current


def relative_variance(grad: Tensor, grad_var: Tensor) -> Tensor:
    """Return the squared relative standard deviation of each entry of a gradient (§3).

        eta_sq = s / g^2

    Infinite where g = 0 and s > 0; 0 where both are 0, since nothing was seen to vary.

    Args:
        grad: g, the estimate of the mean.
        grad_var: s >= 0, its variance.

    Example:
        >>> import torch
        >>> relative_variance(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([0.2500,    inf, 0.0000])
    """
    # Twice by |g|: g^2 may underflow where the result does not.
    magnitude = grad.abs()
    return (grad_var / magnitude / magnitude).masked_fill(grad_var == 0, 0.0)


def signal_to_noise(grad: Tensor, grad_var: Tensor) -> Tensor:
    """Return how many of its standard deviations each entry of a gradient is away from 0.

        1 / eta = |g| / sqrt(s)

    Infinite where nothing was seen to vary.

    Args:
        grad: g, the estimate of the mean.
        grad_var: s >= 0, its variance.

    Example:
        >>> import torch
        >>> signal_to_noise(torch.tensor([-2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([2., 0., inf])
    """
    return (grad.abs() / grad_var.sqrt()).masked_fill(grad_var == 0, torch.inf)


def success_probability(grad: Tensor, grad_var: Tensor) -> Tensor:
    """Return the probability that each entry of a gradient has the right sign (Eq. 10).

        rho = 1/2 + 1/2 erf(|grad L| / (sqrt(2) sigma))

    with g for the unknown grad L, of which it is an unbiased estimate, and s for sigma^2. As |g|
    overestimates |grad L| on average, so does this: pure noise gives 3/4 and not 1/2. It is 1
    where nothing was seen to vary, with or without a gradient.

    Args:
        grad: g, the estimate of the mean.
        grad_var: s >= 0, its variance.

    Returns:
        Probabilities in [1/2, 1] of Gaussian gradients.

    Example:
        >>> import torch
        >>> success_probability(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([0.8413, 0.5000, 1.0000])
    """
    probability: Tensor = torch.special.ndtr(signal_to_noise(grad, grad_var))
    return probability


@dataclass(frozen=True)
class NoiseScale:
    """Squared norm of the true gradient and trace of one example's gradient covariance.

    Both are unbiased estimates. ``grad_sq`` may come out negative where noise outweighs the
    gradient; average both over steps before dividing, as a ratio of two noisy numbers is biased.

    Args:
        grad_sq: |grad L|^2.
        trace: tr(Sigma), of the gradient of one example.
    """

    grad_sq: float
    trace: float

    @property
    def simple(self) -> float:
        """The simple noise scale tr(Sigma) / |grad L|^2, in examples; inf if not positive below.

        About the batch size up to which larger batches save steps in proportion.
        """
        return self.trace / self.grad_sq if self.grad_sq > 0 else float("inf")


def noise_scale(grad_sq: float, variance: float, batch_size: float) -> NoiseScale:
    """Estimate the noise scale from one mini-batch and its variance.

        tr(Sigma) = B sum_i s_i;    |grad L|^2 = |g|^2 - sum_i s_i

    This is :func:`two_batch_noise_scale` with single examples as the small batches.

    Args:
        grad_sq: |g|^2, over all parameters.
        variance: sum of ``grad_var`` over all parameters.
        batch_size: B, the examples behind the gradient, over all micro-batches or ranks.

    Raises:
        InvalidOption: (a ValueError) the batch has less than one example.

    Example:
        >>> noise_scale(grad_sq=5.0, variance=1.0, batch_size=64).simple
        16.0

    References:
        McCandlish et al., An empirical model of large-batch training, 2018, appendix A.1.
    """
    if not batch_size >= 1:
        raise InvalidOption(f"batch_size={batch_size!r} is not a number of examples; give B >= 1")
    return NoiseScale(grad_sq=grad_sq - variance, trace=batch_size * variance)


def two_batch_noise_scale(
    small_sq: float, big_sq: float, small_batch: float, big_batch: float
) -> NoiseScale:
    """Estimate the noise scale from gradient norms at two batch sizes.

        |grad L|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)
        tr(Sigma) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

    Both are unbiased, as E|g_b|^2 = |grad L|^2 + tr(Sigma) / b.

    Args:
        small_sq: |g_b|^2 of a gradient, or the average over several, at the small batch size.
        big_sq: |g_B|^2 at the big one.
        small_batch: b, in examples.
        big_batch: B > b, in examples.

    Raises:
        InvalidOption: (a ValueError) not 0 < b < B.

    Example:
        >>> two_batch_noise_scale(small_sq=8.0, big_sq=5.0, small_batch=16, big_batch=64).simple
        16.0

    References:
        McCandlish et al., An empirical model of large-batch training, 2018, appendix A.1.
    """
    if not 0 < small_batch < big_batch:
        raise InvalidOption(
            f"small_batch={small_batch!r} and big_batch={big_batch!r}: the small batch must be "
            "smaller than the big one, and not empty"
        )
    between = big_batch - small_batch
    return NoiseScale(
        grad_sq=(big_batch * big_sq - small_batch * small_sq) / between,
        trace=(small_sq - big_sq) * small_batch * big_batch / between,
    )


@dataclass(frozen=True)
class ParameterNoise:
    """Noise of one parameter's gradient.

    Args:
        name: of the parameter.
        entries: how many numbers it has; a complex one counts as two.
        grad_sq: |g|^2.
        variance: sum of ``grad_var``.
        relative_variance: median over entries of s / g^2.
        signal_to_noise: median over entries of |g| / sqrt(s).
        success_probability: mean over entries of Eq. (10).
    """

    name: str
    entries: int
    grad_sq: float
    variance: float
    relative_variance: float
    signal_to_noise: float
    success_probability: float


def summarize(named_parameters: Iterable[tuple[str, Tensor]]) -> list[ParameterNoise]:
    """Summarize the noise of every parameter that has a gradient.

    Args:
        named_parameters: as ``model.named_parameters()`` gives them.

    Returns:
        One row a parameter with a gradient and at least one entry.

    Raises:
        MissingVariance: (a RuntimeError) a gradient has no current variance.

    Example:
        >>> import torch, svag
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> with svag.micro_batch_variance([weight]) as micro_batches:
        ...     for target in (1.0, -1.0):
        ...         (0.25 * (weight - target).pow(2).sum()).backward()
        ...         micro_batches.micro_step()
        >>> row = summarize([("weight", weight)])[0]
        >>> row.grad_sq, row.variance, row.signal_to_noise
        (25.0, 2.0, 3.0)
        >>> noise_scale(row.grad_sq, row.variance, batch_size=2).simple
        0.17391304347826086
    """
    return [
        _row(name, _reals(param.grad), _reals(current(param)))
        for name, param in named_parameters
        if param.grad is not None and param.grad.numel()
    ]


def _row(name: str, grad: Tensor, grad_var: Tensor) -> ParameterNoise:
    numbers = torch.stack(
        [
            grad.square().sum(),
            grad_var.sum(),
            relative_variance(grad, grad_var).median(),
            signal_to_noise(grad, grad_var).median(),
            success_probability(grad, grad_var).mean(),
        ]
    )
    return ParameterNoise(name, grad.numel(), *numbers.tolist())


def _reals(tensor: Tensor) -> Tensor:
    """Return one dimension of reals in float64; a complex number is two."""
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.double().flatten()
