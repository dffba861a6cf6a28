"""Measures of gradient noise: relative variance, signal-to-noise ratio, signs, noise scale.

Elementwise functions take a gradient g and its variance s as tensors of one shape; the noise scale
takes sums over all entries. No function changes a gradient, and only :func:`summarize`, which
returns numbers, waits for an accelerator.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from svag.errors import InvalidOption
from svag.variance.grad_var import current


def relative_variance(grad: Tensor, grad_var: Tensor) -> Tensor:
    """Return the squared relative standard deviation of each entry of a gradient (§3).

        eta_sq = s / g^2

    Infinite where g = 0 and s > 0; 0 where both are 0, since no variation was observed; NaN where
    either is NaN or s < 0.

    Args:
        grad: g, the estimate of the mean.
        grad_var: s >= 0, its variance.

    Example:
        >>> import torch
        >>> relative_variance(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([0.2500,    inf, 0.0000])
    """
    # Divide twice by |g|, since g^2 may underflow where the result does not.
    magnitude = grad.abs()
    ratio = (grad_var / magnitude / magnitude).masked_fill(_still(grad, grad_var), 0.0)
    return ratio.masked_fill(grad_var < 0, torch.nan)


def signal_to_noise(grad: Tensor, grad_var: Tensor) -> Tensor:
    """Return the distance of each entry of a gradient from 0 in standard deviations.

        1 / eta = |g| / sqrt(s)

    Infinite where s = 0; NaN where either is NaN or s < 0.

    Args:
        grad: g, the estimate of the mean.
        grad_var: s >= 0, its variance.

    Example:
        >>> import torch
        >>> signal_to_noise(torch.tensor([-2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([2., 0., inf])
    """
    return (grad.abs() / grad_var.sqrt()).masked_fill(_still(grad, grad_var), torch.inf)


def sign_confidence(grad: Tensor, grad_var: Tensor) -> Tensor:
    """Return Eq. (10) at each entry of a gradient, with the gradient in place of its mean.

        1/2 + 1/2 erf(|g| / sqrt(2 s))

    Eq. (10) itself is the probability that g has the sign of its mean grad L, which is unknown.
    This is an estimate, whose mean over gradients (:func:`svag.theory.expected_sign_confidence`)
    is above that probability where |grad L| is small, and below it where it is large:

        |grad L| / sigma                     0       1/2     1       2       3
        success probability, Eq. (10)        0.5     0.691   0.841   0.977   0.999
        mean of this, variance known         0.75    0.769   0.818   0.928   0.983
        mean of this, from two examples      0.814   0.828   0.863   0.940   0.981

    No function of g and s has the success probability as its mean. The result is 1 where s = 0,
    even if g = 0; NaN where either is NaN or s < 0.

    Args:
        grad: g, the estimate of the mean.
        grad_var: s >= 0, its variance.

    Returns:
        Numbers in [1/2, 1].

    Example:
        >>> import torch
        >>> sign_confidence(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([0.8413, 0.5000, 1.0000])
    """
    confidence: Tensor = torch.special.ndtr(signal_to_noise(grad, grad_var))
    return confidence


def _still(grad: Tensor, grad_var: Tensor) -> Tensor:
    """Return where s = 0 and g is not NaN."""
    return (grad_var == 0) & ~grad.isnan()


@dataclass(frozen=True)
class NoiseScale:
    """Squared norm of the true gradient and trace of one example's gradient covariance.

    Both are unbiased estimates. ``grad_sq`` may be negative if the noise is larger than the
    gradient. Average both over steps before dividing, since a ratio of two noisy numbers is biased.

    Args:
        grad_sq: |grad L|^2.
        trace: tr(Sigma), of the gradient of one example.
    """

    grad_sq: float
    trace: float

    @property
    def simple(self) -> float:
        """The simple noise scale tr(Sigma) / |grad L|^2, in examples.

        Up to about this batch size, larger batches need proportionally fewer steps. inf if the
        denominator is not positive, NaN if either is NaN.
        """
        if math.isnan(self.grad_sq) or math.isnan(self.trace):
            return math.nan
        return self.trace / self.grad_sq if self.grad_sq > 0 else math.inf


def noise_scale(grad_sq: float, variance: float, batch_size: float) -> NoiseScale:
    """Estimate the noise scale from one mini-batch and its variance.

        tr(Sigma) = B sum_i s_i;    |grad L|^2 = |g|^2 - sum_i s_i

    This is :func:`two_batch_noise_scale` with single examples as the small batches.

    Args:
        grad_sq: |g|^2, over all parameters.
        variance: sum of ``grad_var`` over all parameters.
        batch_size: B, the number of examples of the gradient, over all micro-batches or ranks.

    Raises:
        InvalidOption: (a ValueError) not 1 <= B < inf, or ``grad_sq`` or ``variance`` is negative.

    Example:
        >>> noise_scale(grad_sq=5.0, variance=1.0, batch_size=64).simple
        16.0

    References:
        McCandlish et al., An empirical model of large-batch training, 2018, appendix A.1.
    """
    if not 1 <= batch_size < math.inf:
        raise InvalidOption(f"batch_size={batch_size!r} is not a number of examples; give B >= 1")
    _at_least_zero(grad_sq=grad_sq, variance=variance)
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
        InvalidOption: (a ValueError) not 0 < b < B < inf, or a squared norm is negative.

    Example:
        >>> two_batch_noise_scale(small_sq=8.0, big_sq=5.0, small_batch=16, big_batch=64).simple
        16.0

    References:
        McCandlish et al., An empirical model of large-batch training, 2018, appendix A.1.
    """
    _at_least_zero(small_sq=small_sq, big_sq=big_sq)
    if not 0 < small_batch < big_batch < math.inf:
        raise InvalidOption(
            f"small_batch={small_batch!r} and big_batch={big_batch!r}: the small batch must be "
            "smaller than the big one, and not empty"
        )
    between = big_batch - small_batch
    return NoiseScale(
        grad_sq=(big_batch * big_sq - small_batch * small_sq) / between,
        trace=(small_sq - big_sq) * small_batch * big_batch / between,
    )


def _at_least_zero(**numbers: float) -> None:
    """Raise if a number is negative; NaN is allowed, since a gradient can be NaN."""
    for name, number in numbers.items():
        if number < 0:
            raise InvalidOption(f"{name}={number!r} is a sum of squares; it must be >= 0")


@dataclass(frozen=True)
class ParameterNoise:
    """Noise of one parameter's gradient.

    Args:
        name: name of the parameter.
        entries: number of its entries; a complex entry counts as two.
        grad_sq: |g|^2.
        variance: sum of ``grad_var``.
        relative_variance: median over entries of s / g^2.
        signal_to_noise: median over entries of |g| / sqrt(s).
        sign_confidence: mean over entries of :func:`sign_confidence`, which overestimates the
            success probability of Eq. (10) if the noise is larger than the gradient.
    """

    name: str
    entries: int
    grad_sq: float
    variance: float
    relative_variance: float
    signal_to_noise: float
    sign_confidence: float


def summarize(named_parameters: Iterable[tuple[str, Tensor]]) -> list[ParameterNoise]:
    """Summarize the noise of every parameter that has a gradient.

    Args:
        named_parameters: as from ``model.named_parameters()``.

    Returns:
        One row for each parameter with a gradient and at least one entry.

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
            sign_confidence(grad, grad_var).mean(),
        ]
    )
    return ParameterNoise(name, grad.numel(), *numbers.tolist())


def _reals(tensor: Tensor) -> Tensor:
    """Return the entries as a float64 vector, a complex entry as two."""
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.double().flatten()
