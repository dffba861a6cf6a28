"""Stochastic quadratic problems, and what one step in a direction is expected to gain (§2)."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from svag.errors import InvalidOption
from svag.theory.factors import Array, expected_sign
from svag.theory.signs import expected_sign_form, expected_sign_product

Value: TypeAlias = float | Array
"""A float for one theta of shape (d,), an array of shape (...) for a stack (..., d)."""

_ASYMMETRY = 1e-10

_quietly = np.errstate(over="ignore", under="ignore")  # the limit stands in the result


class Improvement(NamedTuple):
    """A Monte Carlo estimate of an expected improvement.

    Attributes:
        value: expected improvement I of the loss.
        standard_error: of ``value``, to first order in the number of samples.
        step_size: alpha_*, which reaches it; negative along a direction of ascent.

    Example:
        >>> Improvement(value=0.3, standard_error=0.01, step_size=0.5).value
        0.3
    """

    value: float
    standard_error: float
    step_size: float


@dataclass(frozen=True, eq=False)
class StochasticQuadratic:
    """A quadratic loss that is seen through Gaussian noise: the paper's sQP (§2).

        l(theta; x) = 1/2 (theta - x)^T Q (theta - x),   x ~ N(x*, nu^2 I)

    Its stochastic gradients are g = Q (theta - x) ~ N(Q (theta - x*), nu^2 Q Q). (The paper prints
    nu^2 Q for their covariance, which contradicts its Eq. 13.) Directions and step sizes are
    those of theta + alpha z, with z = -g for SGD and z = -sign(g) for SSD, sign(0) = 0.

    Every method takes one ``theta`` of shape (d,), and returns a float where it returns a number,
    or a stack of shape (..., d). Where there is neither noise nor gradient, improvement and step
    size are 0. Scales far from 1 do no harm: all is computed on Q over a power of 2, and what
    leaves the range of float64 in the end becomes 0 or inf.

    Args:
        Q: Q, of shape (d, d), d >= 1; symmetric and positive definite.
        x_star: x*, the minimum, of shape (d,).
        noise: nu >= 0, the standard deviation of each entry of x.

    Raises:
        InvalidOption: Q is not square, finite, symmetric (to 1e-10 of its largest entry) and
            positive definite (to rounding), ``x_star`` does not fit it, or ``noise`` is negative
            or not finite.

    Example:
        >>> problem = StochasticQuadratic(np.diag([1.0, 4.0]), np.zeros(2), noise=0.5)
        >>> problem.loss([2.0, 1.0]), problem.suboptimality([2.0, 1.0])
        (4.625, 4.0)
        >>> problem.gradient([[2.0, 1.0], [0.0, 0.0]])
        array([[2., 4.],
               [0., 0.]])
    """

    Q: Array
    x_star: Array
    noise: float

    def __post_init__(self) -> None:
        matrix, minimum = _symmetric(self.Q), np.array(self.x_star, dtype=np.float64)
        if minimum.shape != matrix.shape[:1] or not np.isfinite(minimum).all():
            raise InvalidOption(
                f"x_star of shape {minimum.shape} does not fit Q of shape {matrix.shape}; it must "
                f"have shape {matrix.shape[:1]} and finite entries"
            )
        if not 0 <= self.noise < np.inf:
            raise InvalidOption(
                f"noise={self.noise!r} is a standard deviation; it must be finite and >= 0"
            )
        for name, array in (("Q", matrix), ("x_star", minimum)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "noise", float(self.noise))
        self._check_positive_definite()

    @property
    def dimension(self) -> int:
        """Number of parameters, d."""
        return len(self.x_star)

    @cached_property
    def eigenvalues(self) -> Array:
        """Eigenvalues lambda of Q, ascending."""
        if self._diagonal:
            return np.sort(np.diagonal(self.Q))
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.linalg.eigvalsh(self._unit) * self._scale)

    @_quietly
    def loss(self, theta: ArrayLike) -> Value:
        """L(theta) = 1/2 (theta - x*)^T Q (theta - x*) + nu^2/2 tr(Q) (Eq. 11)."""
        spread = self.noise * np.sqrt(np.trace(self._unit))
        return self.suboptimality(theta) + float(0.5 * spread * self._scale * spread)

    @_quietly
    def suboptimality(self, theta: ArrayLike) -> Value:
        """L(theta) minus its minimum nu^2/2 tr(Q)."""
        size, away = _unit(self._from_minimum(theta))
        return _value(0.5 * np.sum(away * (away @ self._unit), axis=-1) * size * self._scale * size)

    @_quietly
    def gradient(self, theta: ArrayLike) -> Array:
        """Gradient of the loss, Q (theta - x*)."""
        return np.asarray(self._unit_gradient(theta) * self._scale)

    def gradient_std(self, theta: ArrayLike | None = None) -> Array:
        """sigma_i = nu sqrt([Q^2]_ii), the standard deviations of a stochastic gradient.

        They are the same at every theta: read-only, of theta's shape, or (d,) without one.
        """
        shape = () if theta is None else self._from_minimum(theta).shape[:-1]
        with np.errstate(over="ignore"):
            std = self.noise * (self._unit_std * self._scale)
        return np.broadcast_to(std, (*shape, self.dimension))

    @_quietly
    def gradient_covariance(self) -> Array:
        """nu^2 Q Q, the covariance of a stochastic gradient, the same at every theta."""
        std = self.gradient_std()
        with np.errstate(invalid="ignore"):  # infinity times 0
            covariance = std * self._correlation * std[:, None]
        return np.where(self._correlation == 0, 0.0, covariance)

    @_quietly
    def sample_gradients(self, theta: ArrayLike, n: int, rng: np.random.Generator) -> Array:
        """Draw n stochastic gradients Q (theta - x) at each theta, of shape (n, ..., d).

        Args:
            theta: of shape (d,) or (..., d).
            n: number of draws at each theta.
            rng: draws the noise.

        Raises:
            InvalidOption: they leave the range of float64.
        """
        gradient = self.gradient(theta)
        if self.noise == 0:
            return np.repeat(gradient[None], n, axis=0)
        drawn = rng.standard_normal((n, *gradient.shape)) @ self._unit
        samples = np.asarray(gradient - self.noise * drawn * self._scale)
        if not np.isfinite(samples).all():
            raise InvalidOption(
                f"stochastic gradients with noise={self.noise:.3g} and entries of Q up to "
                f"{self._scale:.3g} leave the range of float64; scale Q, theta or noise down"
            )
        return samples

    def expected_sign(self, theta: ArrayLike) -> Array:
        """E[sign(g_i)] = (2 rho_i - 1) sign(grad_i) (Eq. 10)."""
        return expected_sign(self._ratio(self._unit_gradient(theta)))

    def expected_sign_products(self, theta: ArrayLike) -> Array:
        """E[s s^T] with s = sign(g), of shape (..., d, d), by Owen's T for every pair."""
        ratio = self._ratio(self._unit_gradient(theta))
        if self.noise == 0:
            sign = np.sign(ratio)
            return np.asarray(sign[..., :, None] * sign[..., None, :])
        row, column = np.triu_indices(self.dimension, 1)
        out = np.ones((*ratio.shape, self.dimension))
        out[..., row, column] = out[..., column, row] = expected_sign_product(
            ratio[..., row], ratio[..., column], self._correlation[row, column]
        )
        return out

    @_quietly
    def expected_sign_curvature(self, theta: ArrayLike, *, exact: bool = True) -> Value:
        """E[s^T Q s] = sum_ij q_ij E[s_i s_j] with s = sign(g), the denominator of I_SSD.

        Args:
            theta: of shape (d,) or (..., d); many at once are cheap.
            exact: False means its upper bound sum_ij |q_ij| = tr(Q)/p_diag(Q), Eq. (14)'s.
        """
        return _value(self._sign_curvature(self._unit_gradient(theta), exact) * self._scale)

    @_quietly
    def expected_improvement_sgd(self, theta: ArrayLike) -> Value:
        """Expected improvement of an SGD step of optimal size (Eq. 13).

        I_SGD = 1/2 (grad^T grad)^2 / (grad^T Q grad + nu^2 sum_i lambda_i^3)

        Example:
            >>> StochasticQuadratic(np.eye(2), np.zeros(2), 1.0).expected_improvement_sgd([1, 1])
            0.5
        """
        size, unit = _unit(self._unit_gradient(theta))
        slope = np.sum(unit**2, axis=-1)
        gain = 0.5 * slope**2 / self._sgd_curvature(size, unit)
        return _value(size * (size * self._scale) * gain)

    @_quietly
    def optimal_step_size_sgd(self, theta: ArrayLike) -> Value:
        """alpha_* of SGD, grad^T grad / (grad^T Q grad + nu^2 sum_i lambda_i^3) (before Eq. 12)."""
        size, unit = _unit(self._unit_gradient(theta))
        slope = np.sum(unit**2, axis=-1)
        return _value(slope / self._sgd_curvature(size, unit) / self._scale)

    @_quietly
    def expected_improvement_ssd(self, theta: ArrayLike, *, exact: bool = True) -> Value:
        """Expected improvement of an SSD step of optimal size (Eqs. 12 and 14).

        I_SSD = 1/2 (sum_i (2 rho_i - 1) |grad_i|)^2 / E[s^T Q s],   s = sign(g)

        Args:
            theta: of shape (d,) or (..., d).
            exact: with the exact denominator (:func:`~svag.theory.expected_sign_form`); False
                means the lower bound of Eq. (14), tr(Q)/p_diag(Q) in its place. The two agree
                for a diagonal Q with noise.

        Example:
            >>> problem = StochasticQuadratic([[2, 1], [1, 2]], [0, 0], noise=1.0)
            >>> exact = problem.expected_improvement_ssd([1, -1])
            >>> bound = problem.expected_improvement_ssd([1, -1], exact=False)
            >>> f"{exact:.4f} >= {bound:.4f}"
            '0.0525 >= 0.0397'
        """
        slope = self._sign_slope(self._unit_gradient(theta)) * self._scale
        return _value(0.5 * slope * self.optimal_step_size_ssd(theta, exact=exact))

    @_quietly
    def optimal_step_size_ssd(self, theta: ArrayLike, *, exact: bool = True) -> Value:
        """alpha_* of SSD, sum_i (2 rho_i - 1) |grad_i| / E[s^T Q s] (before Eq. 12).

        Args:
            theta: of shape (d,) or (..., d).
            exact: False takes tr(Q)/p_diag(Q) for the denominator, as Eq. (14) does, which is
                several times too large where Q is not diagonal.
        """
        gradient = self._unit_gradient(theta)
        slope, curvature = self._sign_slope(gradient), self._sign_curvature(gradient, exact)
        return _value(slope / np.where(slope > 0, curvature, 1))

    @_quietly
    def expected_improvement(self, theta: ArrayLike, directions: ArrayLike) -> Improvement:
        """Expected improvement along any random direction z, from samples of it (Eq. 12).

            I = (grad^T E[z])^2 / (2 E[z^T Q z]),   alpha_* = -grad^T E[z] / E[z^T Q z]

        by averages over the samples; the standard error is that of alpha_* grad^T z_k +
        alpha_*^2/2 z_k^T Q z_k, the change of the loss (delta method).

        Args:
            theta: of shape (d,).
            directions: samples of z at this theta, of shape (n, d), n >= 2.

        Raises:
            InvalidOption: the shapes are others, or a direction is not finite.

        Example:
            >>> problem = StochasticQuadratic(np.eye(2), np.zeros(2), 1.0)
            >>> g = problem.sample_gradients([1, 1], 100_000, np.random.default_rng(0))
            >>> found = problem.expected_improvement([1, 1], -g)
            >>> abs(found.value - 0.5) < 3 * found.standard_error
            True
        """
        gradient, z = self._unit_gradient(theta), np.asarray(directions, dtype=np.float64)
        if gradient.ndim != 1 or z.ndim != 2 or len(z) < 2 or z.shape[1] != self.dimension:
            raise InvalidOption(
                f"directions of shape {z.shape} at theta of shape {gradient.shape}; pass at least "
                f"two samples, (n, {self.dimension}), and one theta, ({self.dimension},)"
            )
        if not np.isfinite(z).all():
            raise InvalidOption("directions hold NaN or inf; all must be finite")
        size, g = _unit(gradient)
        length = np.abs(z).max()
        z = z / np.where(length > 0, length, 1)
        slope, curvature = -(z @ g), np.einsum("ni,ni->n", z, z @ self._unit)
        if not curvature.any():
            return Improvement(0.0, 0.0, 0.0)
        alpha = slope.mean() / curvature.mean()
        gain = alpha * slope - 0.5 * alpha**2 * curvature
        error = gain.std(ddof=1) / np.sqrt(len(z))
        value, error = (float(x * size * self._scale * size) for x in (gain.mean(), error))
        return Improvement(value, error, float(alpha * (size / length)))

    def _check_positive_definite(self) -> None:
        lowest, highest = self.eigenvalues[[0, -1]]
        floor = 0.0 if self._diagonal else self.dimension * np.finfo(np.float64).eps * highest
        if not lowest > floor:
            raise InvalidOption(
                f"Q has the eigenvalue {lowest:.3g}; it must be positive definite, with every "
                f"eigenvalue above {floor:.3g} (rounding). Add a multiple of the identity"
            )

    def _from_minimum(self, theta: ArrayLike) -> Array:
        parameters = np.asarray(theta, dtype=np.float64)
        if parameters.shape[-1:] != (self.dimension,):
            raise InvalidOption(
                f"theta has shape {parameters.shape}; this problem takes ({self.dimension},) or "
                f"a stack (..., {self.dimension})"
            )
        if not np.isfinite(parameters).all():
            raise InvalidOption("theta holds NaN or inf; the loss there is not defined")
        return np.asarray(parameters - self.x_star)

    def _ratio(self, gradient: Array) -> Array:
        """grad/sigma; without noise +-inf, and 0 where the gradient is 0."""
        if self.noise == 0:
            return np.asarray(np.where(gradient == 0, 0, np.copysign(np.inf, gradient)))
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(gradient / self._unit_std / self.noise)

    def _sign_slope(self, gradient: Array) -> Array:
        return np.asarray(np.sum(gradient * expected_sign(self._ratio(gradient)), axis=-1))

    def _sign_curvature(self, gradient: Array, exact: bool) -> Array:
        """E[s^T Q s] in units of the scale of Q."""
        if not exact:
            return np.full(gradient.shape[:-1], np.abs(self._unit).sum())
        if self.noise == 0:
            sign = np.sign(gradient)
            return np.asarray(np.sum(sign * (sign @ self._unit), axis=-1))
        stack = self._ratio(gradient).reshape(-1, self.dimension)
        form = expected_sign_form(self._unit, stack, self._correlation)
        return form.reshape(gradient.shape[:-1])

    def _sgd_curvature(self, size: Array, unit: Array) -> Array:
        """E[g^T Q g] of a gradient ``size * unit``, over size^2 and the scale of Q; 1 for none."""
        noise = np.sqrt(np.einsum("ij,ik,jk->", self._unit, self._unit, self._unit, optimize=True))
        curvature = np.sum(unit * (unit @ self._unit), axis=-1) + (self.noise * (noise / size)) ** 2
        return np.asarray(np.where(unit.any(axis=-1), curvature, 1))

    def _unit_gradient(self, theta: ArrayLike) -> Array:
        """The gradient in units of the scale of Q."""
        return np.asarray(self._from_minimum(theta) @ self._unit)

    @cached_property
    def _diagonal(self) -> bool:
        return bool(np.array_equal(self.Q, np.diag(np.diagonal(self.Q))))

    @cached_property
    def _scale(self) -> float:
        """A power of 2 near the largest entry of Q, so that dividing by it rounds nothing."""
        return float(np.exp2(np.floor(np.log2(np.abs(self.Q).max()))))

    @cached_property
    def _unit(self) -> Array:
        """Q in units of its scale."""
        return np.asarray(self.Q / self._scale)

    @cached_property
    def _rows(self) -> tuple[Array, Array]:
        """Lengths of the rows of Q, in units of its scale, and the rows as unit vectors."""
        largest = np.abs(self._unit).max(axis=1, keepdims=True)
        rows = self._unit / largest
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return (largest * length)[:, 0], rows / length

    @property
    def _unit_std(self) -> Array:
        """Standard deviations of a stochastic gradient at nu = 1, in units of the scale of Q."""
        return self._rows[0]

    @cached_property
    def _correlation(self) -> Array:
        """Correlations of the entries of a stochastic gradient, whatever the noise level."""
        return np.asarray(np.clip(self._rows[1] @ self._rows[1].T, -1, 1))


def _symmetric(matrix: ArrayLike) -> Array:
    """Copy a symmetric matrix, its asymmetry of rounding averaged out."""
    copy = np.array(matrix, dtype=np.float64)
    if copy.ndim != 2 or copy.shape[0] != copy.shape[1] or not copy.size:
        raise InvalidOption(f"Q has shape {copy.shape}; it must be (d, d) with d >= 1")
    if not np.isfinite(copy).all():
        raise InvalidOption("Q has entries that are NaN or infinite; all must be finite")
    with np.errstate(over="ignore"):
        asymmetry, allowed = np.abs(copy - copy.T).max(), _ASYMMETRY * np.abs(copy).max()
    if asymmetry > allowed:
        raise InvalidOption(
            f"Q differs from its transpose by {asymmetry:.3g}; it must be symmetric, to "
            f"{allowed:.3g} (rounding). Use (Q + Q.T) / 2"
        )
    return np.asarray(copy / 2 + copy.T / 2) if asymmetry else copy


def _unit(vectors: Array) -> tuple[Array, Array]:
    """Split vectors into sizes and what is left, so that squares of it stay in range."""
    size = np.max(np.abs(vectors), axis=-1)
    size = np.where(size > 0, size, 1)
    return size, vectors / size[..., None]


def _value(number: Array) -> Value:
    """One number as a float, several as the array they are."""
    return float(number) if np.ndim(number) == 0 else np.asarray(number)
