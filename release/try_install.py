"""Build the archives, check them, and try every extra in a clean environment on every Python.

    python release/try_install.py                       # no extra and each on this Python
    python release/try_install.py --python python3.12 --python python3.13 --extra lab
    python release/try_install.py --tests               # and the fast tests from the source archive

Every extra of ``pyproject.toml`` has a check here that uses what the extra is for. Downloads what
the extras need, some gigabytes for all of them; versions are those of ``constraints.txt``. An extra
that fails does not stop the others: the last lines are a table of what works where (``--table
FILE`` writes it, too), and the exit status is 1 if anything failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

STEP = """
import torch, svag
p = torch.nn.Parameter(torch.ones(3))
optimizer = svag.MSVAG([p], lr=0.1, fused={fused})
p.square().sum().backward()
optimizer.step()
assert (p < 1).all()
"""

CHECKS = {
    "": STEP.format(fused=None),
    "fast": STEP.format(fused=True),
    "theory": "import svag.theory.figures; from svag.theory import gamma_erf; gamma_erf(1.0)",
    "lab": """
import subprocess, sys
subprocess.run([sys.executable, "-m", "svag", "compare", "digits", "--dry-run"], check=True)
subprocess.run([sys.executable, "-m", "svag", "methods"], check=True)
""",
    "ray": "import ray, yaml; import svag.lab.executors.ray_cluster",
    "slurm": "import submitit, yaml; import svag.lab.executors.slurm_cluster",
    "export": "import pyarrow.parquet; import svag.export.files",
    "trackers": """
import mlflow, tensorboard, wandb
import svag.trackers.mlflow_store, svag.trackers.tensorboard_files, svag.trackers.wandb_runs
""",
    "lightning": "import lightning; import svag.integrations.lightning",
    "hf": "import transformers; import svag.integrations.hf",
    "jax": "import svag.jax as sj; import jax.numpy as jnp; sj.m_svag(0.1).init(jnp.ones(2))",
    "timm": "import svag.integrations.timm as it; assert 'svag-m-svag' in it.register()",
}
"""What is run after the installation of each extra; without an extra for the name ``""``."""

LEFT_OUT = ("all", "dev", "docs")
"""Extras that only join others, or that ``make test`` and ``make docs`` try."""


class Failed(Exception):
    """A command ended with an error."""


def run(*words: str | Path, where: Path = ROOT) -> str:
    """Run a command and return what it printed."""
    given = [str(word) for word in words]
    done = subprocess.run(given, cwd=where, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"failed: {' '.join(given)[:300]}\n{done.stdout[-2000:]}")
    return done.stdout


def environment(folder: Path, python: str) -> Path:
    """Make a clean virtual environment, and return its Python."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the source archive, check both, and return their paths."""
    python = environment(folder / "build-tools", sys.executable)
    run(python, "-m", "pip", "install", "--quiet", "build", "twine")
    run(python, "-m", "build", "--outdir", folder / "dist")
    archives = sorted((folder / "dist").iterdir())
    run(python, "-m", "twine", "check", "--strict", *archives)
    wheel = next(path for path in archives if path.suffix == ".whl")
    return wheel, next(path for path in archives if path.name.endswith(".tar.gz"))


def try_extra(place: Path, wheel: Path, extra: str) -> str:
    """Install the wheel with an extra in an environment, run its check, return torch's version."""
    python = place / "bin" / "python"
    wanted = f"svag[{extra}] @ {wheel.as_uri()}" if extra else f"svag @ {wheel.as_uri()}"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", *constraints, wanted)
    run(python, "-c", CHECKS[extra], where=place)
    return run(python, "-c", "import torch; print(torch.__version__)", where=place).strip()


def try_python(folder: Path, wheel: Path, python: str, extras: list[str]) -> dict[str, str]:
    """Try no extra and each of some on a Python; return what became of each.

    An extra is installed in a copy, by hard links, of an environment that has svag and torch alone:
    torch and what it needs are gigabytes. pip never writes into a file that is there.
    """
    outcomes = {}
    environment(folder / "bare", python)
    for extra in ["", *extras]:
        place = folder / (extra or "bare")
        if extra:
            shutil.copytree(folder / "bare", place, symlinks=True, copy_function=os.link)
        try:
            outcomes[extra] = f"works (torch {try_extra(place, wheel, extra)})"
        except Failed as failure:
            print(failure, file=sys.stderr)
            outcomes[extra] = "fails"
        print(f"{python}: svag[{extra}] {outcomes[extra]}", flush=True)
        if extra:
            shutil.rmtree(place)
    shutil.rmtree(folder / "bare")
    return outcomes


def try_tests(folder: Path, archive: Path) -> None:
    """Run the fast tests from the source archive, as whoever packages it would."""
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz")
    run("make", "test-fast", f"PYTHON={sys.executable}", where=source)


def extras() -> list[str]:
    """Return the extras to try; each must have a check."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [n for n in declared["project"]["optional-dependencies"] if n not in LEFT_OUT]
    if missing := set(names) - set(CHECKS):
        raise SystemExit(f"no check for {sorted(missing)}: add it to CHECKS in {__file__}")
    return names


def table(outcomes: dict[str, dict[str, str]]) -> str:
    """Return a Markdown table with a row an extra and a column a Python."""
    pythons = list(outcomes)
    names = dict.fromkeys(extra for column in outcomes.values() for extra in column)
    lines = [["extra", *pythons], ["---"] * (1 + len(pythons))]
    lines += [
        [extra or "(none)", *(outcomes[python].get(extra, "not tried") for python in pythons)]
        for extra in names
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Build, check and install."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", action="append", help="a Python to try; may be repeated")
    parser.add_argument("--extra", action="append", help="an extra to try; may be repeated")
    parser.add_argument("--tests", action="store_true", help="run the tests of the archive, too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table here, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            wheel, archive = build(folder)
            names = given.extra or extras()
            outcomes = {}
            for python in given.python or [sys.executable]:
                version = run(python, "-c", "import platform; print(platform.python_version())")
                outcomes[f"Python {version.strip()}"] = try_python(folder, wheel, python, names)
            made = table(outcomes)
            print(made, end="")
            if given.table:
                given.table.write_text(made, encoding="utf-8")
            if given.tests:
                try_tests(folder, archive)
                print("the fast tests pass from the source archive", flush=True)
        except Failed as failure:
            raise SystemExit(str(failure)) from failure
    if any("fails" in column.values() for column in outcomes.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
