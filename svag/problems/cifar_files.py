"""CIFAR-10 and CIFAR-100 from their original archives, the extracted folders, or re-encoded."""

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from svag.errors import DataError
from svag.problems.cifar_decoding import read_encoded
from svag.problems.cifar_sets import (
    ADDRESS,
    CIFAR_SETS,
    CifarSet,
    cifar_set,
    files_known_by_checksum,
)
from svag.problems.data import check, download, named_folder
from svag.problems.unpickling import read_plain


class Cifar(NamedTuple):
    """Images ``(n, 3, 32, 32)`` and labels ``(n,)`` in the order of the original files."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def load_cifar(name: str, data_dir: Path | None = None) -> Cifar:
    """Read a CIFAR data set from any of its forms; the result is the same, bit for bit.

    The data directory is searched for, in this order: the extracted folder
    (``cifar-10-batches-py``, ``cifar-100-python``), the archive (``cifar-10-python.tar.gz``,
    ``cifar-100-python.tar.gz``), each also in a subfolder ``cifar-10`` or ``cifar-100``; then the
    re-encoded form of :mod:`svag.problems.cifar_decoding`. The archives contain pickles; they are
    read without running code from them.

    Args:
        name: ``"cifar-10"`` or ``"cifar-100"``.
        data_dir: folder with the files; if None, ``$SVAG_DATA``; if that is unset or empty too,
            the archive is downloaded once.

    Returns:
        Training images and labels, test images and labels.

    Raises:
        UnknownName: there is no such data set.
        DataError: a file is missing, cannot be fetched or read, or has other content.
    """
    return read_cifar(cifar_set(name), data_dir)


def read_cifar(known: CifarSet, data_dir: Path | None = None) -> Cifar:
    """Read a data set with given checksums; see :func:`load_cifar`."""
    named = named_folder(known.title, data_dir)
    if named is None:
        pixels, labels = _from_archive(known, download(known.published, known.archive))
    else:
        pixels, labels = _from_folder(known, *named)
    _check_content(known, pixels, labels)
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    targets = labels.astype(np.int64)
    cut = known.train
    return Cifar(images[:cut], targets[:cut], images[cut:], targets[cut:])


def _from_folder(
    known: CifarSet, root: Path, origin: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the first of the forms that exists below a folder."""
    homes = (root, root / known.name)
    extracted = [home / known.folder for home in homes]
    extracted += [root] * (root.name == known.folder)
    names = [file.name for file in known.batches]
    for folder in extracted:
        if all((folder / name).is_file() for name in names):
            return _from_extracted(known, folder)
    for home in homes:
        if (path := home / known.archive.name).is_file():
            return _from_archive(known, path)
    for home in reversed(homes):
        if (home / known.label_file.name).is_file():
            return read_encoded(known, home)
    raise DataError(_lacking(known, root, origin, extracted))


def _lacking(known: CifarSet, root: Path, origin: str, extracted: list[Path]) -> str:
    """Return the message that names the missing files, and similar files that were found."""
    there = ""
    for folder in filter(Path.is_dir, extracted):
        lost = [file.name for file in known.batches if not (folder / file.name).is_file()]
        there = f"; {str(folder)!r} is there without {', '.join(lost)}"
    for other in CIFAR_SETS.values():
        if other.name != known.name and any(
            (root / place).exists() for place in (other.archive.name, other.folder)
        ):
            there += f"; what is there is {other.title}"
    return (
        f"{origin} {str(root)!r} lacks {known.title}: neither {known.archive.name} nor "
        f"{known.folder} nor {known.label_file.name} with {known.stream.name}, in it or in its "
        f"subfolder {known.name!r}{there}; get {known.archive.name} from {ADDRESS}"
    )


def _from_extracted(known: CifarSet, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the files of the extracted archive."""
    remedy = f"extract {known.archive.name} again, from {ADDRESS}"
    contents = {}
    for file in known.batches:
        check(folder / file.name, file, remedy, files_known_by_checksum())
        contents[file.name] = (folder / file.name).read_bytes()
    return _joined(known, contents, str(folder))


def _from_archive(known: CifarSet, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the archive without extracting it to the disk."""
    remedy = f"get it again from {ADDRESS}{known.archive.name}"
    check(path, known.archive, remedy, files_known_by_checksum())
    wanted = {f"{known.folder}/{file.name}": file.name for file in known.batches}
    contents = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in wanted and (opened := archive.extractfile(member)):
                    contents[wanted[member.name]] = opened.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} is no complete archive ({error}); {remedy}") from error
    absent = set(wanted.values()) - set(contents)
    if absent:
        raise DataError(f"{str(path)!r} lacks {', '.join(sorted(absent))}; {remedy}")
    return _joined(known, contents, str(path))


def _joined(
    known: CifarSet, contents: Mapping[str, bytes], source: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the batches and concatenate them."""
    pixels, labels = zip(
        *(
            _read_batch(known, contents[file.name], f"{file.name} of {source!r}")
            for file in known.batches
        ),
        strict=True,
    )
    return np.concatenate(pixels), np.concatenate(labels)


def _read_batch(
    known: CifarSet, content: bytes, source: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one file: rows of 1,024 red, green and blue values each, and a list of labels."""
    batch = read_plain(content, source)
    rows, labels = batch.get(b"data"), batch.get(known.label_key)
    if not (isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.shape[1] == 3 * 32 * 32):
        raise DataError(f"{source} has no array 'data' of rows of 3,072 bytes; get it again")
    if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise DataError(f"{source} has no list {known.label_key.decode()!r}; get it again")
    if len(labels) != len(rows) or not all(0 <= label < 256 for label in labels):
        raise DataError(f"{source} has labels that do not belong to its images; get it again")
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.uint8)


def _check_content(known: CifarSet, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Check the hashes of images and labels, which are the same for every form."""
    for what, values, expected in (
        ("images", pixels, known.pixels),
        ("labels", labels, known.labels),
    ):
        found = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
        if found != expected:
            raise DataError(
                f"the {what} of {known.title} have SHA-256 {found} instead of {expected} although "
                "the files' checksums are right; report this"
            )
