"""Kill a study again and again, and compare its records with those of an undisturbed one.

    python -m tests.lab.kills --kills 50 -- digits --workers 4
    python -m tests.lab.kills --kills 10 --after 35 80 -- fmnist-2c2d --methods m-sgd \\
        --lr m-sgd=0.01 --seeds 1 --steps 6000 --workers 1 --checkpoint-every 20 --data-dir DIR

What follows ``--`` goes to ``svag compare``. Each attempt, with all its workers, gets SIGKILL after
a random time, as long as it has not ended; the last goes on to the end. Times, machine and the
number of attempts may differ; anything else is printed, and the exit code is 1.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svag.lab.records import identity, load

OF_ONE_ATTEMPT = ("started", "machine", "commit", "wall_time", "resumed")


def compare(options: Sequence[str], out: Path, timeout: float | None = None) -> bool:
    """Carry out the study, for so many seconds at most; whether it has ended by itself."""
    command = [sys.executable, "-m", "svag", "compare", *options, "--out", str(out)]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    return True


def content(folder: Path) -> dict[str, Any]:
    """What is read back of each run, without what belongs to an attempt."""
    return {
        identity(record): [
            {name: value for name, value in line.items() if name not in OF_ONE_ATTEMPT}
            for line in (record.run, *record.evals, *record.agreements, record.end or {})
        ]
        for record in load(folder)
    }


def main() -> None:
    """Run a study with kills and one without."""
    parser = argparse.ArgumentParser(description="Kill a study again and again.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--after", type=float, nargs=2, default=(4.0, 12.0), metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="+", metavar="OPTION", help="of svag compare")
    given = parser.parse_args()
    times, kills = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        disturbed, quiet = Path(folder) / "disturbed", Path(folder) / "quiet"
        while kills < given.kills:
            if compare(given.options, disturbed, times.uniform(*given.after)):
                break
            kills += 1
        compare(given.options, disturbed)
        compare(given.options, quiet)
        ours, theirs = content(disturbed), content(quiet)
    differing = [key for key in theirs if ours.get(key) != theirs[key]]
    print(f"{kills} kills; {len(theirs) - len(differing)} of {len(theirs)} records are equal")
    if further := ours.keys() - theirs.keys():
        print(f"{len(further)} further runs, carried out ahead of need by a worker that was idle")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
