"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Problem = Annotated[
    str,
    typer.Argument(
        help="A name (see `svag problems`), path/to/file.py:function or module:function."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of original data files; else $SVAG_DATA, else a download."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of every run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")]
