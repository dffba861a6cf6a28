"""Build the archives, check them, and try every extra in a clean environment on every Python.

    python release/try_install.py                       # all extras on this Python
    python release/try_install.py --python python3.12 --python python3.13 --extra lab --extra ""
    python release/try_install.py --tests               # and the fast tests from the source archive

Every extra of ``pyproject.toml`` has a check here that uses what the extra is for. Downloads what
the extras need, some gigabytes for all of them; versions are those of ``constraints.txt``.
"""

import argparse
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


def run(*words: str | Path, where: Path = ROOT) -> None:
    """Run a command; end everything if it fails."""
    done = subprocess.run([str(word) for word in words], cwd=where, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, words))[:300]}")


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


def try_extra(folder: Path, wheel: Path, python: str, extra: str) -> None:
    """Install the wheel with an extra in a clean environment, and run the extra's check."""
    clean = environment(folder / "clean", python)
    wanted = f"svag[{extra}] @ {wheel.as_uri()}" if extra else f"svag @ {wheel.as_uri()}"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(clean, "-m", "pip", "install", "--quiet", *constraints, wanted)
    run(clean, "-c", CHECKS[extra], where=folder)
    shutil.rmtree(folder / "clean")


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
    return ["", *names]


def main() -> None:
    """Build, check and install."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", action="append", help="a Python to try; may be repeated")
    parser.add_argument("--extra", action="append", help="an extra to try; '' for none")
    parser.add_argument("--tests", action="store_true", help="run the tests of the archive, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, archive = build(folder)
        for python in given.python or [sys.executable]:
            for extra in extras() if given.extra is None else given.extra:
                try_extra(folder, wheel, python, extra)
                print(f"{python}: svag[{extra}] installs and works", flush=True)
        if given.tests:
            try_tests(folder, archive)
            print("the fast tests pass from the source archive", flush=True)


if __name__ == "__main__":
    main()
