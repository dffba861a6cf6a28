"""The data of Figure 2: SGD and SSD with optimal local step sizes on four quadratics (§2.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from scipy.special import bdtr

from svag.errors import InvalidOption
from svag.theory.dynamics import Comparison, Contender, random_starts, simulate
from svag.theory.factors import Array
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.spectra import SPECTRA, rotated_and_aligned

Winner: TypeAlias = Literal["SGD", "tie", "SSD"]

NOISE_LEVELS: Final = (0.0, 0.1, 4.0)
TIE: Final = (0.7, 1.5)
"""Between these ratios of suboptimality neither method wins."""
SEEDS: Final = 100
"""Seeds of each panel: with noise, enough to know the median to about a tenth."""

CONTENDERS: Final[Mapping[str, Contender]] = {
    "SGD": Contender.of("sgd", "optimal"),
    "SSD": Contender.of("ssd", "optimal"),
}
"""The methods, with optimal local step sizes."""

_OUTCOMES: Final[tuple[Winner, ...]] = get_args(Winner)


@dataclass(frozen=True)
class Panel(Comparison):
    """One panel of Figure 2: ``"SGD"`` and ``"SSD"`` on one problem.

    Example:
        >>> panel = figure2_panels(seeds=8, noise_levels=[0.1])[-1]
        >>> panel.name, panel.winner
        ('ill-conditioned, axis-aligned', 'SSD')
    """

    @property
    def ratios(self) -> Array:
        """Final suboptimality of SGD over that of SSD for each seed, (S,)."""
        final = (self.trajectories.suboptimality[name][:, -1] for name in ("SGD", "SSD"))
        return suboptimality_ratios(*final)

    @property
    def ratio(self) -> float:
        """Median of :attr:`ratios`: above 1 SSD is closer to the minimum."""
        return float(np.median(self.ratios))

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Return the range that holds the middle ``level`` of the seeds' ratios."""
        low, high = np.quantile(self.ratios, ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)

    def median_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return :func:`median_interval` of the seeds' ratios."""
        return median_interval(self.ratios, level)

    @property
    def possible(self) -> tuple[Winner, ...]:
        """Every outcome that the 95 % interval of the median allows, by :data:`TIE`."""
        low, high = self.median_interval()
        allowed = {"SGD": low < TIE[0], "tie": low <= TIE[1] and high >= TIE[0]}
        allowed["SSD"] = high > TIE[1]
        return tuple(name for name in _OUTCOMES if allowed[name])

    @property
    def winner(self) -> Winner | Literal["open"]:
        """Who is closer to the minimum in the end; open where several are :attr:`possible`."""
        return self.possible[0] if len(self.possible) == 1 else "open"


def suboptimality_ratios(sgd: Array, ssd: Array) -> Array:
    """SGD's suboptimality over SSD's for each seed; 1 where they are equal, also at 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.divide(sgd, ssd, out=np.ones(len(sgd)), where=sgd != ssd)


def median_interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Return an interval for the median of the distribution that the values are drawn from.

    It reaches from the k-th smallest value to the k-th largest. k is the largest number for which
    P[fewer than k of n draws are below the median] <= (1 - level)/2; how many are below it is
    binomial, whatever the distribution. Five values or fewer have no such k at 95 %, and the
    interval is (-inf, inf).

    Args:
        values: independent draws, (n,).
        level: how often, at least, such an interval holds the median.

    Raises:
        InvalidOption: there is no value, one is NaN, or the level is not in (0, 1).

    Example:
        >>> median_interval(np.arange(1.0, 21.0))
        (6.0, 15.0)
    """
    n = len(values)
    if not n or np.isnan(values).any() or not 0 < level < 1:
        raise InvalidOption(f"{n} values at level={level!r}: none may be NaN, 0 < level < 1")
    k = np.count_nonzero(bdtr(np.arange(n), n, 0.5) < (1 - level) / 2)
    if k == 0:
        return -np.inf, np.inf
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[n - k])


def figure2_panels(
    *,
    seeds: int | Sequence[int] = SEEDS,
    steps: int = 100,
    dimension: int = 100,
    scale: float = 10.0,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    problem_seed: int = 0,
) -> list[Panel]:
    """Run SGD and SSD on 4 problems at each noise level.

    The paper does not give theta_0 and x*, of which only the difference matters. Ours: theta_0 =
    0, x* ~ U[-scale, scale]^d, drawn for each seed; the matrices are drawn once. Scaling both
    theta_0 - x* and nu by c multiplies every suboptimality by c^2: a start c times as far away is
    a noise level c times as low, and without noise the ratio of the two methods does not depend
    on the scale.

    All panels of a call have the same seeds, so that their errors are correlated; to see how much
    the draw of the matrices matters, give each ``problem_seed`` seeds of its own.

    Args:
        seeds: how many draws of x* and noise, or which.
        steps: number of steps.
        dimension: d.
        scale: half the width of x*'s distribution.
        noise_levels: the columns, nu.
        problem_seed: of the eigenvalues and rotations.

    Returns:
        The panels row by row: well-conditioned rotated, well-conditioned axis-aligned,
        ill-conditioned rotated, ill-conditioned axis-aligned.

    Raises:
        InvalidOption: the scale is not positive and finite, or a size is unusable.

    Example:
        >>> panels = figure2_panels(seeds=2, steps=5, dimension=4)
        >>> len(panels), panels[0].rotated, panels[-1].noise
        (12, True, 4.0)
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    starts = random_starts(chosen, dimension, scale)
    rng = np.random.default_rng(problem_seed)
    panels = []
    for spectrum in SPECTRA:
        for rotated, Q in rotated_and_aligned(spectrum, dimension, rng).items():  # noqa: N806
            for noise in noise_levels:
                problem = StochasticQuadratic(Q, np.zeros(dimension), noise)
                found = simulate(
                    problem,
                    CONTENDERS,
                    steps,
                    seeds=chosen,
                    theta_0=starts,
                    record=range(steps + 1),
                )
                panels.append(Panel(spectrum, rotated, problem, found))
    return panels
