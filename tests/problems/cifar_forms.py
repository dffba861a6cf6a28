"""CIFAR in each of its forms, made from some real images: as Python 2 wrote it, and re-encoded."""

import hashlib
import io
import pickle
import runpy
import shutil
import struct
import tarfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from svag.problems.cifar_sets import CIFAR_SETS, CifarSet
from svag.problems.data import DataFile


class _Python2(pickle._Pickler):
    """Writes text and bytes alike as what Python 2 calls a string, as in the original files."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        short = len(content) < 256
        self.write(struct.pack("<cB", b"U", len(content)) if short else b"")
        self.write(b"" if short else struct.pack("<cI", b"T", len(content)))
        self.write(content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value) -> bytes:
    written = io.BytesIO()
    _Python2(written, 2).dump(value)
    return written.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


def described(path: Path) -> DataFile:
    """A file as one that its authors published."""
    content = path.read_bytes()
    return DataFile(path.name, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


@dataclass(frozen=True)
class Sample:
    """The start of a data set: ``(n, 32, 32, 3)`` images, and what is known of it."""

    known: CifarSet
    pixels: np.ndarray
    labels: np.ndarray

    @property
    def batches(self) -> dict[str, bytes]:
        """The files of the original folder, by name."""
        *training, test = self.known.batches
        size = self.known.train // len(training)
        contents, first = {}, 0
        for file in self.known.batches:
            count = self.known.test if file is test else size
            rows = slice(first, first + count)
            first += count
            contents[file.name] = python2_pickle(
                {
                    "batch_label": f"{file.name} of some",
                    self.known.label_key.decode(): self.labels[rows].tolist(),
                    "data": self.pixels[rows].transpose(0, 3, 1, 2).reshape(count, 3072),
                    "filenames": [f"image_{place}.png" for place in range(count)],
                }
            )
        return contents

    def with_checksums(self, contents: dict[str, bytes]) -> "Sample":
        files = tuple(replace(f, checksum=md5(contents[f.name])) for f in self.known.batches)
        return replace(self, known=replace(self.known, batches=files))

    def write_extracted(self, root: Path, contents: dict[str, bytes] | None = None) -> "Sample":
        contents = contents or self.batches
        folder = root / self.known.folder
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return self.with_checksums(contents)

    def write_archive(self, root: Path, contents: dict[str, bytes] | None = None) -> "Sample":
        path = root / self.known.archive.name
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for name, content in (contents or self.batches).items():
                member = tarfile.TarInfo(f"{self.known.folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        file = DataFile(path.name, md5(path.read_bytes()), path.stat().st_size)
        return replace(self, known=replace(self.known, archive=file))

    def write_encoded(self, root: Path, data_dir: Path) -> "Sample":
        """Write labels, images and the decoder; the images are in no decoded form yet."""
        home = root / self.known.name
        home.mkdir(parents=True)
        for name in ("decode_cifar.py", "cifar_model.npz"):
            shutil.copyfile(data_dir / name, root / name)
        cut = self.known.train
        np.savez(home / "labels.npz", train=self.labels[:cut], test=self.labels[cut:])
        stream = _encoded(self.pixels.tobytes(), len(self.pixels), data_dir)
        (home / "images.rans").write_bytes(stream)
        known = replace(
            self.known,
            label_file=described(home / "labels.npz"),
            stream=described(home / "images.rans"),
        )
        return replace(self, known=known)


def sample(name: str, train_images, train_labels, test_images, test_labels) -> Sample:
    """Describe images ``(n, 3, 32, 32)`` as if they were the whole data set."""
    pixels = np.concatenate([train_images, test_images]).transpose(0, 2, 3, 1).copy()
    labels = np.concatenate([train_labels, test_labels]).astype(np.uint8)
    known = replace(
        CIFAR_SETS[name],
        pixels=hashlib.sha256(pixels.data).hexdigest(),
        labels=hashlib.sha256(labels.data).hexdigest(),
        train=len(train_labels),
        test=len(test_labels),
    )
    return Sample(known, pixels, labels)


@cache
def _decoder(data_dir: Path):
    functions = runpy.run_path(str(data_dir / "decode_cifar.py"))
    return functions["Model"](str(data_dir / "cifar_model.npz"))


@cache
def _encoded(content: bytes, count: int, data_dir: Path) -> bytes:
    """The stream of some images, made once."""
    pixels = np.frombuffer(content, np.uint8).reshape(count, 32, 32, 3)
    return encode(pixels, data_dir).tobytes()


def encode(pixels: np.ndarray, data_dir: Path) -> np.ndarray:
    """Encode images so that ``decode_cifar.py`` gives them back: range ANS, last value first."""
    model = _decoder(data_dir)
    images = np.ascontiguousarray(pixels.transpose(1, 2, 3, 0)).astype(np.int16)
    state = np.full(len(pixels), 65536, np.int64)
    words: list[np.ndarray] = []
    for row, column, channel in reversed(list(np.ndindex(32, 32, 3))):
        known = np.zeros_like(images)  # as the decoder has them by then
        known[:row] = images[:row]
        known[row, :column] = images[row, :column]
        known[row, column, :channel] = images[row, column, :channel]
        table = model.params(known, row, column, channel)
        value = images[row, column, channel].astype(np.int64)
        start = model.cdf(table, value)
        width = model.cdf(table, value + 1) - start
        full = state >= width << 16
        words.append(state[full] & 65535)
        state[full] >>= 16
        state = (state // width << 16) + state % width + start
    count = np.array([len(pixels) & 65535, len(pixels) >> 16])
    parts = [count, state >> 16, state & 65535, *reversed(words)]
    return np.concatenate(parts).astype("<u2")
