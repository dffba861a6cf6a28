"""``svag report`` and ``svag status``: what the records of a folder say."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from svag.cli import several_folders
from svag.cli.options import Json

if TYPE_CHECKING:
    from svag.analysis.study import Analysis

Folder = Annotated[Path, typer.Argument(help="A folder that `svag compare` filled.")]
Filled = typer.Argument(help="Folders that `svag compare` or `svag dissect` filled, one a problem.")
WhichStudy = Annotated[
    str | None, typer.Option("--study", help="Id of a study of the folder; the latest by default.")
]


def report(
    directories: Annotated[list[Path], Filled],
    study: WhichStudy = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of page and pictures; by default DIR, or the parent of several DIR."
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Value of the test metric; reports the steps to reach it. 0.9 is 90 %."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the report again from the records of a folder, or of several; nothing is trained.

    Several folders make one page: an overview, the effects side by side, the paper's observations
    over problems, and a section a problem. Folders without records are skipped with a note. Of a
    folder with the findings of `svag dissect`, dissect.html is made again as well.
    """
    from svag.analysis.dissection_records import FILE
    from svag.analysis.study import analyse

    if len(directories) > 1:
        several_folders.check_options(study, target)
        _report_several(directories, out, as_json=as_json)
        return
    directory = directories[0]
    if (directory / FILE).is_file():
        alone = not any((directory / name).is_dir() for name in ("records", "studies"))
        _report_dissection(directory, out or directory, as_json=as_json, alone=alone)
        if alone and study is None and target is None:
            return
    present(analyse(directory, study), out or directory, directory, target, as_json=as_json)


def status(directory: Folder, study: WhichStudy = None) -> None:
    """Print the progress of a study."""
    from svag.analysis.study import chosen_study
    from svag.entrants import entrant
    from svag.lab import records
    from svag.lab.protocol import replay

    driver = _driver(directory)  # first, since it fetches the records of a driver on Ray
    which = chosen_study(directory, study)
    print(driver, end="")
    if driver and not any((directory / "records").glob("*.jsonl")):
        print("no records yet")
        return
    found = records.load(directory)
    print(f"study {which.id}: {which.base.problem}, {which.base.steps} steps, {which.seeds} seeds")
    find = records.finder(found)
    for key in which.methods:
        outcome = replay(which, key, find)
        many = f"{outcome.missing} run{'s' * (outcome.missing != 1)} missing"
        stage = "done" if outcome.complete else many + f" ({outcome.error})" * bool(outcome.error)
        lr = f"step size {outcome.lr:g}" if outcome.lr == outcome.lr else "no step size yet"
        print(f"{entrant(key).name}: {stage}; {lr}; {len(outcome.final)} final runs")
    counts = Counter(record.status for record in found)
    print("records: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))


def _driver(directory: Path) -> str:
    """Return a line about the process that works in a folder: a detached driver or another."""
    from svag.lab import folder_lock
    from svag.lab.executors import detached, driver_process

    driver = detached.found(directory)
    if driver is not None:
        said = detached.state(directory, driver).said
        return f"{said}; it prints to {directory / driver_process.LOG}\n"
    holder = folder_lock.holder(directory)
    return f"{holder} is at work\n" if holder else ""


def present(
    analysis: "Analysis",
    directory: Path,
    records: Path,
    target: float | None = None,
    *,
    as_json: bool,
) -> None:
    """Write the report, and print the verdict and the methods' figures.

    Args:
        analysis: what to report.
        directory: folder of the page and the pictures.
        records: folder of the records, for links.
        target: value of the test metric that runs should reach; None for no such table.
        as_json: whether to print JSON instead of text.
    """
    from svag import report as reports
    from svag.analysis.verdict import verdict

    page = reports.write(analysis, directory, records, target)
    console = Console(stderr=True)
    if as_json:
        print(json.dumps(as_data(analysis), indent=1))
    else:
        print(verdict(analysis))
        Console(width=max(100, Console().width)).print(_table(analysis), highlight=False)
    for line in (*analysis.set_aside, *_other_studies(analysis)):
        say(console, f"not in this study: {line}")
    for name in ("torch", "svag"):
        found = analysis.versions[name]
        if len(found) > 1:
            say(console, f"note: this study's runs are of {name} {' and '.join(found)}")
    say(console, f"report: {page}")


def _report_dissection(directory: Path, out: Path, *, as_json: bool, alone: bool) -> None:
    """Write the page of a dissection; print its answer if the folder has nothing else."""
    from svag.analysis.dissection_records import of_kind, read
    from svag.report import dissection

    page = dissection.write(directory, out)
    if alone:
        rows = read(directory)
        answers = [row["headline"] for row in of_kind(rows, "conclusion")]
        print(json.dumps(rows, indent=1) if as_json else "\n".join(answers))
    say(Console(stderr=True), f"page: {page}")


def _report_several(directories: list[Path], out: Path | None, *, as_json: bool) -> None:
    """Write the page on several problems, and print their common verdict."""
    from svag import report as reports
    from svag.analysis.overview import overview

    read = several_folders.read(directories)
    page = reports.write_several(
        read.several, out or several_folders.common_folder(read.folders), read.folders
    )
    console = Console(stderr=True)
    if as_json:
        problems = [as_data(analysis) for analysis in read.several.analyses]
        print(json.dumps({"problems": problems, **several_folders.as_data(read.several)}, indent=1))
    else:
        for sentence in overview(read.several):
            print(sentence)
        for number, check in enumerate(read.several.checks, 1):
            print(f"{number}. {check.claim} {check.outcome.capitalize()}. {check.because}")
    for text in read.skipped:
        say(console, f"skipped {text}")
    say(console, f"report: {page}")


def say(console: Console, text: str) -> None:
    """Print a line without markup, highlighting or wrapping."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _other_studies(analysis: "Analysis") -> list[str]:
    others = ", ".join(analysis.other_studies)
    return [f"the studies {others} (`svag report --study ID`)"] if others else []


def _table(analysis: "Analysis") -> Table:
    from svag.analysis.published import beside
    from svag.report import tables

    known = beside(analysis)
    figures = (analysis.judged, analysis.figures[0])
    columns = ("method", "step size", "n", *(figure.title for figure in figures))
    table = Table(*columns, *("published",) * (known is not None), box=None, pad_edge=False)
    for key, row in tables.rows(analysis).items():
        cells = [row.name, row.lr, str(row.n), *(row.final[figure.name] for figure in figures)]
        if known is not None:
            published = known.test_accuracy.get(key)
            cells.append("" if published is None else f"{100 * published:.1f} %")
        table.add_row(*cells)
    return table


def as_data(analysis: "Analysis") -> dict[str, Any]:
    """Return the content of ``--json``: verdict, effects, and the methods' figures."""
    from svag.analysis.verdict import verdict

    claims = analysis.claims
    return {
        "study": analysis.study.id,
        "problem": analysis.study.base.problem,
        "metric": analysis.quantity.name,
        "verdict": verdict(analysis),
        "finding": claims.finding if claims else None,
        "effects": {
            name: {"estimate": effect.estimate, "interval": effect.interval}
            for name, effect in (claims.effects if claims else {}).items()
        },
        "smallest_effect": claims.margin if claims else None,
        "methods": {
            key: {
                "lr": None if result.lr != result.lr else result.lr,
                "runs": len(result.runs),
                "diverged": result.diverged,
                "final": {
                    name: None if spread.mean != spread.mean else spread.mean
                    for name, spread in result.final.items()
                },
            }
            for key, result in analysis.methods.items()
        },
        "set_aside": list(analysis.set_aside),
    }
