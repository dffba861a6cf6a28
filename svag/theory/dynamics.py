"""Any set of methods on a stochastic quadratic problem, many seeds at once.

Every method sees the same noise, so that they differ only by what they do with it. The state is
theta - x*, and its gradient Q (theta - x*): suboptimality then keeps its relative accuracy down to
1e-300 instead of sinking into the round-off of theta.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from svag.anatomy import Anatomy, method
from svag.errors import InvalidOption
from svag.theory.factors import Array
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.rules import AnatomyRule, ratio
from svag.theory.spectra import Spectrum

StepSize: TypeAlias = float | Callable[[int], float] | Literal["optimal"]
Steps: TypeAlias = NDArray[np.int_]

_NOISE_BYTES: Final = 8_000_000  # of one block of noise, drawn and multiplied by Q at once
_RECORD_ALL: Final = 1_000


@dataclass(frozen=True)
class Contender:
    """A method as it enters a comparison: what it does with gradients, and how far it goes.

    Attributes:
        anatomy: direction and factor.
        step_size: a constant; a function of t = 0, 1, ...; or ``"optimal"``, which minimises the
            expected loss after the step (Eqs. 12 to 14, exact), for SGD and SSD.
        betas: decays of the moving averages: one, or two in raw rows.
        eps: Adam's.
        idealised: use the true relative variance sigma^2/grad L^2 (Eqs. 17 and 24) instead of
            estimating it. With ``Anatomy("gradient", factor="svag")`` this is Theorem 1's method.

    Raises:
        InvalidOption: a constant step size is not positive and finite; ``"optimal"`` is asked of
            other methods than SGD and SSD; or the options contradict each other
            (:class:`~svag.theory.rules.AnatomyRule`).
    """

    anatomy: Anatomy
    step_size: StepSize
    betas: Sequence[float] = (0.9,)
    eps: float = 1e-8
    idealised: bool = False

    def __post_init__(self) -> None:
        self.rule()
        if isinstance(self.step_size, str):
            if self.step_size != "optimal":
                raise InvalidOption(
                    f"step_size={self.step_size!r}; pass a number, a function of t or 'optimal'"
                )
            if self.anatomy.adapted or self.anatomy.direction != "gradient":
                raise InvalidOption(
                    f"step_size='optimal' is known for g and sign(g), not for {self.anatomy}; "
                    "pass a number or a function of t"
                )
        elif not callable(self.step_size) and not 0 < self.step_size < np.inf:
            raise InvalidOption(f"step_size={self.step_size!r} must be positive and finite")

    @classmethod
    def of(cls, key: str, step_size: StepSize) -> "Contender":
        """Take a method of :data:`svag.anatomy.METHODS` with its decays.

        Example:
            >>> Contender.of("adam", 1e-2).betas
            (0.9, 0.999)
        """
        row = method(key)
        return cls(row.anatomy, step_size, row.betas or (0.9,))

    def rule(self) -> AnatomyRule:
        """Return a fresh rule, with no gradient seen."""
        return AnatomyRule(self.anatomy, self.betas, self.eps, idealised=self.idealised)


@dataclass(frozen=True)
class Trajectories:
    """How far each method was from the minimum, at the recorded steps.

    Attributes:
        t: steps taken, (R,), ascending.
        suboptimality: by name, L - L* = (theta - x*)^T Q (theta - x*)/2 for each seed, (S, R);
            inf where a run diverged.
        seeds: of the rows.

    Example:
        >>> away = {"SGD": np.array([[4.0, 1.0], [4.0, 3.0]])}
        >>> found = Trajectories(np.array([0, 1]), away, seeds=(0, 1))
        >>> found.mean("SGD"), found.standard_error("SGD")
        (array([4., 2.]), array([0., 1.]))
    """

    t: Steps
    suboptimality: Mapping[str, Array]
    seeds: tuple[int, ...]

    def mean(self, name: str) -> Array:
        """Mean over seeds, which estimates E[L(theta_t) - L*], (R,)."""
        return np.asarray(self.suboptimality[name].mean(axis=0))

    def standard_error(self, name: str) -> Array:
        """Standard error of :meth:`mean`, (R,); NaN for one seed."""
        values = self.suboptimality[name]
        if len(values) < 2:
            return np.full(values.shape[1], np.nan)
        with np.errstate(invalid="ignore"):
            return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def log_spaced(steps: int, per_decade: int = 40) -> Steps:
    """Numbers of steps from 0 to ``steps``, evenly spaced on a log scale from 1 on.

    Example:
        >>> log_spaced(100, per_decade=2)
        array([  0,   1,   3,  10,  32, 100])
    """
    if steps < 1:
        return np.zeros(1, dtype=int)
    points = np.geomspace(1, steps, round(per_decade * np.log10(steps)) + 1)
    return np.unique(np.append(0, np.rint(points))).astype(int)


@dataclass(frozen=True)
class Comparison:
    """Methods on one of the quadratic problems of §2.2.

    Attributes:
        spectrum: which eigenvalues.
        rotated: whether the eigenbasis is rotated at random, or axis-aligned.
        problem: its Q and noise level; its minimum is at 0.
        trajectories: of the methods.
    """

    spectrum: Spectrum
    rotated: bool
    problem: StochasticQuadratic
    trajectories: Trajectories

    @property
    def name(self) -> str:
        """Spectrum and orientation in words."""
        return f"{self.spectrum}, {'rotated' if self.rotated else 'axis-aligned'}"

    @property
    def noise(self) -> float:
        """The noise level nu."""
        return self.problem.noise


def random_starts(seeds: Sequence[int], dimension: int, scale: float = 10.0) -> Array:
    """Draw theta_0 - x* for each seed, with theta_0 = 0 and x* ~ U[-scale, scale]^d.

    Args:
        seeds: one for each start; a seed's start does not depend on the other seeds.
        dimension: d.
        scale: half the width of the distribution of each entry.

    Returns:
        The starts, (S, d).

    Raises:
        InvalidOption: the scale is not positive and finite.
    """
    if not 0 < scale < np.inf:
        raise InvalidOption(f"scale={scale!r} must be positive and finite")
    rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
    return -np.array([rng.uniform(-scale, scale, dimension) for rng in rngs])


def simulate(
    problem: StochasticQuadratic,
    contenders: Mapping[str, Contender],
    steps: int,
    *,
    seeds: int | Sequence[int] = 20,
    theta_0: Array | None = None,
    record: Sequence[int] | Steps | None = None,
) -> Trajectories:
    """Run methods on a stochastic quadratic problem, with the same noise for all.

    A seed's noise depends neither on the other seeds nor on the methods. Divergence is data: the
    suboptimality is inf from there on.

    Args:
        problem: with gradients g = Q (theta - x), x ~ N(x*, nu^2 I).
        contenders: the methods, by any name.
        steps: how many updates.
        seeds: how many (0, 1, ...), or which.
        theta_0: where all start, (d,), or each seed, (S, d); 0 if None.
        record: after how many steps to note the suboptimality; None means all if ``steps`` is at
            most 1,000, else :func:`log_spaced` ones.

    Returns:
        The suboptimality of each method and seed at the recorded steps.

    Raises:
        InvalidOption: there is no method, seed or step; ``theta_0`` has another shape or is not
            finite; or ``record`` leaves 0..steps.

    Example:
        >>> problem = StochasticQuadratic(np.diag([1.0, 0.5]), np.ones(2), 0.1)
        >>> result = simulate(problem, {"SGD": Contender.of("sgd", 1.0)}, 10, seeds=3)
        >>> result.suboptimality["SGD"].shape
        (3, 11)
        >>> float(result.mean("SGD")[0])
        0.75
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not contenders or not chosen or steps < 0:
        raise InvalidOption(
            f"{len(contenders)} methods, {len(chosen)} seeds, {steps} steps: at least one method "
            "and one seed are needed, and no negative number of steps"
        )
    t = _recorded(steps, record)
    start = _start(problem, theta_0, len(chosen))
    values = np.empty((len(contenders), len(chosen), len(t)))
    states = follow(problem, contenders, start, _noise(problem, chosen, steps))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for step, (away, gradient) in enumerate(islice(states, int(t[-1]) + 1)):
            column = np.searchsorted(t, step)
            if t[column] == step:
                values[..., column] = np.sum(away * gradient, axis=-1) / 2
    values[np.isnan(values)] = np.inf
    return Trajectories(t, dict(zip(contenders, values, strict=True)), chosen)


def follow(
    problem: StochasticQuadratic,
    contenders: Mapping[str, Contender],
    start: Array,
    noise: Iterable[Array],
) -> Iterator[tuple[Array, Array]]:
    """Run methods on given noise, and yield where they are before each step and at the end.

    Args:
        problem: gives Q, noise level and optimal step sizes; its minimum is not used.
        contenders: K methods, by any name.
        start: theta_0 - x*, (S, d), the same for all methods.
        noise: g - grad L of each step, (S, d), the same for all methods.

    Yields:
        theta_t - x* and grad L(theta_t), both (K, S, d). The first is updated in place: copy what
        is to be kept.
    """
    centred = StochasticQuadratic(problem.Q, np.zeros(problem.dimension), problem.noise)
    times_q, std = _product(problem), problem.gradient_std()
    still = np.inf if problem.noise else 0.0  # relative variance where the gradient is 0
    rules = [(contender, contender.rule()) for contender in contenders.values()]
    away = np.stack([start] * len(rules))
    gradient = times_q(away)
    yield away, gradient
    for t, sample in enumerate(noise):
        for k, (contender, rule) in enumerate(rules):
            known = (
                ratio(std, np.abs(gradient[k]), undefined=still) ** 2 if rule.idealised else None
            )
            update = rule(gradient[k] + sample, known)
            away[k] -= _step_size(centred, contender, t, away[k]) * update
        gradient = times_q(away)
        yield away, gradient


def _product(problem: StochasticQuadratic) -> Callable[[Array], Array]:
    """Return what multiplies vectors, (..., d), by Q."""
    diagonal = np.diagonal(problem.Q)
    if np.count_nonzero(problem.Q) == np.count_nonzero(diagonal):
        return lambda vectors: vectors * diagonal
    return lambda vectors: np.asarray(vectors @ problem.Q)


def _noise(problem: StochasticQuadratic, seeds: Sequence[int], steps: int) -> Iterator[Array]:
    """Yield g - grad L = -Q (x - x*) of every step, (S, d); each seed has its own stream."""
    shape = len(seeds), problem.dimension
    if problem.noise == 0:
        yield from repeat(np.zeros(shape), steps)
        return
    times_q = _product(problem)
    generators = [np.random.default_rng(seed) for seed in seeds]
    block = max(1, _NOISE_BYTES // (8 * shape[0] * shape[1]))
    for first in range(0, steps, block):
        size = min(block, steps - first), shape[1]
        drawn = np.stack([rng.standard_normal(size) for rng in generators], axis=1)
        yield from times_q(drawn) * -problem.noise


def _step_size(
    centred: StochasticQuadratic, contender: Contender, t: int, away: Array
) -> Array | float:
    """Step size at step t, or the best one of each seed, (S, 1)."""
    step_size = contender.step_size
    if callable(step_size):
        return step_size(t)
    if not isinstance(step_size, str):
        return step_size
    if contender.anatomy.sign:
        return np.asarray(centred.optimal_step_size_ssd(away))[:, None]
    return np.asarray(centred.optimal_step_size_sgd(away))[:, None]


def _start(problem: StochasticQuadratic, theta_0: Array | None, seeds: int) -> Array:
    """theta_0 - x* of every seed, (S, d)."""
    d = problem.dimension
    theta = np.zeros(d) if theta_0 is None else np.asarray(theta_0, np.float64)
    if theta.shape not in ((d,), (seeds, d)) or not np.isfinite(theta).all():
        raise InvalidOption(
            f"theta_0 has shape {theta.shape}; it must be ({d},) or, one for each seed, "
            f"({seeds}, {d}), with finite entries"
        )
    return np.broadcast_to(theta - problem.x_star, (seeds, d))


def _recorded(steps: int, record: Sequence[int] | Steps | None) -> Steps:
    """The numbers of steps after which the suboptimality is noted, ascending."""
    if record is None:
        return np.arange(steps + 1) if steps <= _RECORD_ALL else log_spaced(steps)
    t = np.unique(np.asarray(record))
    if t.size == 0 or t.dtype.kind != "i" or t[0] < 0 or t[-1] > steps:
        raise InvalidOption(f"record={record!r}; it must hold whole numbers from 0 to {steps}")
    return t
