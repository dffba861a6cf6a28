"""Spectra and orientations of the quadratics of Figure 2, and how axis-aligned they are (§2)."""

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from svag.errors import InvalidOption
from svag.theory.factors import Array

Spectrum: TypeAlias = Literal["well-conditioned", "ill-conditioned"]


def eigenvalues_uniform(d: int, rng: np.random.Generator) -> Array:
    """Draw d eigenvalues from U[0.1, 1.1], the well-conditioned spectrum of §2.2.

    Raises:
        InvalidOption: d is below 1.

    Example:
        >>> eigenvalues_uniform(3, np.random.default_rng(0)).round(3)
        array([0.737, 0.37 , 0.141])
    """
    return rng.uniform(0.1, 1.1, _dimension(d))


def eigenvalues_structured(d: int, rng: np.random.Generator) -> Array:
    """Draw 90 % of d eigenvalues from U[0, 1] and 10 % from U[30, 60] (§2.2).

    The ill-conditioned spectrum, after one that Chaudhari et al. (2017) report. The 10 % are
    rounded to a whole number, 0 below d = 6.

    Raises:
        InvalidOption: d is below 1.

    Example:
        >>> eigenvalues_structured(10, np.random.default_rng(0)).round(2)[-2:]
        array([ 0.54, 58.05])
    """
    large = round(_dimension(d) / 10)
    return np.concatenate([rng.uniform(0, 1, d - large), rng.uniform(30, 60, large)])


SPECTRA: Final[Mapping[Spectrum, Callable[[int, np.random.Generator], Array]]] = {
    "well-conditioned": eigenvalues_uniform,
    "ill-conditioned": eigenvalues_structured,
}
"""What draws the eigenvalues of each spectrum of §2.2."""


def random_rotation(d: int, rng: np.random.Generator) -> Array:
    """Draw a rotation matrix uniformly from SO(d), by Haar measure (§2.2).

    The orthogonal factor of a Gaussian matrix, its columns signed so that the triangular factor
    has a positive diagonal, is uniform on O(d); a mirror image is flipped in one column.

    Raises:
        InvalidOption: d is below 1.

    Example:
        >>> R = random_rotation(3, np.random.default_rng(0))
        >>> np.allclose(R @ R.T, np.eye(3)), np.linalg.det(R) > 0
        (True, np.True_)
    """
    orthogonal, triangular = np.linalg.qr(rng.standard_normal((_dimension(d), d)))
    rotation = orthogonal * np.where(np.diagonal(triangular) < 0, -1.0, 1.0)
    if np.linalg.slogdet(rotation)[0] < 0:
        rotation[:, 0] *= -1
    return np.asarray(rotation)


def rotated_and_aligned(spectrum: Spectrum, d: int, rng: np.random.Generator) -> dict[bool, Array]:
    """Draw eigenvalues and a rotation, and build a matrix with and without the rotation (§2.2).

    Args:
        spectrum: a key of :data:`SPECTRA`.
        d: dimension, at least 1.
        rng: draws the eigenvalues first, the rotation R next.

    Returns:
        ``{True: R Lambda R^T, False: Lambda}``, both of shape (d, d), with the same eigenvalues.

    Raises:
        InvalidOption: d is below 1, or there is no such spectrum.

    Example:
        >>> Q = rotated_and_aligned("well-conditioned", 2, np.random.default_rng(0))
        >>> Q[False].round(3)
        array([[0.737, 0.   ],
               [0.   , 0.37 ]])
        >>> np.linalg.eigvalsh(Q[True]).round(3)
        array([0.37 , 0.737])
    """
    if spectrum not in SPECTRA:
        raise InvalidOption(f"spectrum={spectrum!r}; choose one of {', '.join(SPECTRA)}")
    eigenvalues, rotation = SPECTRA[spectrum](d, rng), random_rotation(d, rng)
    return {True: (rotation * eigenvalues) @ rotation.T, False: np.diag(eigenvalues)}


def p_diag(Q: ArrayLike) -> float:  # noqa: N803
    """Share of the diagonal in the mass of Q, sum_i |q_ii| / sum_ij |q_ij| (Eq. 14).

    For positive semi-definite Q it is in [1/d, 1]: 1 for a diagonal Q, 1/d for v v^T with all
    |v_i| the same.

    Args:
        Q: of shape (d, d).

    Raises:
        InvalidOption: Q is not square and finite, or all of it is 0.

    Example:
        >>> p_diag([[2.0, -1.0], [-1.0, 2.0]])
        0.6666666666666666
    """
    mass = np.abs(np.asarray(Q, dtype=np.float64))
    largest = mass.max(initial=0)
    if mass.ndim != 2 or mass.shape[0] != mass.shape[1] or not 0 < largest < np.inf:
        raise InvalidOption(
            f"Q of shape {mass.shape} has no share of the diagonal; pass a square matrix with "
            "finite entries that are not all 0"
        )
    mass /= largest  # so that no sum overflows
    return float(np.trace(mass) / mass.sum())


def p_diag_bound(eigenvalues: ArrayLike, rotation: ArrayLike) -> float:
    """Lower bound of p_diag(R Lambda R^T), tr Q / sum_k lambda_k |r_k|_1^2.

    Over Haar rotations d times its mean is close to pi/2 = 1.57, whatever the spectrum. The paper
    states this of p_diag itself, for which it holds only if Q has rank 1 (:func:`p_diag_mean`).

    Args:
        eigenvalues: lambda >= 0, of shape (d,).
        rotation: R, of shape (d, d), its columns r_k the eigenvectors.

    Raises:
        InvalidOption: the shapes do not fit, or an eigenvalue is negative or none positive.

    Example:
        >>> p_diag_bound([1.0, 3.0], np.eye(2))
        1.0
    """
    lam, r = _spectrum(eigenvalues), np.asarray(rotation, dtype=np.float64)
    if r.shape != (len(lam), len(lam)) or not np.isfinite(r).all():
        raise InvalidOption(
            f"rotation has shape {r.shape}; {len(lam)} eigenvalues need a square of finite entries"
        )
    return float(lam.sum() / (lam @ np.abs(r).sum(axis=0) ** 2))


def p_diag_mean(eigenvalues: ArrayLike, d: int | None = None) -> float:
    """Approximate mean of p_diag over Haar rotations; exactly 1 for d = 1 or equal eigenvalues.

        lam / (lam + (d - 1) sqrt(2/pi) q),   q^2 = E q_ij^2 = d sd^2 / ((d - 1)(d + 2))

    with the mean lam and the standard deviation sd of the eigenvalues. E q_ij^2 (i != j) is exact.
    The approximation treats the off-diagonal entries as Gaussian. With eigenvalues from
    U[0.1, 1.1] it is 1 % off at d = 2 and 0.1 % at d = 10; with the structured spectrum of §2.2,
    where few eigenvalues are far from the rest, it is 13 % low at d = 10 and 3 % at d = 50. So
    p_diag falls like d^(-1/2), not like the paper's 1.57/d.

    Args:
        eigenvalues: lambda >= 0: all of them, or, with ``d``, a sample of their distribution.
        d: dimension of matrices whose eigenvalues are drawn from that distribution, one by one:
            their sd^2 is then (d - 1)/d times that of the distribution on average. None means
            that the eigenvalues are these.

    Raises:
        InvalidOption: an eigenvalue is negative or none positive, or d is below 1.

    Example:
        >>> lam = np.linspace(0.1, 1.1, 100)
        >>> round(100 * p_diag_mean(lam), 1), round(400 * p_diag_mean(lam, 400), 1)
        (20.7, 45.9)
        >>> p_diag_mean([0.1, 1.1, 0.5], 1)
        1.0
    """
    lam = _spectrum(eigenvalues)
    size = len(lam) if d is None else _dimension(d)
    if size == 1:
        return 1.0
    square = lam.var() / (size + 2) * (size / (size - 1) if d is None else 1.0)
    beside = (size - 1) * np.sqrt(2 / np.pi * square)
    return float(lam.mean() / (lam.mean() + beside))


def _dimension(d: int) -> int:
    if not d >= 1 or d != int(d):
        raise InvalidOption(f"d={d!r} is a dimension; it must be a whole number, at least 1")
    return int(d)


def _spectrum(eigenvalues: ArrayLike) -> Array:
    lam = np.asarray(eigenvalues, dtype=np.float64)
    if lam.ndim != 1 or not np.all(lam >= 0) or not 0 < lam.max(initial=0) < np.inf:
        raise InvalidOption(
            f"eigenvalues of shape {lam.shape} must be a vector of finite numbers >= 0, not all 0"
        )
    return np.asarray(lam / lam.max())  # shares depend on no scale, and no sum overflows
