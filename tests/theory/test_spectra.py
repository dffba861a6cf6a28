"""Spectra, rotations, and the share of the diagonal that the paper has wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from scipy import stats

from svag.errors import InvalidOption
from svag.theory import (
    eigenvalues_structured,
    eigenvalues_uniform,
    p_diag,
    p_diag_bound,
    p_diag_mean,
    random_rotation,
)
from svag.theory.spectra import rotated_and_aligned

SPECTRA = {"uniform": eigenvalues_uniform, "structured": eigenvalues_structured}


def test_spectra_have_the_ranges_of_figure_2():
    rng = np.random.default_rng(0)
    uniform, structured = eigenvalues_uniform(10_000, rng), eigenvalues_structured(10_000, rng)
    assert stats.kstest(uniform, stats.uniform(0.1, 1.0).cdf).pvalue > 0.01
    small, large = structured[:9_000], structured[9_000:]
    assert stats.kstest(small, stats.uniform(0, 1).cdf).pvalue > 0.01
    assert stats.kstest(large, stats.uniform(30, 30).cdf).pvalue > 0.01
    assert [len(eigenvalues_structured(d, rng)) for d in (1, 5, 15)] == [1, 5, 15]


@pytest.mark.parametrize("d", [1, 2, 3, 50])
def test_rotations_rotate(d):
    rotation = random_rotation(d, np.random.default_rng(0))
    assert rotation @ rotation.T == pytest.approx(np.eye(d), abs=1e-13)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_rotations_are_uniform():
    rng = np.random.default_rng(0)
    traces = np.array([np.trace(random_rotation(3, rng)) for _ in range(4_000)])
    angles = np.arccos(np.clip((traces - 1) / 2, -1, 1))
    uniform = lambda x: (x - np.sin(x)) / np.pi  # noqa: E731 - the angle of a Haar rotation
    assert stats.kstest(angles, uniform).pvalue > 0.01


@pytest.mark.parametrize("spectrum", ["well-conditioned", "ill-conditioned"])
def test_orientations_of_one_draw_share_their_eigenvalues(spectrum):
    found = rotated_and_aligned(spectrum, 20, np.random.default_rng(0))
    aligned = np.diagonal(found[False])
    assert np.array_equal(found[False], np.diag(aligned))
    assert np.linalg.eigvalsh(found[True]) == pytest.approx(np.sort(aligned), rel=1e-9)
    assert p_diag(found[True]) < 0.6
    assert (aligned.max() > 30) == (spectrum == "ill-conditioned")


def test_p_diag_at_its_extremes():
    assert p_diag(np.diag([1.0, 2.0, 60.0])) == 1
    assert p_diag([[7.0]]) == 1
    signs = np.sign(np.random.default_rng(0).normal(size=10))
    assert p_diag(np.outer(signs, signs)) == pytest.approx(1 / 10)


@given(d=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_p_diag_is_between_one_over_d_and_one(d, rank, seed):
    rng = np.random.default_rng(seed)
    eigenvalues = np.where(np.arange(d) < rank, rng.exponential(size=d) ** 3, 0)
    rotation = random_rotation(d, rng)
    share = p_diag((rotation * eigenvalues) @ rotation.T)
    assert (1 - 1e-12) / d <= p_diag_bound(eigenvalues, rotation) <= share * (1 + 1e-12)
    assert share <= 1


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("d", "rotations"), [(100, 1_000), (400, 10)])
def test_p_diag_over_rotations(spectrum, d, rotations):
    """The paper's 1.57/d is the mean of the bound; p_diag itself falls like d^(-1/2)."""
    rng = np.random.default_rng(d)
    shares, bounds, closed = np.empty((3, rotations))
    for n in range(rotations):
        eigenvalues, rotation = SPECTRA[spectrum](d, rng), random_rotation(d, rng)
        shares[n] = p_diag((rotation * eigenvalues) @ rotation.T)
        bounds[n] = p_diag_bound(eigenvalues, rotation)
        closed[n] = p_diag_mean(eigenvalues)
    error = abs(d * bounds.mean() / (np.pi / 2) - 1)
    assert_within("d times the mean of p_diag's bound, from pi/2", error, 0.02)
    error = abs(closed.mean() / shares.mean() - 1)
    assert_within(f"mean of p_diag, from its closed form, {spectrum}", error, 0.05)
    assert np.all(bounds < shares)


def test_p_diag_of_rank_one_has_the_papers_mean():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(2_000, 100))
    shares = [p_diag(np.outer(x, x)) for x in v]
    assert 100 * np.mean(shares) == pytest.approx(np.pi / 2, rel=0.02)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 10, 50])
def test_p_diag_mean_in_few_dimensions(d):
    """1 % off at most for spread eigenvalues, drawn anew each time or not."""
    rng = np.random.default_rng(d)
    shares, closed = np.empty((2, 3_000))
    for n in range(3_000):
        eigenvalues, rotation = eigenvalues_uniform(d, rng), random_rotation(d, rng)
        shares[n] = p_diag((rotation * eigenvalues) @ rotation.T)
        closed[n] = p_diag_mean(eigenvalues)
    error = shares.std() / len(shares) ** 0.5
    assert abs(closed.mean() - shares.mean()) < 0.01 * shares.mean() + 3 * error
    sample = eigenvalues_uniform(100_000, rng)
    assert abs(p_diag_mean(sample, d) - shares.mean()) < 0.025 * shares.mean() + 3 * error


def test_the_square_beside_the_diagonal_has_its_closed_form():
    lam, rng, d = np.array([0.1, 1.1, 0.5, 3.0]), np.random.default_rng(0), 4
    squares = []
    for _ in range(6_000):
        rotation = random_rotation(d, rng)
        squares.append(((rotation * lam) @ rotation.T)[0, 1] ** 2)
    expected = d * lam.var() / ((d - 1) * (d + 2))
    assert np.mean(squares) == pytest.approx(expected, rel=0.06)


def test_p_diag_mean_at_its_ends():
    assert p_diag_mean([0.1, 1.1, 0.5], 1) == 1
    assert p_diag_mean([3.0]) == 1
    assert p_diag_mean([2.0, 2.0]) == 1
    assert p_diag_mean([1.0, 1.0], 1_000) == 1
    eigenvalues = eigenvalues_uniform(50, np.random.default_rng(0))
    assert p_diag_mean(np.repeat(eigenvalues, 3), 50) == pytest.approx(
        p_diag_mean(eigenvalues, 50), rel=1e-12
    )


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e104, 1e307])
def test_shares_do_not_depend_on_the_scale(scale):
    rng = np.random.default_rng(0)
    lam, rotation = eigenvalues_uniform(20, rng), random_rotation(20, rng)
    matrix = (rotation * lam) @ rotation.T
    close = 1e-2 if scale < 1e-300 else 1e-12
    assert p_diag(scale * matrix) == pytest.approx(p_diag(matrix), rel=close)
    assert p_diag_bound(scale * lam, rotation) == pytest.approx(
        p_diag_bound(lam, rotation), rel=close
    )
    assert p_diag_mean(scale * lam) == pytest.approx(p_diag_mean(lam), rel=close)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: eigenvalues_uniform(0, RNG), "d=0.*at least 1"),
        (lambda: eigenvalues_structured(-1, RNG), "d=-1.*at least 1"),
        (lambda: random_rotation(0, RNG), "d=0.*at least 1"),
        (lambda: rotated_and_aligned("flat", 2, RNG), "'flat'; choose one of well-conditioned"),
        (lambda: p_diag(np.ones((2, 3))), r"\(2, 3\).*square"),
        (lambda: p_diag(np.zeros((2, 2))), "not all 0"),
        (lambda: p_diag([[np.nan]]), "finite"),
        (lambda: p_diag_bound([1.0, 2.0], np.eye(3)), r"\(3, 3\).*2 eigenvalues"),
        (lambda: p_diag_bound([1.0, -2.0], np.eye(2)), ">= 0"),
        (lambda: p_diag_mean([0.0, 0.0]), "not all 0"),
        (lambda: p_diag_mean([[1.0]]), r"\(1, 1\).*vector"),
        (lambda: p_diag_mean([1.0, 2.0], 0), "d=0.*at least 1"),
        (lambda: p_diag_mean([1.0, 2.0], 2.5), "d=2.5.*whole number"),
        (lambda: p_diag_mean([1.0, np.inf]), "finite"),
        (lambda: p_diag_mean([]), "vector"),
        (lambda: p_diag_bound([1.0, 2.0], [[1.0, np.nan], [0.0, 1.0]]), "finite entries"),
        (lambda: p_diag([[1.0, np.inf], [np.inf, 1.0]]), "finite"),
    ],
)
def test_spectra_that_are_none(call, quoted):
    with pytest.raises(InvalidOption, match=quoted):
        call()
