"""The original files, where a developer has them."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = Path(os.environ.get("SVAG_DATA") or SHARED)
    if not (folder / "fashion-mnist").is_dir():
        pytest.skip(f"no Fashion-MNIST in {folder}; set SVAG_DATA to a folder that holds it")
    return folder


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Small networks gain nothing from more, and threads that wait for a core cost tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
