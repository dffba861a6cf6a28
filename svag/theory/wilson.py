"""The data of Wilson et al. (2017), on which taking the sign spoils generalization (§5)."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import betaincinv

from svag.errors import InvalidOption
from svag.theory.factors import Array
from svag.theory.separable import (
    FULL_BATCH,
    FullBatch,
    LeastSquares,
    angle,
    full_batch_iterates,
    proportionality_error,
)

_SHARED: Final = 3
_BLOCK: Final = 5
_SOLVED: Final = 1e-6


def wilson_data(n: int, p: float = 0.7, *, seed: int = 0) -> LeastSquares:
    """Draw the data of Wilson et al. (2017) with n examples and d = 3 + 5n features.

    y_i = 1 with probability p, else -1. Feature 1 is y_i; features 2 and 3 are 1; of the five
    features that only example i has, the first (y_i = 1) or all (y_i = -1) are 1; the rest are
    0. Labels are drawn again until their sum is positive; then X sign(X^T y) = 4 y.

    Args:
        n: examples.
        p: probability of the label 1, in (1/2, 1).
        seed: of the labels.

    Raises:
        InvalidOption: n < 1, or p outside (1/2, 1).

    Example:
        >>> wilson_data(10).lemma2_constant()
        4.0
    """
    if n < 1:
        raise InvalidOption(f"n={n!r} examples; draw at least 1")
    _check_majority(p)
    rng = np.random.default_rng(seed)
    y = np.full(n, -1.0)
    while y.sum() <= 0:
        y = np.where(rng.random(n) < p, 1.0, -1.0)
    own = np.zeros((n, n, _BLOCK))
    own[np.arange(n), np.arange(n)] = np.where(y[:, None] > 0, np.eye(_BLOCK)[0], 1.0)
    shared = np.column_stack((y, np.ones((n, _SHARED - 1))))
    return LeastSquares(np.hstack((shared, own.reshape(n, -1))), y)


@dataclass(frozen=True)
class ErrorRate:
    """Share of fresh examples that theta gets wrong.

    Attributes:
        estimate: on the examples drawn.
        interval: Clopper and Pearson's, 95 %.
        expected: its exact expectation, from p and features 1 to 3.
        n: how many were drawn.

    Example:
        >>> ErrorRate(estimate=0.31, interval=(0.28, 0.34), expected=0.3, n=1_000).expected
        0.3
    """

    estimate: float
    interval: tuple[float, float]
    expected: float
    n: int


def wilson_test_error(theta: Array, p: float = 0.7, *, n: int = 10_000, seed: int = 0) -> ErrorRate:
    """Measure theta on fresh examples of :func:`wilson_data`.

    The features that only a fresh example has are none of those that theta was trained on. Its
    score is therefore y theta_1 + theta_2 + theta_3, and no feature has to be built.

    Args:
        theta: trained parameter, (3 + 5 n_train,); its first three entries are read.
        p: probability of the label 1.
        n: fresh examples.
        seed: of their labels.

    Raises:
        InvalidOption: theta has no three entries, n < 1, or p outside (1/2, 1).

    Example:
        >>> found = wilson_test_error(np.array([0.0, 1.0, 1.0]))  # it says 1 of every example
        >>> round(found.expected, 12)
        0.3
    """
    theta = np.asarray(theta, np.float64)
    if theta.ndim != 1 or len(theta) < _SHARED or n < 1:
        raise InvalidOption(
            f"theta has shape {theta.shape}, n={n!r}; pass a vector of at least {_SHARED} entries "
            "and n >= 1"
        )
    _check_majority(p)
    score = {y: y * (y * theta[0] + theta[1] + theta[2]) for y in (1, -1)}
    wrong = {y: not score[y] > 0 for y in score}  # NaN is wrong
    positive = int((np.random.default_rng([seed, 1]).random(n) < p).sum())
    errors = positive * wrong[1] + (n - positive) * wrong[-1]
    return ErrorRate(
        estimate=errors / n,
        interval=clopper_pearson(errors, n),
        expected=p * wrong[1] + (1 - p) * wrong[-1],
        n=n,
    )


@dataclass(frozen=True)
class LineCourse:
    """A method's iterates on a problem, beside the line through sign(X^T y).

    Attributes:
        method: one of :data:`~svag.theory.separable.FULL_BATCH`.
        distances: proportionality errors of the iterates before the first with
            |X theta - y| <= 1e-6 |y|; from there on round-off dominates the residual, which the
            lemmas do not cover.
        end: the last iterate, (d,).
    """

    method: FullBatch
    distances: Array
    end: Array


def course(problem: LeastSquares, method: FullBatch, steps: int) -> LineCourse:
    """Run a method, and measure how far from the line through sign(X^T y) it goes.

    Args:
        problem: with labels y and features X.
        method: one of :data:`~svag.theory.separable.FULL_BATCH`, with its default step size.
        steps: how many, at least 1.

    Raises:
        InvalidOption: there is no such method, or no step.
    """
    if steps < 1:
        raise InvalidOption(f"steps={steps!r}; take at least 1")
    line, least = problem.sign_direction(), _SOLVED * np.linalg.norm(problem.y)
    distances: list[float] = []
    solved = False
    for theta in full_batch_iterates(problem, method, steps):
        solved = solved or bool(np.linalg.norm(problem.residual(theta)) <= least)
        if not solved:
            distances.append(proportionality_error(theta, line))
    return LineCourse(method, np.array(distances), theta)


@dataclass(frozen=True)
class WilsonRow:
    """What a method does on the data of Wilson et al.

    Attributes:
        method: one of :data:`~svag.theory.separable.FULL_BATCH`.
        compared: how many iterates are compared with the line (:class:`LineCourse`).
        nearest: the least proportionality error to sign(X^T y) among them.
        farthest: the largest.
        residual: |X theta - y|/|y| in the end.
        train_error: in the end.
        test_error: in the end.
        to_max_margin: angle to the max-margin solution in the end, degrees.

    Example:
        >>> row = wilson_comparison(20, steps=50)[0]
        >>> row.method, row.compared
        ('sign-descent', 50)
    """

    method: FullBatch
    compared: int
    nearest: float
    farthest: float
    residual: float
    train_error: float
    test_error: ErrorRate
    to_max_margin: float


def wilson_comparison(
    n: int, p: float = 0.7, *, steps: int = 2_000, seed: int = 0, n_test: int = 10_000
) -> list[WilsonRow]:
    """Run every full-batch method on the same data, and measure where it goes.

    Args:
        n: training examples.
        p: probability of the label 1.
        steps: of each method, with its default step size.
        seed: of the labels, training and fresh.
        n_test: fresh examples.

    Returns:
        One row for each of :data:`~svag.theory.separable.FULL_BATCH`.

    Raises:
        InvalidOption: as :func:`wilson_data` and :func:`wilson_test_error`, or there is no step.

    Example:
        >>> rows = {row.method: row for row in wilson_comparison(20, steps=300)}
        >>> rows["sign-descent"].farthest < 1e-8 < rows["m-svag"].nearest
        True
        >>> round(rows["sign-descent"].test_error.expected, 12), rows["gd"].test_error.expected
        (0.3, 0.0)
    """
    problem = wilson_data(n, p, seed=seed)
    max_margin = problem.max_margin()
    return [
        WilsonRow(
            method=found.method,
            compared=len(found.distances),
            nearest=float(min(found.distances, default=np.nan)),
            farthest=float(max(found.distances, default=np.nan)),
            residual=float(np.linalg.norm(problem.residual(found.end)) / np.linalg.norm(problem.y)),
            train_error=problem.train_error(found.end),
            test_error=wilson_test_error(found.end, p, n=n_test, seed=seed),
            to_max_margin=angle(found.end, max_margin),
        )
        for found in (course(problem, method, steps) for method in FULL_BATCH)
    ]


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for a probability, from how often something happened (Clopper & Pearson 1934).

    Args:
        successes: how often it happened, 0 to n.
        n: how often it could have happened, at least 1.
        level: how often, at least, such an interval holds the probability.

    Returns:
        Both ends, in [0, 1].

    Raises:
        InvalidOption: a number is outside its range.

    Example:
        >>> [round(end, 4) for end in clopper_pearson(0, 20)]
        [0.0, 0.1684]
    """
    if not (0 <= successes <= n >= 1 and 0 < level < 1):
        raise InvalidOption(
            f"successes={successes!r}, n={n!r}, level={level!r}: it takes 0 <= successes <= n, "
            "n >= 1 and 0 < level < 1"
        )
    tail = (1 - level) / 2
    low = betaincinv(successes, n - successes + 1, tail) if successes > 0 else 0.0
    high = betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return float(low), float(high)


def _check_majority(p: float) -> None:
    if not 0.5 < p < 1:
        raise InvalidOption(f"p={p!r} is not in (1/2, 1)")
