"""Finding, checking and reading original files; the corrupted ones are made from real ones."""

import gzip
import hashlib
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from svag.errors import DataError
from svag.problems import get
from svag.problems.data import (
    FASHION_MNIST,
    TOLSTOY,
    DataFile,
    cache_folder,
    check,
    locate,
    read_idx,
)

LABELS = "t10k-labels-idx1-ubyte.gz"
FILE = next(file for file in FASHION_MNIST.files if file.name == LABELS)
ONLY_LABELS = replace(FASHION_MNIST, files=(FILE,))


@pytest.fixture
def labels(data_dir, tmp_path):
    """A folder with a copy of the test labels and nothing else."""
    shutil.copyfile(data_dir / "fashion-mnist" / LABELS, tmp_path / LABELS)
    return tmp_path / LABELS


@pytest.fixture
def no_data_dir(monkeypatch, tmp_path):
    """No $SVAG_DATA, and an empty cache folder."""
    monkeypatch.delenv("SVAG_DATA", raising=False)
    monkeypatch.delenv("SVAG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def message(*args) -> str:
    with pytest.raises(DataError) as caught:
        locate(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("folder", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_layouts(labels, tmp_path, folder):
    home = tmp_path / "root" / folder
    home.mkdir(parents=True)
    moved = labels.rename(home / LABELS)
    assert locate(ONLY_LABELS, tmp_path / "root") == {LABELS: moved}


def test_environment_and_argument(labels, monkeypatch, tmp_path):
    monkeypatch.setenv("SVAG_DATA", str(labels.parent))
    assert locate(ONLY_LABELS) == {LABELS: labels}
    (tmp_path / "empty").mkdir()
    assert "empty" in message(ONLY_LABELS, tmp_path / "empty")  # the argument goes first


def test_missing_folder(monkeypatch, tmp_path):
    absent = tmp_path / "absent"
    text = message(FASHION_MNIST, absent)
    assert f"data directory {str(absent)!r} does not exist; name one" in text
    monkeypatch.setenv("SVAG_DATA", str(absent))
    assert f"$SVAG_DATA {str(absent)!r} does not exist" in message(FASHION_MNIST)
    absent.write_text("")
    assert "is not a directory" in message(FASHION_MNIST)


def test_folder_without_the_files(labels):
    text = message(FASHION_MNIST, labels.parent)
    assert "lacks train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images" in text
    assert LABELS not in text
    assert "'fashion-mnist', 'FashionMNIST/raw'" in text
    assert FASHION_MNIST.address in text


def test_truncated_file(labels):
    labels.write_bytes(labels.read_bytes()[:4000])
    text = message(ONLY_LABELS, labels.parent)
    assert f"{str(labels)!r} has 4000 of 5148 bytes" in text
    assert FASHION_MNIST.address + LABELS in text


def test_a_file_under_the_name_of_another(labels):
    images = FASHION_MNIST.files[2]
    shutil.copyfile(labels, labels.with_name(images.name))
    text = message(replace(FASHION_MNIST, files=(images, FILE)), labels.parent)
    assert f"{images.name!r} is {LABELS}; get it again".replace("'", "", 1) in text


def test_flipped_bit(labels):
    content = bytearray(labels.read_bytes())
    content[3000] ^= 1
    labels.write_bytes(content)
    text = message(ONLY_LABELS, labels.parent)
    expected = FILE.checksum.removeprefix("sha256:")
    assert re.search(rf"SHA-256 [0-9a-f]{{64}} instead of {expected}; get it again", text)


@contextmanager
def served(folder: Path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield replace(ONLY_LABELS, address=f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_download_once(labels, no_data_dir):
    with served(labels.parent) as data_set:
        path = locate(data_set)[LABELS]
    assert path.is_relative_to(no_data_dir)
    assert path.read_bytes() == labels.read_bytes()
    assert locate(data_set)[LABELS] == path  # the server is gone


def test_download_of_another_file(labels, no_data_dir):
    labels.write_bytes(b"not the labels")
    with served(labels.parent) as data_set:
        text = message(data_set)
    assert FILE.checksum.removeprefix("sha256:") in text
    assert "$SVAG_DATA" in text


def test_no_network(no_data_dir):
    text = message(replace(ONLY_LABELS, address="http://127.0.0.1:9/"))
    assert f"http://127.0.0.1:9/{LABELS} could not be downloaded" in text
    assert "ConnectionError" in text
    assert "$SVAG_DATA" in text


def test_cache_folder(no_data_dir, monkeypatch, tmp_path):
    assert cache_folder() == no_data_dir / "svag"
    monkeypatch.setenv("SVAG_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("SVAG_CACHE", "")
    assert cache_folder() == no_data_dir / "svag"
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"pip install 'svag\[lab\]', or name a folder as \$SVAG_C"):
        cache_folder()


def test_download_to_a_named_cache(labels, no_data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("SVAG_CACHE", str(tmp_path / "elsewhere"))
    with served(labels.parent) as data_set:
        assert locate(data_set)[LABELS].is_relative_to(tmp_path / "elsewhere")


def test_download_without_pooch(no_data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert "pip install 'svag[lab]'" in message(ONLY_LABELS)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_check_by_either_hash(labels, algorithm):
    right = hashlib.new(algorithm, labels.read_bytes()).hexdigest()
    check(labels, DataFile(LABELS, f"{algorithm}:{right}", 5148), "")
    check(labels, DataFile(LABELS, f"{algorithm}:{right}"), "")
    wrong = DataFile(LABELS, f"{algorithm}:{right[::-1]}", 5148)
    with pytest.raises(DataError, match=f" {right} instead of {right[::-1]}; do this"):
        check(labels, wrong, "do this")
    with pytest.raises(DataError, match="is a cat; do this"):
        check(labels, wrong, "do this", {f"{algorithm}:{right}": "a cat"})


def test_unreadable_file(tmp_path):
    """Reading the start of this process's memory fails, even for a superuser."""
    (tmp_path / LABELS).symlink_to("/proc/self/mem")
    text = message(ONLY_LABELS, tmp_path)
    assert f"{str(tmp_path / LABELS)!r} cannot be read (Input/output error); get it again" in text


@pytest.mark.parametrize("folder", ["", "tolstoy"])
def test_war_and_peace(data_dir, tmp_path, folder):
    path = tmp_path / folder / "war_and_peace.txt"
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(data_dir / "tolstoy" / "war_and_peace.txt", path)
    assert locate(TOLSTOY, tmp_path) == {path.name: path}
    text = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(text)
    assert "has SHA-256" in message(TOLSTOY, tmp_path)
    assert "EBook 2600" in message(TOLSTOY, tmp_path)


def test_war_and_peace_is_not_downloaded(no_data_dir, tmp_path):
    for arguments in ((TOLSTOY,), (TOLSTOY, tmp_path)):
        text = message(*arguments)
        assert "war_and_peace.txt" in text
        assert "Project Gutenberg's EBook 2600" in text
        assert "warpeace_input.txt of char-rnn" in text
    assert "cannot be downloaded" in message(TOLSTOY)


def test_read_idx(labels):
    values = read_idx(labels, (10_000,))
    assert values.dtype == np.uint8
    assert np.bincount(values).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("content", "shape", "words"),
    [
        (bytes((0, 0, 13, 1, 0, 0, 0, 2, 7, 8)), (2,), "starts with 00000d01 instead of 00000801"),
        (bytes((0, 0, 8, 1, 0, 0, 0, 2, 7, 8)), (3,), r"shape \(2,\) instead of \(3,\)"),
        (bytes((0, 0, 8, 1, 0, 0, 0, 2, 7)), (2,), "holds 1 values instead of 2"),
        (b"", (2,), "starts with  instead of"),
    ],
)
def test_read_idx_of_other_content(tmp_path, content, shape, words):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=words):
        read_idx(path, shape)


def test_read_idx_of_no_gzip(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(b"plain")
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_idx(path, (2,))


def test_fashion_mnist(data_dir):
    data = get("fmnist-2c2d").load(data_dir)
    assert data.train.inputs.shape == (60_000, 1, 28, 28)
    assert data.test.inputs.shape == (10_000, 1, 28, 28)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.targets.bincount().tolist() == [6000] * 10
    # published mean and standard deviation of the training pixels
    assert data.train.inputs.mean() == pytest.approx(0.2860, abs=1e-4)
    assert data.train.inputs.std() == pytest.approx(0.3530, abs=1e-4)
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 1)
