"""Wilson et al.'s example: test errors of the methods, and their paths (§5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svag.theory.figures import canvas, tables
from svag.theory.figures.canvas import ADAM, DASHED, INK, MSVAG, MUTED, SGD, SSD
from svag.theory.separable import FULL_BATCH, FullBatch, full_batch_iterates
from svag.theory.wilson import LineCourse, clopper_pearson, course, wilson_data, wilson_test_error

SIZES: Final = (5, 10, 20, 50, 100, 200)
SETS: Final = 20
STEPS: Final = 300
MAJORITY: Final = 0.7
FRESH: Final = 10_000

_PATH_SIZE = 50
_ROUND_OFF = 1e-17
_LOOK: Final[dict[FullBatch, tuple[str, str, str]]] = {
    "sign-descent": ("sign descent", SSD, "o"),
    "adam": ("Adam", ADAM, "s"),
    "adagrad": ("AdaGrad", "#d4568f", "^"),
    "rmsprop": ("RMSProp", "#8a4b1f", "v"),
    "gd": ("gradient descent", SGD, "D"),
    "m-svag": ("M-SVAG", MSVAG, "o"),
}
NAMES: Final = {method: look[0] for method, look in _LOOK.items()}
"""What the methods are called."""


@dataclass(frozen=True)
class FreshError:
    """Test error of a method at one size of the training set.

    Attributes:
        method: which.
        n: training examples.
        steps: of the method.
        mean: over training sets, each with fresh examples of its own.
        failed: training sets whose solution errs on fresh examples at all.
        sets: how many there are.
        low: of the 95 % interval of the share of all training sets that fail (Clopper and
            Pearson over training sets: fresh examples of one set fail together).
        high: likewise.
        train: mean training error.
    """

    method: FullBatch
    n: int
    steps: int
    mean: float
    failed: int
    sets: int
    low: float
    high: float
    train: float


def measure(sizes: Sequence[int] = SIZES, sets: int = SETS, steps: int = STEPS) -> list[FreshError]:
    """Train on several sets of each size, and test after the first step and the last.

    Args:
        sizes: training examples n.
        sets: training sets of each size, each with fresh examples of its own.
        steps: of each method, at least 1.

    Returns:
        For each size and method, the errors after one step and after the last.
    """
    found = []
    for n in sizes:
        for method in FULL_BATCH:
            runs = np.array([_run(method, n, seed, steps) for seed in range(sets)])  # (S, 2, 2)
            for k, at in enumerate((1, steps)):
                test, train = runs[:, k].T
                failed = int(np.count_nonzero(test))
                found.append(
                    FreshError(
                        *(method, n, at, float(test.mean()), failed, sets),
                        *clopper_pearson(failed, sets),
                        train=float(train.mean()),
                    )
                )
    return found


def paths(n: int = _PATH_SIZE, steps: int = STEPS, seed: int = 0) -> list[LineCourse]:
    """Measure every method's distance from the line through sign(X^T y).

    Args:
        n: training examples.
        steps: of each method.
        seed: of the training set.
    """
    problem = wilson_data(n, MAJORITY, seed=seed)
    return [course(problem, method, steps) for method in FULL_BATCH]


@canvas.house_style()
def draw(
    directory: Path,
    found: Sequence[FreshError] | None = None,
    followed: Sequence[LineCourse] | None = None,
) -> list[Path]:
    """Draw ``wilson`` and write its test errors.

    Args:
        directory: folder, which exists.
        found: of :func:`measure`, which None calls.
        followed: of :func:`paths`, which None calls.

    Returns:
        The files written.
    """
    found = measure() if found is None else found
    followed = paths() if followed is None else followed
    files = canvas.save(_picture(found, followed), directory, "wilson")
    return files + tables.write(directory, "wilson", *table(found))


def table(found: Sequence[FreshError]) -> tables.Table:
    """Return the table of the test errors: a row a method, a column a size."""
    sizes = sorted({row.n for row in found})
    cells = {(row.method, row.steps, row.n): row for row in found}
    head = ["method", "steps", *(f"n = {n}" for n in sizes)]
    rows: list[list[object]] = [
        [_LOOK[method][0], steps, *(_cell(cells[method, steps, n]) for n in sizes)]
        for method in FULL_BATCH
        for steps in sorted({row.steps for row in found})
    ]
    return head, rows


def _cell(row: FreshError) -> str:
    share = f"{row.failed} of {row.sets}: {100 * row.low:.0f} to {100 * row.high:.0f} %"
    return f"{row.mean:.3f} ({share})" if row.failed else f"0 ({share})"


def _run(method: FullBatch, n: int, seed: int, steps: int) -> list[list[float]]:
    """Test and training error after the first step and after the last."""
    seed += 1000 * n
    problem = wilson_data(n, MAJORITY, seed=seed)
    iterates = list(full_batch_iterates(problem, method, steps))
    return [
        [
            wilson_test_error(theta, MAJORITY, n=FRESH, seed=seed).estimate,
            problem.train_error(theta),
        ]
        for theta in (iterates[0], iterates[-1])
    ]


def _picture(found: Sequence[FreshError], followed: Sequence[LineCourse]) -> Figure:
    worst = max(row.train for row in found if row.steps > 1)
    most = f"at most {worst:g}" if worst else "0 for all"
    figure = canvas.titled(
        10.2,
        4.5,
        "Wilson et al.'s example: it is the sign that does not generalise",
        f"Left: error on {FRESH:,} fresh examples, mean of {SETS} training sets, after the first "
        f"step (open) and after {STEPS} (filled); bars: 95 % intervals over training sets.",
        f"Training error after {STEPS} steps: {most}. Right: distance of the iterates from the "
        f"line through sign($X^Ty$), n = {_PATH_SIZE}, while $|X\\theta-y| > 10^{{-6}}|y|$. "
        "Full batches, no ε.",
    )
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.06, right=0.855, top=0.79, bottom=0.12, wspace=0.24)
    _errors(left, found)
    _paths(right, followed)
    for n, (label, color, _) in enumerate(_LOOK.values()):
        y = 0.74 - 0.052 * n - 0.05 * (n > 3)
        figure.text(0.87, y, label, color=color, fontsize=9.5, fontweight="bold")
    return figure


def _errors(axes: Axes, found: Sequence[FreshError]) -> None:
    axes.axhline(1 - MAJORITY, color=INK, linewidth=0.8, linestyle=":")
    axes.text(5, 1 - MAJORITY + 0.022, "always the majority: 1 − p = 0.3", fontsize=8, color=MUTED)
    for k, (method, (_, color, marker)) in enumerate(_LOOK.items()):
        shift = 1.09 ** (k - 1.5 if k < 4 else 2 * (k - 4.5))
        for steps in sorted({row.steps for row in found}):
            first = steps == 1
            if first and method != "gd":  # sign methods: as after all steps; M-SVAG: as gd
                continue
            rows = [row for row in found if row.method == method and row.steps == steps]
            mean = np.array([row.mean for row in rows])
            ends = np.array([[row.low, row.high] for row in rows]).T * (1 - MAJORITY)
            spread = np.abs(ends - mean) * (k > 3)  # by Lemmas 2 and 3 the others do not vary
            axes.errorbar(
                [row.n * shift for row in rows],
                mean,
                spread,
                color=color,
                marker=marker,
                markersize=4.5,
                linewidth=1.2,
                elinewidth=0.9,
                linestyle=DASHED if first else "-",
                markerfacecolor="white" if first else color,
                clip_on=False,
            )
    note = "the first step is the same for both:\n0 or 0.3 by training set"
    axes.annotate(note, (23, 0.225), fontsize=8, color=SGD, va="center")
    axes.set_xscale("log")
    axes.set_xticks(SIZES, [str(n) for n in SIZES])
    axes.minorticks_off()
    axes.set_ylim(0, 0.5)
    axes.set_xlabel("training examples $n$")
    axes.set_ylabel("test error")
    canvas.tidy(axes)


def _paths(axes: Axes, followed: Sequence[LineCourse]) -> None:
    for path in followed:
        _, color, _ = _LOOK[path.method]
        line = DASHED if path.method == "m-svag" else "-"
        t = np.arange(1, len(path.distances) + 1)
        distances = np.maximum(path.distances, _ROUND_OFF)
        axes.plot(t, distances, linestyle=line, color=color, linewidth=1.0)
    axes.axhspan(_ROUND_OFF, 1e-8, color="#eef0f3", linewidth=0)
    axes.text(1.15, 2e-9, "proportional, to 1e-8", fontsize=8, color=MUTED, va="top")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, STEPS)
    axes.set_ylim(_ROUND_OFF, 3)
    axes.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axes.minorticks_off()
    axes.set_xlabel("step")
    axes.set_ylabel("proportionality error")
    canvas.tidy(axes)
