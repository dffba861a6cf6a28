"""Counts the runs that ``svag compare --start suggested`` saves in the search for step sizes.

    python results/dissect/start_suggested.py WORK NAME ...

WORK is the folder of the studies that ``run.py`` has made. Each study is made again from their
records, in WORK/started/NAME, with searches that begin where a dissection suggests; runs that are
there are not trained again. The counts are added to ``start_suggested.json`` next to this file.
"""

import json
import shutil
import sys
from pathlib import Path

from run import HERE, PROBLEMS, svag

from svag.analysis.study import analyse

COUNTS = HERE / "start_suggested.json"


def counted(name: str, work: Path) -> dict[str, list[float]]:
    """Return runs and step size of each method's search, by default and as suggested."""
    out = work / "started" / name
    if not (out / "studies").exists():
        shutil.rmtree(out, ignore_errors=True)
        records = shutil.ignore_patterns(".claim")
        shutil.copytree(work / name / "records", out / "records", ignore=records)
    fixed = ("--workers", "1", "--device", "cpu", "--quiet", "--json")
    svag("compare", PROBLEMS[name], *fixed, "--start", "suggested", "--out", str(out))
    before, after = (analyse(folder).methods for folder in (work / name, out))
    return {
        key: [
            *(len(one[key].outcome.search) for one in (before, after)),
            *(one[key].lr for one in (before, after)),
        ]
        for key in after
    }


def main() -> None:
    """Count what is missing."""
    work, names = Path(sys.argv[1]), sys.argv[2:]
    found = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    for name in names:
        if name not in found:
            found[name] = counted(name, work)
            COUNTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
