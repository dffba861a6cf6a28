"""Theorem 1: expected suboptimality against time, and the slopes on log-log axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes

from svag.theory.dynamics import Trajectories, log_spaced, simulate
from svag.theory.factors import Array
from svag.theory.figures import tables
from svag.theory.figures.canvas import (
    BAND_OPACITY,
    DASHED,
    DOTTED,
    INK,
    MSVAG,
    MUTED,
    SVAG,
    canvas,
    house_style,
    labels,
    log_y,
    number,
    save,
    tidy,
)
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.spectra import eigenvalues_structured, eigenvalues_uniform, random_rotation
from svag.theory.theorem1 import (
    Theorem1Constants,
    fitted_slope,
    local_slopes,
    theorem1_bound,
    theorem1_constants,
    theorem1_contenders,
)

STEPS: Final = 100_000
SEEDS: Final = 8
CASES: Final = (
    *(("well-conditioned", False, nu) for nu in (0.1, 1.0, 4.0)),
    *(("well-conditioned", True, nu) for nu in (0.1, 1.0, 4.0)),
    *(("ill-conditioned", rotated, 0.1) for rotated in (False, True)),
)
"""Spectrum, whether rotated, and noise level."""

_DIMENSION = 100
_SCALE = 10.0
_LOOK = {
    "idealised SVAG": (SVAG, "-"),
    "SGD": (MSVAG, DASHED),
    "SGD, 1/t": ("#7a5cc4", DOTTED),
}
_LOCAL = ((SVAG, DASHED), (SVAG, DOTTED), ("#cf3a1c", DASHED), ("#cf3a1c", DOTTED))


@dataclass(frozen=True)
class Rate:
    """How the methods of Theorem 1 fared on one problem.

    Attributes:
        spectrum: which eigenvalues.
        rotated: whether the eigenbasis is rotated at random, or axis-aligned.
        noise: nu.
        constants: of the assumption.
        trajectories: of idealised SVAG, SGD, and SGD with 1/t steps.
        slopes: by method, fitted over the last decade to the mean over seeds.
        errors: their standard errors, by leaving out one seed at a time.
    """

    spectrum: str
    rotated: bool
    noise: float
    constants: Theorem1Constants
    trajectories: Trajectories
    slopes: dict[str, float]
    errors: dict[str, float]

    @property
    def name(self) -> str:
        """The problem in words."""
        return f"{self.spectrum}, {'rotated' if self.rotated else 'axis-aligned'}"

    def local(self) -> tuple[Array, Array]:
        """Times and local slopes of idealised SVAG, over half a decade each."""
        t = self.trajectories.t
        return local_slopes(t, self.trajectories.mean("idealised SVAG"))


def problem(spectrum: str, rotated: bool, noise: float) -> StochasticQuadratic:
    """Build a problem of Theorem 1's figure."""
    rng = np.random.default_rng(0)
    eigenvalues = {
        "well-conditioned": eigenvalues_uniform,
        "ill-conditioned": eigenvalues_structured,
    }[spectrum](_DIMENSION, rng)
    matrix = np.diag(eigenvalues)
    if rotated:
        rotation = random_rotation(_DIMENSION, rng)
        matrix = (rotation * eigenvalues) @ rotation.T
    return StochasticQuadratic(matrix, np.zeros(_DIMENSION), noise)


def measure(
    cases: Sequence[tuple[str, bool, float]] = CASES, steps: int = STEPS, seeds: int = SEEDS
) -> list[Rate]:
    """Run the methods on each problem, from theta_0 - x* ~ U[-10, 10]^d."""
    return [_measured(*case, steps, seeds) for case in cases]


def draw(directory: Path, found: Sequence[Rate] | None = None) -> list[Path]:
    """Draw ``theorem1`` and write its slopes and constants."""
    found = measure() if found is None else found
    with house_style():
        return _picture(directory, found) + tables.write(directory, "theorem1", *table(found))


def table(found: Sequence[Rate]) -> tuple[list[str], list[list[object]]]:
    """Return head and rows of constants and slopes."""
    head = ["problem", "nu", "mu", "L", "c_v", "M_v", *(f"slope {name}" for name in _LOOK)]
    rows: list[list[object]] = []
    for rate in found:
        constants = rate.constants
        slopes = [f"{_rounded(rate.slopes[name]):.2f} ± {rate.errors[name]:.2f}" for name in _LOOK]
        rows.append(
            [
                rate.name,
                f"{rate.noise:g}",
                constants.mu,
                constants.L,
                f"{constants.c_v:g}",
                constants.M_v,
                *slopes,
            ]
        )
    return head, rows


def _measured(spectrum: str, rotated: bool, noise: float, steps: int, seeds: int) -> Rate:
    quadratic = problem(spectrum, rotated, noise)
    away = [
        np.random.default_rng([seed, 1]).uniform(-_SCALE, _SCALE, _DIMENSION)
        for seed in range(seeds)
    ]
    found = simulate(
        quadratic,
        theorem1_contenders(quadratic),
        steps,
        seeds=seeds,
        theta_0=-np.array(away),
        record=log_spaced(steps),
    )
    slopes = {name: fitted_slope(found.t, found.mean(name)) for name in _LOOK}
    errors = {name: _jackknife(found, name) for name in _LOOK}
    return Rate(spectrum, rotated, noise, theorem1_constants(quadratic), found, slopes, errors)


def _rounded(slope: float) -> float:
    """Round to two decimals, without a negative zero."""
    return round(slope, 2) + 0.0


def _jackknife(found: Trajectories, name: str) -> float:
    values = found.suboptimality[name]
    n = len(values)
    if n < 2:
        return float("nan")
    left_out = [fitted_slope(found.t, np.delete(values, k, axis=0).mean(axis=0)) for k in range(n)]
    return float(np.sqrt((n - 1) * np.var(left_out)))


def _picture(directory: Path, found: Sequence[Rate]) -> list[Path]:
    first = found[0].trajectories
    figure = canvas(
        10.6,
        9.4,
        "Theorem 1: with a constant step size idealised SVAG converges, and SGD does not",
        f"Expected suboptimality over steps: mean of {len(first.seeds)} seeds, band: two standard "
        "errors; step size 1/L at the start of all. Numbers: slope over the last decade.",
        r"Grey: what the proof guarantees for idealised SVAG, with $\Sigma_i\sigma_i^2 \leq "
        r"c_v|\nabla f|^2 + M_v$. Eigenvalues: well-conditioned U[0.1, 1.1]; ill-conditioned "
        "90 % U[0, 1], 10 % U[30, 60].",
    )
    grid = figure.subplots(3, 3)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.87, bottom=0.055, wspace=0.2, hspace=0.36)
    for n, (axes, rate) in enumerate(zip(grid.flat, found, strict=False)):
        _panel(axes, rate, last=n >= 6)
    _local_panel(grid[2, 2], found)
    return save(figure, directory, "theorem1")


def _panel(axes: Axes, rate: Rate, *, last: bool) -> None:
    t = rate.trajectories.t
    shown = t > 0
    entries = []
    for name, (color, line) in _LOOK.items():
        mean, error = rate.trajectories.mean(name), rate.trajectories.standard_error(name)
        low = np.maximum(mean - 2 * error, mean / 10)
        axes.fill_between(
            t[shown],
            low[shown],
            (mean + 2 * error)[shown],
            color=color,
            alpha=BAND_OPACITY,
            linewidth=0,
        )
        axes.plot(t[shown], mean[shown], color=color, linestyle=line, linewidth=1.8)
        label = "SGD, constant" if name == "SGD" else name
        slope = f"{_rounded(rate.slopes[name]):.2f}".replace("-", "\N{MINUS SIGN}")
        entries.append((f"{label}  {slope}", color))
    start = rate.trajectories.mean("SGD")[0]
    bound = theorem1_bound(rate.constants, float(start), int(t[-1]))
    axes.plot(t[shown], bound[t[shown]], color=MUTED, linewidth=0.8)
    axes.set_xscale("log")
    log_y(axes, 5)
    axes.set_xlim(1, t[-1])
    constants = rate.constants
    axes.set_title(
        f"{rate.name}, ν = {rate.noise:g}", loc="left", fontsize=9, fontweight="bold", pad=15
    )
    axes.text(
        0,
        1.025,
        rf"$c_v$ = {constants.c_v:g}, $M_v$ = {number(constants.M_v)}, "
        rf"$\mu$ = {number(constants.mu)}, $L$ = {number(constants.L)}",
        transform=axes.transAxes,
        fontsize=8,
        color=MUTED,
    )
    labels(axes, entries, 0.03, 0.26)
    tidy(axes)
    if last:
        axes.set_xlabel("step $t$")


def _local_panel(axes: Axes, found: Sequence[Rate]) -> None:
    shown = [rate for rate in found if rate.spectrum == "ill-conditioned"]
    shown = [
        rate for rate in found if rate.spectrum != "ill-conditioned" and rate.noise == 4
    ] + shown
    entries = []
    for rate, (color, line) in zip(shown, _LOCAL, strict=False):
        axes.plot(*rate.local(), color=color, linestyle=line, linewidth=1.6)
        entries.append((f"{rate.name}, ν = {rate.noise:g}", color))
    axes.axhline(-1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(1, found[0].trajectories.t[-1])
    axes.set_title(
        "local slope of idealised SVAG", loc="left", fontsize=9, fontweight="bold", pad=15
    )
    for n, (text, color) in enumerate(entries):
        dashes = "dashed" if n % 2 == 0 else "dotted"
        axes.annotate(
            f"{text} ({dashes})",
            (0.03, 0.05),
            (0, 11 * (len(entries) - 1 - n)),
            xycoords="axes fraction",
            textcoords="offset points",
            color=color,
            fontsize=8,
        )
    low = min(float(rate.local()[1].min()) for rate in shown)
    axes.set_ylim(1.7 * low, 0.2)
    axes.set_xlabel("step $t$")
    tidy(axes)
