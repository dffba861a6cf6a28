"""Write ``docs/dissect.md`` from the records in ``results/dissect``.

Run ``python docs/make_dissect.py`` from the repository's root; it takes a second.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import binomtest

from svag.diagnosis.longer_training import lengthened
from svag.entrants import entrant
from svag.report.line_styles import STYLES
from svag.report.panels import LINES

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE.parent / "results" / "dissect"
PAGE: Final = HERE / "dissect.md"
PICTURE: Final = HERE / "dissect.png"
LENGTHS: Final = RESULTS / "lengths.jsonl"
SHOWN: Final = RESULTS / "readme" / "dissect.jsonl"
README: Final = HERE.parent / "README.md"
MARKS: Final = ("<!-- docs/make_dissect.py writes from here -->", "<!-- to here -->")
RECORD: Final = HERE.parent / "svag" / "diagnosis" / "track_record.json"

EFFECTS: Final = ("sign", "adaptation")
POINTS: Final = (0, 5, 25)
FITTED: Final = (
    *("digits", "wine", "iris_linear", "digits_dense", "digits_autoencoder", "picture"),
    *("diabetes", "breast_cancer", *(f"quadratic_{n:02d}" for n in range(6))),
)
"""Problems on which the rule for the length of training was found."""

_FACTOR = 3.0
_GRID = 10 / 3 + 1e-9


@dataclass(frozen=True)
class Case:
    """One problem with its study, and its dissections by point of training."""

    name: str
    study: dict[str, Any]
    dissections: dict[int, list[dict[str, Any]]]

    def truth(self, effect: str) -> str:
        """What training says of an effect on the final training loss."""
        interval = self.study["on_train_loss"][effect]["interval"]
        if interval is None or interval[0] <= 0 <= interval[1]:
            return "open"
        return "helps" if interval[1] < 0 else "hurts"

    def said(self, point: int, effect: str, by: str) -> str:
        """What a dissection says: by ``one_step``, ``race``, or both, ``verdict``."""
        rows = [row for row in self.dissections[point] if row["kind"] == "conclusion"]
        return next(s[by] for s in rows[0]["statements"] if s["effect"] == effect)

    def suggested(self, point: int) -> dict[str, float]:
        """Suggested over searched step size, by method, from the race's by the present rule."""
        race = next((r for r in self.dissections[point] if r["kind"] == "race"), None)
        searched = {key: one["lr"] for key, one in self.study["methods"].items()}
        if race is None:
            return {}
        return {
            key: lengthened(entrant(key), lr, race["steps"], self.study["steps"]) / searched[key]
            for key, lr in race["lrs"].items()
            if lr is not None and searched[key]
        }


def cases() -> list[Case]:
    """Read every problem that has a study and some dissection."""
    found = []
    for path in sorted(RESULTS.glob("*/compare.json")):
        dissections = {
            point: [json.loads(line) for line in file.read_text().splitlines()]
            for point in POINTS
            if (file := path.parent / f"at-{point}" / "dissect.jsonl").exists()
        }
        if dissections:
            found.append(Case(path.parent.name, json.loads(path.read_text()), dissections))
    return found


def predictions(found: Sequence[Case], by: str, point: int) -> dict[str, Any]:
    """Count how often what a dissection says is what training says."""
    pairs = [
        (one.said(point, effect, by), one.truth(effect))
        for one in found
        if point in one.dissections
        for effect in EFFECTS
    ]
    decided = [(said, truth) for said, truth in pairs if said in ("helps", "hurts")]
    right = sum(said == truth for said, truth in decided)
    wrong = sum({said, truth} == {"helps", "hurts"} for said, truth in decided)
    seen = sum(truth != "open" for _, truth in pairs)
    return {
        "pairs": len(pairs),
        "said": len(decided),
        "right": right,
        "wrong": wrong,
        "unseen": len(decided) - right - wrong,
        "decided": seen,
        "rate": share(right, right + wrong),
        "found": share(right, seen),
    }


def share(count: int, total: int) -> str:
    """Write a share with its 95 % interval (Wilson's)."""
    if not total:
        return "-"
    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return f"{count} of {total} ({100 * low:.0f} to {100 * high:.0f} %)"


def step_sizes(
    found: Sequence[Case], point: int, wanted: Callable[[str, str], bool]
) -> dict[str, str]:
    """Count suggestions within a factor of 3, and within one step of the grid, of the search's."""
    ratios = [
        ratio
        for one in found
        if point in one.dissections
        for key, ratio in one.suggested(point).items()
        if wanted(one.name, key)
    ]
    near = [max(r, 1 / r) for r in ratios]
    return {
        "factor": share(sum(r <= _FACTOR for r in near), len(near)),
        "grid": share(sum(r <= _GRID for r in near), len(near)),
        "median": f"{math.exp(sorted(map(math.log, ratios))[len(ratios) // 2]):.2g}"
        if ratios
        else "-",
    }


def track_record(found: Sequence[Case]) -> dict[str, int]:
    """Count suggestions at initialisation near the search's, and verdicts that came true."""
    ratios = [r for one in found if 0 in one.dissections for r in one.suggested(0).values()]
    verdicts = predictions(found, "verdict", 0)
    return {
        "problems": len(found),
        "pairs": len(ratios),
        "within": sum(max(r, 1 / r) <= _FACTOR for r in ratios),
        "right": verdicts["right"],
        "wrong": verdicts["wrong"],
    }


def started() -> dict[str, int]:
    """Count the search's runs by default and with ``--start suggested``, and chosen step sizes."""
    path = RESULTS / "start_suggested.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    methods = [row for one in rows.values() for row in one.values()]
    return {
        "problems": len(rows),
        "methods": len(methods),
        "before": sum(row[0] for row in methods),
        "after": sum(row[1] for row in methods),
        "same": sum(row[2] == row[3] for row in methods),
    }


def exponents() -> dict[str, tuple[float, float, int]]:
    """Fit, by method, how the best step size goes with the length T: mean and spread of e in T^e.

    From 8 % of a training to all of it, one e for each problem.
    """
    best: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for line in LENGTHS.read_text().splitlines():
        row = json.loads(line)
        of = best.setdefault((row["method"], row["problem"]), {})
        for length, loss in row["losses"].items():
            of[int(length)] = min(of.get(int(length), (math.inf, 0.0)), (loss, row["lr"]))
    found: dict[str, list[float]] = {}
    for (method, _), of in best.items():
        last = max(of)
        early = min(of, key=lambda length, last=last: abs(math.log(length / (0.08 * last))))
        change = math.log(of[last][1] / of[early][1]) / math.log(last / early)
        found.setdefault(method, []).append(change)
    return {
        method: (statistics.fmean(each), statistics.stdev(each), len(each))
        for method, each in found.items()
    }


def misses(found: Sequence[Case], point: int) -> Iterable[str]:
    """List the suggestions that are further off than a step of the grid."""
    for one in found:
        for key, ratio in one.suggested(point).items() if point in one.dissections else ():
            if max(ratio, 1 / ratio) > _GRID:
                yield f"{one.name}, {entrant(key).name}: {ratio:.2g} times the search's"


def table(found: Sequence[Case]) -> list[dict[str, str]]:
    """One row for each problem and effect: what was said at each point, and what training says."""
    rows = []
    for one in found:
        for effect in EFFECTS:
            row = {"problem": one.name, "effect": effect, "truth": one.truth(effect)}
            for point in POINTS:
                there = point in one.dissections
                row[f"step {point}"] = one.said(point, effect, "one_step") if there else "-"
                row[f"race {point}"] = one.said(point, effect, "race") if there else "-"
            rows.append(row)
    return rows


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what one step is worth against its step size, for each method."""
    canvas = Figure(figsize=(7.2, 3.3), facecolor="white", layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    plain = [row for row in rows if row["kind"] == "improvement" and row["track"] == "plain"]
    lowest = 0.0
    for row in plain:
        style = STYLES[row["method"]]
        points = [
            (lr, value, error)
            for lr, value, error in zip(row["lrs"], row["curve"], row["errors"], strict=True)
            if value is not None and error is not None
        ]
        lrs, values, errors = (list(column) for column in zip(*points, strict=True))
        low = [v - 2 * e for v, e in zip(values, errors, strict=True)]
        high = [v + 2 * e for v, e in zip(values, errors, strict=True)]
        axes.fill_between(lrs, low, high, color=style.color, alpha=0.15, linewidth=0)
        axes.plot(lrs, values, color=style.color, linestyle=LINES[style.dash], marker="o", ms=3)
        best = max(values)
        lowest = min(lowest, -0.35 * best)
        at = lrs[values.index(best)]
        shown = f"{entrant(row['method']).name}\n{row['value']:.2f} at {row['lr']:.2g}"
        axes.annotate(
            shown,
            (at, best),
            xytext=(6 if entrant(row["method"]).adapted else -6, 14),
            textcoords="offset points",
            ha="left" if entrant(row["method"]).adapted else "right",
            va="bottom",
            fontsize=8,
            color=style.color,
        )
    top = max(row["value"] for row in plain)
    axes.set(xscale="log", ylim=(lowest, 1.6 * top))
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xlabel("Step size")
    axes.set_ylabel("Expected decrease of the loss\nby one step")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, dpi=160, metadata={"Software": None})


def page(found: Sequence[Case]) -> str:
    """Return the text of the page."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    held_out = [one for one in found if one.name not in FITTED]
    return environment.get_template("dissect.md.j2").render(
        count=len(found),
        quadratics=sum(one.name.startswith("quadratic") for one in found),
        points=POINTS,
        predictions={
            (by, point): predictions(found, by, point)
            for by in ("one_step", "race", "verdict")
            for point in POINTS
        },
        real={
            by: predictions([o for o in found if not o.name.startswith("quadratic")], by, 0)
            for by in ("one_step", "race", "verdict")
        },
        lrs={point: step_sizes(found, point, lambda name, key: True) for point in POINTS},
        by_method={
            key: step_sizes(found, 0, lambda name, method, key=key: method == key)
            for key in ("m-sgd", "m-svag", "m-ssd", "adam")
        },
        names={key: entrant(key).name for key in ("m-sgd", "m-svag", "m-ssd", "adam")},
        held_out=step_sizes(held_out, 0, lambda name, key: True),
        held_out_count=len(held_out),
        fitted=len(FITTED),
        misses=list(misses(found, 0)),
        started=started(),
        exponents=exponents(),
        rows=table(found),
    )


def answer(rows: Sequence[dict[str, Any]]) -> str:
    """Return what the README quotes of a dissection: the answer and the line to paste."""
    ended = next(row for row in rows if row["kind"] == "conclusion")
    says = [one["text"] for one in ended["statements"]] + ended["notes"][:1]
    return "\n".join(
        [f"> **{ended['headline']}**", *(f"> - {text}" for text in says), ">",
         f"> `{ended['suggestions'][0]['line']}`"]
    )  # fmt: skip


def main() -> None:
    """Write the page, the track record, and picture and answer of the README."""
    found = cases()
    PAGE.write_text(page(found), encoding="utf-8")
    RECORD.write_text(json.dumps(track_record(found)) + "\n", encoding="utf-8")
    rows = [json.loads(line) for line in SHOWN.read_text().splitlines()]
    picture(rows, PICTURE)
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    README.write_text(
        f"{before}{MARKS[0]}\n{answer(rows)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
