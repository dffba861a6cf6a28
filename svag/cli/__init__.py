"""The ``svag`` command: parse, call, print."""

from typing import Annotated

import typer

from svag import __version__
from svag.cli.bench import bench
from svag.cli.compare import compare
from svag.cli.dissecting import dissect
from svag.cli.exporting import export, track
from svag.cli.listing import figure, list_methods, list_problems
from svag.cli.reporting import report, status

app = typer.Typer(
    help="Adam taken apart: does its sign or its variance adaptation help, on your own problem?",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(dissect)
app.command()(compare)
app.command()(report)
app.command()(status)
app.command()(export)
app.command()(track)
app.command("problems")(list_problems)
app.command("methods")(list_methods)
app.command()(figure)
app.add_typer(bench, name="bench", no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print it."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from, line by line.")
    ] = False,
) -> None:
    """Parse the options before the command; ``__main__`` looks for ``--debug`` itself."""
