"""Binary least squares, where methods that take the sign stay on a line (§5).

    R(theta) = 1/(2n) |X theta - y|^2,    y in {-1, 1}^n                              (Eq. 26)

Lemmas 2 and 3 say when full-batch Adam, AdaGrad, RMSProp and sign descent never leave the line
through sign(X^T y): started at 0, without an eps, if X sign(X^T y) = c y. M-SVAG and gradient
descent do leave it. One departure: the paper assumes [X^T y]_i != 0 for all i; with sign(0) = 0
and 0/0 := 0 a coordinate where it is 0 has no gradient on the line and stays 0. The same choice
is needed where an iterate hits X theta = y exactly: with the paper's sign(0) = 1 (its footnote 3)
sign descent then leaves the line through sign(X^T y) along (1, ..., 1), against Lemma 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from scipy.optimize import nnls

from svag.anatomy import METHODS, Anatomy
from svag.errors import InvalidOption
from svag.theory.factors import Array
from svag.theory.rules import AdaGrad, AnatomyRule, RMSProp, Rule

FullBatch = Literal["sign-descent", "adam", "adagrad", "rmsprop", "gd", "m-svag"]
FULL_BATCH: Final[tuple[FullBatch, ...]] = get_args(FullBatch)


@dataclass(frozen=True)
class LeastSquares:
    """Binary least squares (Eq. 26).

    Attributes:
        X: features, (n, d).
        y: labels, (n,), each 1 or -1.

    Raises:
        InvalidOption: shapes do not match, an entry is not finite, or a label is not 1 or -1.

    Example:
        >>> problem = LeastSquares(np.eye(2), np.array([1.0, -1.0]))
        >>> float(problem.risk(np.zeros(2)))
        0.5
    """

    X: Array
    y: Array

    def __post_init__(self) -> None:
        X, y = np.asarray(self.X, np.float64), np.asarray(self.y, np.float64)  # noqa: N806
        if X.ndim != 2 or y.shape != X.shape[:1] or X.size == 0:
            raise InvalidOption(
                f"X has shape {X.shape} and y {y.shape}; they must be (n, d) and (n,), n, d >= 1"
            )
        if not np.isfinite(X).all():
            raise InvalidOption("X has entries that are not finite; remove those examples")
        if not np.isin(y, (-1.0, 1.0)).all():
            raise InvalidOption(f"y has labels {np.unique(y)}; each must be 1 or -1")
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "y", y)

    def residual(self, theta: Array) -> Array:
        """X theta - y, (n,)."""
        return self.X @ theta - self.y

    @property
    def _scaled(self) -> tuple[float, Array]:
        """The largest entry of X, or 1 if all are 0, and X in units of it."""
        scale = float(np.abs(self.X).max()) or 1.0
        return scale, self.X / scale

    def risk(self, theta: Array) -> float:
        """R(theta) (Eq. 26)."""
        return float(np.mean(self.residual(theta) ** 2) / 2)

    def gradient(self, theta: Array) -> Array:
        """X^T (X theta - y) / n, (d,)."""
        return self.residual(theta) @ self.X / len(self.y)

    def smoothness(self) -> float:
        """L, the largest eigenvalue of X^T X / n: gradient descent is stable below 2/L.

        Raises:
            InvalidOption: L leaves the range of float64.
        """
        scale, unit = self._scaled
        root = float(np.linalg.norm(unit, 2)) * scale
        with np.errstate(over="ignore", under="ignore"):
            L = float(root * (root / len(self.y)))  # noqa: N806
        if np.isinf(L) or (L == 0 and unit.any()):
            raise InvalidOption(
                f"X has entries up to {scale:.3g}: the curvature X^T X / n leaves the range of "
                "float64. Scale the features"
            )
        return L

    def train_error(self, theta: Array) -> float:
        """Share of the examples that sign(X theta) gets wrong; 0 and NaN are wrong."""
        return float(np.mean(~(self.y * (self.X @ theta) > 0)))

    def sign_direction(self) -> Array:
        """sign(X^T y), where Lemmas 2 and 3 keep the iterates, (d,)."""
        return np.sign(self.y @ self.X)

    def lemma2_constant(self) -> float | None:
        """Return c with X sign(X^T y) = c y, the premise of Lemmas 2 and 3, or None without one.

        Example:
            >>> LeastSquares(np.eye(2), np.array([1.0, -1.0])).lemma2_constant()
            1.0
        """
        scores = self.y * (self.X @ self.sign_direction())
        c = float(scores.mean())
        scale = np.abs(self.X).sum(axis=1).max()
        return c if np.abs(scores - c).max() <= 1e-12 * scale else None

    def max_margin(self) -> Array:
        """The w of least norm with y_i x_i^T w >= 1 for all i, (d,), no intercept.

        A least distance problem, on features scaled to 1: with E = [(y x)^T; 1^T], f = (0, ..., 0,
        1) and r = E u - f for the u >= 0 that minimises |r|, it is w = -r[:-1]/r[-1] (Lawson &
        Hanson 1974, ch. 23). Gradient descent on R goes elsewhere, to :meth:`least_norm`, unless
        every example is a support vector.

        Raises:
            InvalidOption: the examples are not linearly separable, or by so little that rounding
                hides it.
        """
        scale, unit = self._scaled
        rows = self.y[:, None] * unit
        E = np.vstack((rows.T, np.ones(len(self.y))))  # noqa: N806
        f = np.append(np.zeros(self.X.shape[1]), 1.0)
        u, _ = nnls(E, f)
        r = E @ u - f
        w = -r[:-1] / r[-1] if r[-1] < 0 else np.zeros(len(f) - 1)
        if not (rows @ w > 1 - 1e-6).all():
            raise InvalidOption(
                f"the {len(self.y)} examples are not linearly separable; there is no max-margin "
                "solution"
            )
        return np.asarray(w / scale)

    def least_norm(self) -> Array:
        """The w of least norm among the minimisers of R, X^+ y, (d,): gradient descent's limit.

        The paper has the non-adaptive methods "provably converge to the max-margin solution" on
        these problems. From theta_0 = 0 they converge to this one. The two have one direction if
        every example is a support vector, that is, if no y_i [(X X^T)^-1 y]_i is negative, as on
        the data of Wilson et al. In general they differ: by 63 degrees for X = [[1, 0], [3, 1]], y
        = (1, 1).

        Example:
            >>> problem = LeastSquares(np.array([[1.0, 0.0], [3.0, 1.0]]), np.ones(2))
            >>> problem.least_norm().round(12), problem.max_margin().round(12)
            (array([ 1., -2.]), array([1., 0.]))
        """
        scale, unit = self._scaled
        return np.asarray(np.linalg.pinv(unit) @ self.y / scale)


def full_batch_iterates(
    problem: LeastSquares, method: FullBatch, steps: int, *, lr: float | None = None
) -> Iterator[Array]:
    """Run a method on the exact gradient of R from theta_0 = 0, without an eps.

    Decays are the usual: Adam (0.9, 0.999), RMSProp 0.99, M-SVAG 0.9.

    Args:
        problem: what to minimise.
        method: one of :data:`FULL_BATCH`.
        steps: how many.
        lr: step size; None takes 1/L for those that keep the gradient's magnitude and 1e-3 for
            those that take its sign, 1e-1 for AdaGrad.

    Returns:
        theta_1, ..., theta_steps; not finite where a step size is too large.

    Raises:
        InvalidOption: there is no such method, or the step size is not positive and finite.

    Example:
        >>> problem = LeastSquares(np.eye(2), np.array([1.0, -1.0]))
        >>> next(full_batch_iterates(problem, "adam", 1, lr=0.5))
        array([ 0.5, -0.5])
    """
    rule = _rule(method)
    if lr is None:
        lr = _default_lr(problem, method)
    if not (lr > 0 and np.isfinite(lr)):
        raise InvalidOption(f"lr={lr!r} must be positive and finite")
    return iterates(problem, rule, steps, lr)


def iterates(problem: LeastSquares, rule: Rule, steps: int, lr: float) -> Iterator[Array]:
    """Run a rule on the exact gradient of R from theta_0 = 0.

    Args:
        problem: what to minimise.
        rule: gives gamma * d; its averages are changed.
        steps: how many.
        lr: step size > 0.

    Yields:
        theta_1, ..., theta_steps, (d,) each; not finite where the step size is too large.
    """
    theta = np.zeros(problem.X.shape[1])
    for _ in range(steps):
        with np.errstate(over="ignore", invalid="ignore"):
            theta = theta - lr * rule(problem.gradient(theta))
        yield theta


def proportionality_error(theta: Array, direction: Array) -> float:
    """How far theta is from c * direction for the best c: 0 on the line, at most 1.

    max_i |theta_i - c direction_i| / max_i |theta_i|, c the least-squares coefficient; 0 for
    theta = 0, NaN for one that has diverged.

    Args:
        theta: a parameter, (d,).
        direction: of the line through 0, (d,).

    Raises:
        InvalidOption: shapes differ, or the direction is 0 or not finite.

    Example:
        >>> proportionality_error(np.array([-3.0, 3.0]), np.array([1.0, -1.0]))
        0.0
    """
    theta, direction = np.asarray(theta, np.float64), np.asarray(direction, np.float64)
    if theta.shape != direction.shape or not direction.any():
        raise InvalidOption(
            f"theta has shape {theta.shape} and the direction {direction.shape}; they must be the "
            "same, and the direction not 0"
        )
    if not np.isfinite(direction).all():
        raise InvalidOption("the direction holds NaN or inf; it must be finite")
    size = np.abs(theta).max()
    if size == 0 or not np.isfinite(size):
        return 0.0 if size == 0 else float("nan")
    theta, direction = theta / size, direction / np.abs(direction).max()
    c = theta @ direction / (direction @ direction)
    return float(np.abs(theta - c * direction).max())


def angle(a: Array, b: Array) -> float:
    """Angle between two vectors in degrees, accurate near 0 (Kahan); NaN if one is 0 or diverged.

    Example:
        >>> round(angle(np.array([1.0, 0.0]), np.array([2.0, 2.0])), 12)
        45.0
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (a.any() and b.any() and np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares stay in range
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))))


def _rule(method: str) -> Rule:
    if method == "adagrad":
        return AdaGrad()
    if method == "rmsprop":
        return RMSProp()
    if method in ("sign-descent", "gd"):
        return AnatomyRule(Anatomy(sign=method == "sign-descent"))
    if method in ("adam", "m-svag"):
        row = METHODS[method]
        return AnatomyRule(row.anatomy, row.betas, eps=0.0)
    raise InvalidOption(f"method={method!r}; choose one of {', '.join(map(repr, FULL_BATCH))}")


def _default_lr(problem: LeastSquares, method: FullBatch) -> float:
    if method in ("gd", "m-svag"):
        return 1 / problem.smoothness()
    return 0.1 if method == "adagrad" else 1e-3
