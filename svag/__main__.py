"""Entry point of the ``svag`` command."""

import sys

from svag.errors import SvagError


def main() -> None:
    """Run the command line; expected errors end in one line and exit code 2."""
    debug = "--debug" in sys.argv
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


if __name__ == "__main__":
    main()
