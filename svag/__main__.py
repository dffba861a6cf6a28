"""Entry point of the ``svag`` command."""

import io
import os
import sys

from svag.errors import SvagError


def main() -> None:
    """Run the command line; expected errors end in one line and exit code 2."""
    debug = "--debug" in sys.argv
    _prepare()
    try:
        from svag.cli import app

        app()
    except ModuleNotFoundError as error:
        if debug:
            raise
        print(f"error: this needs {error.name}; pip install 'svag[all]'", file=sys.stderr)
        sys.exit(2)
    except SvagError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a folder without permission, a name too long, a full disk
        if debug:
            raise
        what = f"{error.filename}: " * (error.filename is not None)
        print(
            f"error: {what}{error.strerror or error} (svag --debug COMMAND shows where)",
            file=sys.stderr,
        )
        sys.exit(2)


def _prepare() -> None:
    """Print on any terminal, and draw into files only.

    A character that the encoding of the terminal lacks is printed as ``?``. ``$MPLBACKEND`` may be
    of a notebook, or of no backend at all, which matplotlib refuses to be imported with.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    os.environ["MPLBACKEND"] = "agg"


if __name__ == "__main__":
    main()
