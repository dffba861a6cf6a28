"""The original files, where a developer has them."""

import os
from pathlib import Path

import pytest
import torch

from svag.problems.cifar_files import Cifar, load_cifar

SHARED = Path(__file__).parents[3] / "shared" / "data"
CACHE = Path(__file__).parents[3] / "cache"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = Path(os.environ.get("SVAG_DATA") or SHARED)
    if not (folder / "fashion-mnist").is_dir():
        pytest.skip(f"no Fashion-MNIST in {folder}; set SVAG_DATA to a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def cifar_10(data_dir: Path) -> Cifar:
    return _decoded("cifar-10", data_dir)


@pytest.fixture(scope="session")
def cifar_100(data_dir: Path) -> Cifar:
    return _decoded("cifar-100", data_dir)


def _decoded(name: str, data_dir: Path) -> Cifar:
    """Read a CIFAR set, unless that takes the five minutes of decoding."""
    if not (data_dir / name / "labels.npz").is_file():
        pytest.skip(f"no {name}/labels.npz in {data_dir}")
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("SVAG_CACHE"):
            patch.setenv("SVAG_CACHE", str(CACHE))
        places = (Path(os.environ["SVAG_CACHE"]), data_dir, data_dir / name)
        if not any((place / f"{name}.npy").is_file() for place in places):
            pytest.skip(f"no {name}.npy in {places[0]}; set SVAG_CACHE to a folder that holds it")
        return load_cifar(name, data_dir)


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Small networks gain nothing from more, and threads that wait for a core cost tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
