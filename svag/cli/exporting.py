"""``svag export`` and ``svag track``: records for other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from svag.cli import reporting, several_folders
from svag.errors import InvalidOption

if TYPE_CHECKING:
    from svag.analysis.study import Analysis
    from svag.export.folders import Folder
    from svag.trackers.sending import Tracker

Folders = Annotated[
    list[Path], typer.Argument(help="Folders that `svag compare` filled.", metavar="DIR")
]
Format = Literal["csv", "parquet", "latex", "json"]
To = Literal["tensorboard", "wandb", "mlflow"]

_SUFFIXES: Mapping[str, Format] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".tex": "latex",
    ".json": "json",
}


def export(
    directories: Folders,
    format: Annotated[
        Format | None,
        typer.Option(
            help="csv or parquet: a table of evaluations and one of runs; latex: a table of the "
            "methods; json: all that `svag report --json` prints, and every run. By default from "
            "the ending of FILE, else csv."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. csv and parquet: the runs go into FILE-runs beside it; by default "
            "DIR/export.csv and DIR/export-runs.csv. latex and json: by default printed."
        ),
    ] = None,
    study: reporting.WhichStudy = None,
) -> None:
    """Export the records of one or several folders for spreadsheets, data frames and papers.

    csv and parquet have every run of the folders, with its role in a study (search, selection,
    final); latex and json are of the latest study of each folder, or of --study.
    """
    from svag.export.files import write_text

    format = _format(format, out)
    if study is not None and (len(directories) > 1 or format in ("csv", "parquet")):
        raise InvalidOption(
            f"--study {study}: it is for latex and json of one folder; csv and parquet name the "
            "study of each run"
        )
    if format in ("csv", "parquet"):
        _write_tables(directories, format, out)
        return
    text = _latex(directories, study) if format == "latex" else _json(directories, study)
    if out is None:
        print(text, end="")
        return
    write_text(text, out)
    print(out)


def track(
    directories: Folders,
    to: Annotated[To, typer.Option(help="What to send the runs to.")],
    where: Annotated[
        str | None,
        typer.Option(
            help="tensorboard: folder of event files, DIR/tensorboard by default; wandb: folder of "
            "its files, DIR by default; mlflow: tracking URI, by default $MLFLOW_TRACKING_URI or "
            "DIR/mlflow.db."
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(help="wandb: project, svag by default; mlflow: experiment, the problem's."),
    ] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Send only the final runs, not those of the search.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="wandb: write files only, for `wandb sync`.")
    ] = False,
) -> None:
    """Send recorded runs to a tracker, with their settings, curves and status.

    Given again, the command sends only runs that are new or have changed.
    """
    from svag.export import folders
    from svag.trackers.runs import tracked
    from svag.trackers.sending import send

    if offline and to != "wandb":
        raise InvalidOption(f"--offline is for --to wandb; {to} has no such mode")
    if project is not None and (to == "tensorboard" or not project.strip()):
        raise InvalidOption(f"--project {project!r}: give a name, of a project of wandb or mlflow")
    console = Console(stderr=True)
    for folder in folders.read_all(directories):
        tracker, place = _tracker(to, folder.path, where, project, offline=offline)
        runs = [
            tracked(record, folder.parts.get(name))
            for name, record in folder.records.items()
            if not final or folder.role(name) == "final"
        ]
        counts = send(runs, tracker, lambda run: console.print(".", end=""))
        if counts.new + counts.replaced:
            console.print()
        print(f"{folder.path} to {place}: {counts}")


def _format(asked: Format | None, out: Path | None) -> Format:
    """Return the format, from ``--format`` or from the ending of the file's name."""
    if out is None:
        return asked or "csv"
    if out.is_dir():
        raise InvalidOption(f"--out {out} is a folder; name a file in it")
    named = _SUFFIXES.get(out.suffix.lower())
    if asked is None and named is None:
        raise InvalidOption(
            f"--out {out}: say what it is to hold with --format, or let its name end with one of "
            f"{', '.join(_SUFFIXES)}"
        )
    if asked is not None and named not in (None, asked):
        raise InvalidOption(f"--out {out} is named as {named}, and --format says {asked}")
    return asked or named or "csv"


def _write_tables(directories: list[Path], format: Format, out: Path | None) -> None:
    """Write both tables and print where they are."""
    from svag.export import files, folders, tables

    write = files.write_csv if format == "csv" else files.write_parquet
    if out is None and len(directories) > 1:
        raise InvalidOption(
            f"the tables of {len(directories)} folders need a place; give a file with --out"
        )
    path = out or directories[0] / f"export.{format}"
    read = folders.read_all(directories)
    for table, place in (
        (tables.evaluations(read), path),
        (tables.runs(read), path.with_name(f"{path.stem}-runs{path.suffix}")),
    ):
        write(table, place)
        print(place)


def _latex(directories: list[Path], study: str | None) -> str:
    from svag.export.latex import methods_table

    return "\n".join(methods_table(one) for one in _analyses(directories, study))


def _json(directories: list[Path], study: str | None) -> str:
    from svag.export import folders, json_text

    content: dict[str, Any]
    if len(directories) == 1:
        content = reporting.as_data(_analyses(directories, study)[0])
    else:
        read = several_folders.read(directories)
        problems = [reporting.as_data(analysis) for analysis in read.several.analyses]
        content = {"problems": problems, **several_folders.as_data(read.several)}
    runs: list[Folder] = folders.read_all(directories)
    return json_text.as_text({**content, "runs": json_text.recorded_runs(runs)})


def _analyses(directories: list[Path], study: str | None) -> "list[Analysis]":
    from svag.analysis.study import analyse

    return [analyse(directory, study) for directory in dict.fromkeys(directories)]


def _tracker(
    to: To, directory: Path, where: str | None, project: str | None, *, offline: bool
) -> "tuple[Tracker, str]":
    """Return the tracker, and a text that says where it keeps runs."""
    if to == "tensorboard":
        from svag.trackers.tensorboard_files import TensorBoard

        folder = directory / "tensorboard" if where is None else Path(where)
        return TensorBoard(folder), f"tensorboard --logdir {folder}"
    if to == "wandb":
        from svag.trackers.wandb_runs import PROJECT, WeightsAndBiases

        kept = directory if where is None else Path(where)
        name = PROJECT if project is None else project
        return WeightsAndBiases(kept, name, offline=offline), f"wandb, project {name}"
    from svag.trackers.mlflow_store import MLflow, default_place

    place = default_place(directory) if where is None else where
    return MLflow(place, project), f"mlflow, {place}"
