"""Write ``docs/theory.md`` and its pictures: every number in it is measured here.

Run ``python docs/make_theory.py`` from the repository's root; it takes three to ten minutes.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from svag.theory.averages import rho
from svag.theory.factors import (
    estimate_optimal_factor,
    estimate_optimal_sign_factor,
    gamma_erf,
    gamma_sqrt,
    largest_gap,
    optimal_factor,
    optimal_sign_factor,
)
from svag.theory.figure2 import SEEDS, figure2_panels
from svag.theory.figures import (
    conditions,
    figure2_picture,
    figure4_picture,
    p_diag_picture,
    tables,
    theorem1_picture,
    wilson_picture,
)
from svag.theory.spectra import SPECTRA
from svag.theory.wilson import wilson_comparison

HERE: Final = Path(__file__).parent
PICTURES: Final = HERE / "theory"
CHEAP: Final = (
    *("improvements", "interaction", "covariance", "lemma1", "noises", "start", "drift"),
    *("lines", "margins"),
)
"""Sections that take seconds, which a test renders again."""

_SAMPLES = 200_000
_OTHER_DRAWS = range(1, 11)
_LARGE = 1_000_000
_N = 50

Section = dict[str, Any]


def improvements() -> Section:
    """Expected improvements: exact, by Monte Carlo, and the paper's bound; d = 20."""
    rows: list[list[object]] = []
    for rotated in (True, False):
        for noise in (0.1, 1.0, 4.0):
            rng = np.random.default_rng(0)
            problem = conditions.drawn_problem(rotated, noise, rng)
            theta = rng.uniform(-1, 1, 20)
            gradients = problem.sample_gradients(theta, _SAMPLES, rng)
            sgd = problem.expected_improvement(theta, -gradients)
            ssd = problem.expected_improvement(theta, -np.sign(gradients))
            exact = problem.expected_improvement_ssd(theta)
            bound = problem.expected_improvement_ssd(theta, exact=False)
            rows.append(
                [
                    "rotated" if rotated else "axis-aligned",
                    f"{noise:g}",
                    problem.expected_improvement_sgd(theta),
                    f"{tables.text(sgd.value)} ± {tables.text(sgd.standard_error)}",
                    exact,
                    f"{tables.text(ssd.value)} ± {tables.text(ssd.standard_error)}",
                    bound,
                    f"{exact / bound:.2f}",
                ]
            )
    head = ["basis", "nu", "SGD, Eq. (13)", "Monte Carlo", "SSD, exact", "Monte Carlo"]
    head += ["SSD, Eq. (14)", "exact/bound"]
    shares = []
    for draw in SPECTRA.values():
        rng = np.random.default_rng(0)
        eigenvalues = draw(100, rng)
        away = rng.uniform(-10, 10, 100)
        first = np.sum(eigenvalues**3 * away**2)
        shares.append([float(nu**2 * np.sum(eigenvalues**3) / first) for nu in (0.1, 4.0)])
    return {"table": tables.markdown(head, rows), "samples": _SAMPLES, "shares": shares}


def covariance() -> Section:
    """Which of nu^2 Q and nu^2 Q Q is the covariance of a stochastic gradient."""
    rng = np.random.default_rng(0)
    problem = conditions.drawn_problem(True, 1.0, rng)
    sample = np.cov(problem.sample_gradients(np.zeros(20), _SAMPLES, rng).T)
    wanted = {"Q": problem.Q, "QQ": problem.Q @ problem.Q}
    distance = {
        name: float(np.linalg.norm(sample - matrix) / np.linalg.norm(matrix))
        for name, matrix in wanted.items()
    }
    return {"distance": distance, "samples": _SAMPLES}


def ratios() -> Section:
    """Figure 2's ratios beside the band, and Figure 2."""
    panels = figure2_panels(seeds=figure2_picture.PRECISE)
    scales = figure2_picture.by_scale()
    figure2_picture.draw(PICTURES, panels, scales, page=False)
    found = figure2_picture.verdicts(panels)
    return {
        "seeds": figure2_picture.PRECISE,
        "scales": tables.markdown(*figure2_picture.scale_table(scales)),
        "table": tables.markdown(*figure2_picture.table([verdict.panel for verdict in found])),
        "agree": sum(verdict.agrees for verdict in found),
        "out": [verdict for verdict in found if not verdict.agrees],
        "ratio": [tables.text(verdict.panel.ratio) for verdict in found],
        "inverse": [tables.text(1 / verdict.panel.ratio) for verdict in found],
    }


def scale() -> Section:
    """How the ratios move with the draw of the matrices, each with seeds of its own."""
    draws = [
        figure2_panels(problem_seed=draw, seeds=range(SEEDS * draw, SEEDS * (draw + 1)))
        for draw in _OTHER_DRAWS
    ]
    rows: list[list[object]] = []
    for panels in zip(*draws, strict=True):
        medians = np.array([panel.ratio for panel in panels])
        intervals = np.array([panel.median_interval() for panel in panels])
        winners = [panel.winner for panel in panels]
        counts = ", ".join(
            f"{name} {winners.count(name)}"
            for name in ("SGD", "tie", "SSD", "open")
            if name in winners
        )
        interval = tables.interval(float(medians.min()), float(medians.max()))
        rows.append(
            [
                panels[0].name,
                f"{panels[0].noise:g}",
                float(np.median(medians)),
                interval,
                tables.interval(float(intervals.min()), float(intervals.max())),
                f"{float(np.median(intervals[:, 1] / intervals[:, 0])):.3g}",
                counts,
            ]
        )
    head = ["problem", "nu", "SGD/SSD", "medians", "their intervals reach", "width, as a factor"]
    head += ["nearer, of 10 draws"]
    return {"draws": tables.markdown(head, rows), "seeds": SEEDS}


def lemma1() -> Section:
    """Lemma 1 on samples of three distributions, and Figure 3's gaps."""
    p, rng = 1.0, np.random.default_rng(0)
    noises = {
        "Gaussian": rng.standard_normal(_LARGE),
        "Laplace": rng.laplace(size=_LARGE) / np.sqrt(2),
        "Student's t, 5 degrees of freedom": rng.standard_t(5, _LARGE) / np.sqrt(5 / 3),
    }
    rows: list[list[object]] = []
    for name, noise in noises.items():
        first = estimate_optimal_factor(p + noise, p)
        second = estimate_optimal_sign_factor(p + noise, p)
        rows.append(
            [
                name,
                f"{float(optimal_factor(p, 1.0)):.4f}",
                f"{float(first.factor):.4f} ± {float(first.factor_error):.4f}",
                f"{float(optimal_sign_factor(p, 1.0)):.4f}",
                f"{float(second.factor):.4f} ± {float(second.factor_error):.4f}",
            ]
        )
    head = ["noise", "Eq. (15)", "from samples", "Eq. (16) for a Gaussian", "from samples"]
    eta = np.linspace(0, 1, 10_001)[1:]
    below = gamma_erf(eta) - gamma_sqrt(eta)
    gap, found = largest_gap(), figure4_picture.example()
    return {
        "table": tables.markdown(head, rows),
        "samples": _LARGE,
        "gap": f"{gap.size:.4f}",
        "eta": f"{gap.eta:.4f}",
        "below": f"{below.max():.4f}",
        "below_eta": f"{eta[below.argmax()]:.4f}",
        "before": f"{found.before:.2f}",
        "after": f"{found.after:.2f}",
        "factor": [f"{x:.3f}" for x in found.factor],
        "mean": [f"{x:.2f}" for x in found.mean],
    }


def start() -> Section:
    """Measure rho(beta, t), the variance of m_t in units of that of one gradient."""
    beta, n = 0.9, 100_000
    rng, m = np.random.default_rng(0), np.zeros(n)
    rows: list[list[object]] = []
    for t in range(101):
        m = beta * m + (1 - beta) * rng.standard_normal(n)
        if t in (0, 1, 10, 100):
            measured = np.var(m / (1 - beta ** (t + 1)))
            rows.append([t, f"{rho(beta, t):.4f}", f"{measured:.4f}", f"{1 / rho(beta, t):.2f}"])
    head = ["t", "rho(0.9, t), Eq. (21)", "variance of m_t, measured", "1/rho"]
    return {"table": tables.markdown(head, rows), "samples": n}


def lines() -> Section:
    """Lemmas 2 and 3: how far every method goes from the line through sign(X^T y)."""
    rows: list[list[object]] = [
        [
            wilson_picture.NAMES[row.method],
            row.compared,
            _distances(row.nearest, row.farthest),
            f"{row.train_error:g}",
            f"{row.test_error.expected:.2g}",
            f"{row.to_max_margin:.1f}°",
        ]
        for row in wilson_comparison(_N)
    ]
    head = ["method", "iterates compared", "proportionality error", "training error"]
    head += ["test error, expected", "angle to max-margin"]
    return {"table": tables.markdown(head, rows), "n": _N}


def _distances(nearest: float, farthest: float) -> str:
    """Write how far from a line iterates are, round-off as such: its digits are the processor's."""
    return "< 1e-14" if farthest < 1e-14 else tables.interval(nearest, farthest)


def p_diag() -> Section:
    """Diagonal mass of rotated matrices."""
    found = p_diag_picture.measure()
    p_diag_picture.draw(PICTURES, found)
    return {"table": tables.markdown(*p_diag_picture.table(found))}


def theorem1() -> Section:
    """Theorem 1: constants and slopes."""
    found = theorem1_picture.measure()
    theorem1_picture.draw(PICTURES, found)
    local = [rate for rate in found if rate.spectrum == "ill-conditioned"]
    return {
        "table": tables.markdown(*theorem1_picture.table(found)),
        "steps": f"{theorem1_picture.STEPS:,}",
        "seeds": theorem1_picture.SEEDS,
        "local": tables.markdown(*_local(local)),
    }


def wilson() -> Section:
    """Test errors on Wilson et al.'s data."""
    found = wilson_picture.measure()
    wilson_picture.draw(PICTURES, found)
    return {
        "table": tables.markdown(*wilson_picture.table(found)),
        "sets": wilson_picture.SETS,
        "fresh": f"{wilson_picture.FRESH:,}",
        "steps": wilson_picture.STEPS,
    }


SECTIONS: Final[dict[str, Callable[[], Section]]] = {
    section.__name__: section
    for section in (
        *(improvements, conditions.interaction, covariance, p_diag, ratios, scale),
        *(lemma1, conditions.noises, theorem1, start, conditions.drift),
        *(lines, conditions.margins, wilson),
    )
}


def template() -> Template:
    """Return the page's template, with a block for each section."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("theory.md.j2")


def block(name: str) -> str:
    """Measure and write one section alone."""
    page = template()
    return _tidy("".join(page.blocks[name](page.new_context({name: SECTIONS[name]()}))))


def write(names: Iterable[str] = SECTIONS) -> None:
    """Measure everything, draw the pictures, write the page."""
    from svag.theory.figures import draw

    page = _tidy(template().render({name: SECTIONS[name]() for name in names}))
    with TemporaryDirectory() as folder:
        for name in ("3", "4"):
            draw(name, Path(folder))
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, PICTURES)
    for file in PICTURES.iterdir():
        if file.suffix != ".png":
            file.unlink()
    (HERE / "theory.md").write_text(page, encoding="utf-8")


def _tidy(text: str) -> str:
    """Leave one empty line where tables leave more."""
    return re.sub(r"\n{3,}", "\n\n", text)


def _local(found: list[theorem1_picture.Rate]) -> tables.Table:
    """Local slopes of idealised SVAG at some times."""
    times = (10, 100, 1_000, 10_000, 50_000)
    head = ["problem", *(f"t = {t:,}" for t in times)]
    rows: list[list[object]] = []
    for rate in found:
        t, slope = rate.local()
        rows.append([rate.name, *(f"{np.interp(np.log(x), np.log(t), slope):.2f}" for x in times)])
    return head, rows


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    write()
