"""The command run as a driver: what it prints and its exit code stay in the folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DETACHED = "SVAG_DETACHED"
"""Set for a driver that runs apart, so that it does not attach to itself."""

LOG, END = "driver.log", "driver.end"


def drive(directory: Path, command: Sequence[str], cwd: str) -> int:
    """Run the command, keep what it prints and its exit code in the folder."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "svag", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cwd,
            env={**os.environ, DETACHED: "1", "COLUMNS": "200"},
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the study is to stop: so are its jobs
            process.send_signal(signal.SIGINT)
            code = process.wait()
        except BaseException:  # the driver moves: its jobs go on meanwhile
            process.kill()
            process.wait()
            raise
    (directory / END).write_text(json.dumps({"code": code}))
    return code


def exit_code(directory: Path) -> int | None:
    """Return the exit code of a driver that has ended."""
    try:
        return int(json.loads((directory / END).read_text())["code"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
