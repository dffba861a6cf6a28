"""Theorem 1: expected suboptimality against time, and the slopes on log-log axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svag.theory.dynamics import Comparison, log_spaced, random_starts, simulate
from svag.theory.factors import Array
from svag.theory.figures import canvas, tables
from svag.theory.figures.canvas import ADAM, BAND_OPACITY, DASHED, DOTTED, INK, MSVAG, MUTED, SVAG
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.spectra import Spectrum, rotated_and_aligned
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
CASES: Final[tuple[tuple[Spectrum, bool, float], ...]] = (
    *(("well-conditioned", False, nu) for nu in (0.1, 1.0, 4.0)),
    *(("well-conditioned", True, nu) for nu in (0.1, 1.0, 4.0)),
    *(("ill-conditioned", rotated, 0.1) for rotated in (False, True)),
)
"""Spectrum, whether rotated, and noise level."""

_DIMENSION = 100
_LOOK = {
    "idealised SVAG": (SVAG, "-"),
    "SGD": (MSVAG, DASHED),
    "SGD, 1/t": ("#7a5cc4", DOTTED),
}
_LOCAL = ((SVAG, DASHED), (SVAG, DOTTED), (ADAM, DASHED), (ADAM, DOTTED))


@dataclass(frozen=True)
class Rate(Comparison):
    """Idealised SVAG, SGD, and SGD with 1/t steps on one problem."""

    @property
    def constants(self) -> Theorem1Constants:
        """What the assumption of Theorem 1 says of the problem."""
        return theorem1_constants(self.problem)

    def slope(self, name: str) -> float:
        """Slope of a method's mean over seeds, fitted over the last decade."""
        return fitted_slope(self.trajectories.t, self.trajectories.mean(name))

    def slope_error(self, name: str) -> float:
        """Standard error of :meth:`slope`, by leaving out one seed at a time; NaN for one seed."""
        t, values = self.trajectories.t, self.trajectories.suboptimality[name]
        n = len(values)
        if n < 2:
            return float("nan")
        left_out = [fitted_slope(t, np.delete(values, k, axis=0).mean(axis=0)) for k in range(n)]
        return float(np.sqrt((n - 1) * np.var(left_out)))

    def local(self) -> tuple[Array, Array]:
        """Times and local slopes of idealised SVAG, over half a decade each."""
        return local_slopes(self.trajectories.t, self.trajectories.mean("idealised SVAG"))


def measure(
    cases: Sequence[tuple[Spectrum, bool, float]] = CASES, steps: int = STEPS, seeds: int = SEEDS
) -> list[Rate]:
    """Run the methods from theta_0 - x* ~ U[-10, 10]^100.

    Args:
        cases: spectrum, whether rotated, and noise level nu of each problem.
        steps: of each method.
        seeds: starts and noises of each problem.

    Returns:
        A rate for each case.
    """
    return [_measured(*case, steps, seeds) for case in cases]


@canvas.house_style()
def draw(directory: Path, found: Sequence[Rate] | None = None) -> list[Path]:
    """Draw ``theorem1`` and write its slopes and constants."""
    found = measure() if found is None else found
    files = canvas.save(_picture(found), directory, "theorem1")
    return files + tables.write(directory, "theorem1", *table(found))


def table(found: Sequence[Rate]) -> tables.Table:
    """Return the table of constants and slopes."""
    head = ["problem", "nu", "mu", "L", "c_v", "M_v", *(f"slope {name}" for name in _LOOK)]
    rows: list[list[object]] = []
    for rate in found:
        at = rate.constants
        slopes = [f"{_slope(rate, name)} ± {rate.slope_error(name):.2f}" for name in _LOOK]
        rows.append([rate.name, f"{rate.noise:g}", at.mu, at.L, f"{at.c_v:g}", at.M_v, *slopes])
    return head, rows


def _measured(spectrum: Spectrum, rotated: bool, noise: float, steps: int, seeds: int) -> Rate:
    matrix = rotated_and_aligned(spectrum, _DIMENSION, np.random.default_rng(0))[rotated]
    problem = StochasticQuadratic(matrix, np.zeros(_DIMENSION), noise)
    found = simulate(
        problem,
        theorem1_contenders(problem),
        steps,
        seeds=seeds,
        theta_0=random_starts(range(seeds), _DIMENSION),
        record=log_spaced(steps),
    )
    return Rate(spectrum, rotated, problem, found)


def _slope(rate: Rate, name: str) -> str:
    """The slope to two decimals, without a negative zero."""
    return f"{round(rate.slope(name), 2) + 0.0:.2f}"


def _picture(found: Sequence[Rate]) -> Figure:
    seeds = len(found[0].trajectories.seeds)
    figure = canvas.titled(
        10.6,
        9.4,
        "Theorem 1: with a constant step size idealised SVAG converges, and SGD does not",
        f"Expected suboptimality over steps: mean of {seeds} seeds, band: two standard "
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
    return figure


def _panel(axes: Axes, rate: Rate, *, last: bool) -> None:
    after = rate.trajectories.t > 0
    t, entries = rate.trajectories.t[after], []
    for name, (color, line) in _LOOK.items():
        mean = rate.trajectories.mean(name)[after]
        error = 2 * rate.trajectories.standard_error(name)[after]
        band = np.maximum(mean - error, mean / 10), mean + error
        axes.fill_between(t, *band, color=color, alpha=BAND_OPACITY, linewidth=0)
        axes.plot(t, mean, color=color, linestyle=line, linewidth=1.8)
        label = "SGD, constant" if name == "SGD" else name
        slope = _slope(rate, name).replace("-", "\N{MINUS SIGN}")
        entries.append((f"{label}  {slope}", color))
    constants, start = rate.constants, float(rate.trajectories.mean("SGD")[0])
    bound = theorem1_bound(constants, start, int(t[-1]))
    axes.plot(t, bound[t], color=MUTED, linewidth=0.8)
    axes.set_xscale("log")
    canvas.log_y(axes, 5)
    axes.set_xlim(1, t[-1])
    title = f"{rate.name}, ν = {rate.noise:g}"
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=15)
    axes.text(
        0,
        1.025,
        rf"$c_v$ = {constants.c_v:g}, $M_v$ = {canvas.number(constants.M_v)}, "
        rf"$\mu$ = {canvas.number(constants.mu)}, $L$ = {canvas.number(constants.L)}",
        transform=axes.transAxes,
        fontsize=8,
        color=MUTED,
    )
    canvas.labels(axes, entries, 0.03, 0.26)
    canvas.tidy(axes)
    if last:
        axes.set_xlabel("step $t$")


def _local_panel(axes: Axes, found: Sequence[Rate]) -> None:
    noisy = [r for r in found if r.spectrum == "well-conditioned" and r.noise == 4]
    shown = noisy + [r for r in found if r.spectrum == "ill-conditioned"]
    entries = []
    for n, (rate, (color, line)) in enumerate(zip(shown, _LOCAL, strict=False)):
        axes.plot(*rate.local(), color=color, linestyle=line, linewidth=1.6)
        dashes = "dotted" if n % 2 else "dashed"
        entries.append((f"{rate.name}, ν = {rate.noise:g} ({dashes})", color))
    axes.axhline(-1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(1, found[0].trajectories.t[-1])
    title = "local slope of idealised SVAG"
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=15)
    canvas.labels(axes, entries, 0.03, 0.05, upwards=True)
    axes.set_ylim(1.7 * min(float(rate.local()[1].min()) for rate in shown), 0.2)
    axes.set_xlabel("step $t$")
    canvas.tidy(axes)
