"""Spectra and orientations of the quadratics of Figure 2, and how axis-aligned they are (§2)."""

import numpy as np
from numpy.typing import ArrayLike

from svag.errors import InvalidOption
from svag.theory.factors import Array


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
    if mass.ndim != 2 or mass.shape[0] != mass.shape[1] or not 0 < mass.sum() < np.inf:
        raise InvalidOption(
            f"Q of shape {mass.shape} has no share of the diagonal; pass a square matrix with "
            "finite entries that are not all 0"
        )
    return float(np.trace(mass) / mass.sum())


def p_diag_bound(eigenvalues: ArrayLike, rotation: ArrayLike) -> float:
    """Lower bound of p_diag(R Lambda R^T), tr Q / sum_k lambda_k |r_k|_1^2.

    Over Haar rotations d times its mean is close to pi/2 = 1.57, whatever the spectrum. The paper
    states this of p_diag itself, of which it holds only if Q has rank 1 (:func:`p_diag_mean`).

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
    if r.shape != (len(lam), len(lam)):
        raise InvalidOption(f"rotation has shape {r.shape}; {len(lam)} eigenvalues need a square")
    return float(lam.sum() / (lam @ np.abs(r).sum(axis=0) ** 2))


def p_diag_mean(eigenvalues: ArrayLike, d: int | None = None) -> float:
    """Mean of p_diag over Haar rotations, approximately, for many and spread eigenvalues.

        lam / (lam + sqrt(2 d / pi) sd)

    with the mean lam and the standard deviation sd of the eigenvalues: off the diagonal an entry
    of Q is nearly N(0, sd^2/d). So it falls like d^(-1/2), not like the paper's 1.57/d.

    Args:
        eigenvalues: lambda >= 0, all of them or a sample of their distribution.
        d: dimension; None means the number of eigenvalues.

    Raises:
        InvalidOption: an eigenvalue is negative or none positive, or d is below 1.

    Example:
        >>> lam = np.linspace(0.1, 1.1, 100)
        >>> round(100 * p_diag_mean(lam), 1), round(400 * p_diag_mean(lam, 400), 1)
        (20.5, 45.7)
    """
    lam = _spectrum(eigenvalues)
    spread = np.sqrt(2 * _dimension(len(lam) if d is None else d) / np.pi) * lam.std()
    return float(lam.mean() / (lam.mean() + spread))


def _dimension(d: int) -> int:
    if d < 1:
        raise InvalidOption(f"d={d!r} is a dimension; it must be at least 1")
    return d


def _spectrum(eigenvalues: ArrayLike) -> Array:
    lam = np.asarray(eigenvalues, dtype=np.float64)
    if lam.ndim != 1 or not np.all(lam >= 0) or not 0 < lam.sum() < np.inf:
        raise InvalidOption(
            f"eigenvalues of shape {lam.shape} must be a vector of finite numbers >= 0, not all 0"
        )
    return lam
