"""Runs the command as a driver: its output and its exit code are written to the folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DETACHED = "SVAG_DETACHED"
"""Environment variable that is set for a detached driver, so that it does not attach to itself."""

LOG, END = "driver.log", "driver.end"


def drive(directory: Path, command: Sequence[str], cwd: str) -> int:
    """Run the command; write its output and its exit code to the folder.

    Args:
        directory: folder of the records; created if necessary.
        command: arguments of the command ``svag``.
        cwd: folder to run the command in.

    Returns:
        The exit code.
    """
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
        except KeyboardInterrupt:  # stop the study: the command cancels its jobs
            process.send_signal(signal.SIGINT)
            code = process.wait()
        except BaseException:  # the driver is requeued: its jobs go on, so kill without cleanup
            process.kill()
            process.wait()
            raise
    (directory / END).write_text(json.dumps({"code": code}))
    return code


def exit_code(directory: Path) -> int | None:
    """Return the exit code of the folder's last driver; None if it has not written one."""
    try:
        return int(json.loads((directory / END).read_text())["code"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
