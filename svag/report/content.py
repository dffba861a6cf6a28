"""The content of a problem's section of the page: text and charts, from its analysis."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svag.analysis.effects_over_training import FOLLOWED
from svag.analysis.results import TRAIN_LOSS
from svag.analysis.study import Analysis
from svag.analysis.verdict import verdict
from svag.analysis.wording import difference, listed
from svag.report import charts, details, effect_charts, line_styles, numbers, tables
from svag.report.details import duration
from svag.report.figure5_picture import caption, legend

_DASHES = {"solid": "", "dash": "7 3", "dot": "2 2.5", "dashdot": "7 2.5 1.5 2.5"}


@dataclass(frozen=True)
class PagePlace:
    """The page of a problem's section, and the folder of its records.

    Attributes:
        directory: the page's folder.
        records: the folder whose subfolder ``records`` has the records.
        prefix: prefix of the section's ids on the page.
        alone: whether the page has only this problem.
        target: value of the metric for the table of speed; None for the default.
    """

    directory: Path
    records: Path
    prefix: str = ""
    alone: bool = True
    target: float | None = None


def sentences(analysis: Analysis) -> list[str]:
    """Return the verdict, sentence by sentence."""
    return re.split(r"(?<=\.)\s+(?=[A-Z])", verdict(analysis))


def command(analysis: Analysis, records: Path) -> str:
    """Write the command that carries out the study, or continues it."""
    study, base = analysis.study, analysis.study.base
    words = ["svag", "compare", study.source or base.problem, "--methods", ",".join(study.methods)]
    for key, lr in study.lrs.items():
        words += ["--lr", f"{key}={lr!r}"]
    for key, lrs in study.grids.items():
        words += ["--grid", f"{key}={','.join(map(repr, lrs))}"]
    words += ["--steps", str(base.steps), "--seeds", str(study.seeds), "--select", base.select]
    words += ["--protocol", study.protocol] * (study.protocol != "tuned")
    words += ["--selection-seeds", str(study.selection_seeds)] * (study.selection_seeds != 3)
    words += ["--batch-size", str(base.batch_size), "--weight-decay", repr(base.weight_decay)]
    words += ["--device", base.device, "--autocast", base.autocast or "off"]
    words += ["--channels-last" if base.channels_last else "--no-channels-last"]
    words += ["--eval-examples", str(base.eval_examples or "all")]
    if study.smallest_effect is not None:
        words += ["--smallest-effect", repr(study.smallest_effect)]
    return shlex.join([*words, "--out", str(records)])


def content(analysis: Analysis, place: PagePlace) -> dict[str, Any]:
    """Return the values for the template of a problem's section, by name."""
    claims, study = analysis.claims, analysis.study
    lines = line_styles.styles(result.entrant for result in analysis.methods.values())
    intervals = claims is not None and claims.finding != "one seed"
    margin = "" if claims is None else difference(claims.margin, analysis.quantity, signed=False)
    return {
        "prefix": place.prefix,
        "alone": place.alone,
        "level": 2 if place.alone else 3,
        "study": study,
        "base": study.base,
        "judged": analysis.judged,
        "loss": analysis.figures[0],
        "figures": analysis.figures,
        "headlines": tables.headlines(analysis),
        "better": "larger" if analysis.quantity.larger_is_better else "smaller",
        "versions": {name: listed(found) for name, found in analysis.versions.items() if found},
        "caption": caption(analysis),
        "key": legend([analysis]),
        "titles": {"rows": tables.ROWS, "columns": tables.COLUMNS},
        "square": tables.square(analysis),
        "margins": tables.margins(analysis),
        "claims": tables.claims(analysis),
        "margin_of_interest": margin,
        "margin_given": claims is not None and claims.margin_given,
        "power": 0.0 if claims is None else 100 * claims.power,
        "against_cells": tables.others(analysis),
        "cell_names": [analysis.methods[key].entrant.name for key in analysis.cells.values()],
        "set_aside": tables.set_aside(analysis),
        "missing": tables.missing(analysis),
        "rows": tables.rows(analysis),
        "published": tables.published(analysis),
        "dashes": _DASHES,
        "style_of": lines.__getitem__,
        "charts": draw(analysis),
        "search": charts.search_table(analysis),
        "given": [r.entrant.name for r in analysis.methods.values() if not r.trials],
        "observations": analysis.observations,
        "command": command(analysis, place.records),
        "report_command": _report_command(analysis, place),
        "intervals": intervals,
        "single": any(len(r.runs) == 1 for r in analysis.methods.values()),
        "duration": duration(analysis.seconds),
        "listed": listed,
        "not_used": analysis.set_aside,
        "other_studies": analysis.other_studies,
        **_details(analysis, place),
    }


def draw(analysis: Analysis) -> dict[str, charts.Chart]:
    """Draw a problem's charts, by name."""
    found: dict[str, charts.Chart | None] = {}
    if any(result.runs for result in analysis.methods.values()):
        found["train_loss"] = charts.curves(analysis, analysis.figures[0])
        found["judged"] = charts.curves(analysis, analysis.judged)
        found["effects_train_loss"] = effect_charts.over_steps(analysis, TRAIN_LOSS)
        found["effects_judged"] = effect_charts.over_steps(analysis, analysis.judged)
    found["sensitivity"] = charts.sensitivity(analysis)
    return {name: chart for name, chart in found.items() if chart is not None}


def summary(analysis: Analysis) -> str:
    """Write in one line what was run."""
    base = analysis.study.base
    counts = sorted({result.many for result in analysis.methods.values()} - {0}) or [0]
    many = numbers.count(counts[-1], "seed")
    return ", ".join(
        (
            numbers.count(len(analysis.methods), "method"),
            numbers.count(base.steps, "step"),
            f"batches of {base.batch_size}",
            many if len(counts) == 1 else f"{counts[0]} to {many}",
        )
    )


def _details(analysis: Analysis, place: PagePlace) -> dict[str, Any]:
    examples = analysis.study.base.eval_examples
    return {
        "effect_key": {name: line_styles.EFFECTS[name] for name in FOLLOWED},
        "effect_names": effect_charts.NAMES,
        "turns": details.turns(analysis),
        "gaps": details.gaps(analysis),
        "speeds": details.speeds(analysis, place.target),
        "target_given": place.target is not None,
        "costs": details.costs(analysis),
        "beside": details.beside_the_choice(analysis),
        "sources": details.sources(analysis, place.directory, place.records),
        "eval_examples": "" if examples is None else f"{examples:,}",
    }


def _report_command(analysis: Analysis, place: PagePlace) -> str:
    words = ["svag", "report", str(place.records), "--study", analysis.study.id]
    return shlex.join(words + ["--out", str(place.directory)] * (place.directory != place.records))
