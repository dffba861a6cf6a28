"""Finds, downloads, checks and reads original data files."""

import gzip
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from svag.errors import DataError


@dataclass(frozen=True)
class DataFile:
    """A file as its authors published it.

    Attributes:
        name: without folders.
        checksum: ``sha256:`` or ``md5:`` and the hexadecimal digits.
        size: in bytes; None if the authors do not give it.
    """

    name: str
    checksum: str
    size: int | None = None


@dataclass(frozen=True)
class DataSet:
    """The files of one data set.

    Attributes:
        title: its name in messages.
        address: URL of the folder that the files are published in, ending in a slash; empty if
            they cannot be downloaded.
        folders: subfolders of a data directory in which the files are searched for.
        files: all files of the data set, even those that svag does not read.
        origin: how to get files that cannot be downloaded.
    """

    title: str
    address: str
    folders: tuple[str, ...]
    files: tuple[DataFile, ...]
    origin: str = ""

    def remedy(self, name: str = "") -> str:
        """Return a text that says where to get a file, or all files."""
        return f"from {self.address}{name}" if self.address else self.origin


FASHION_MNIST = DataSet(
    title="Fashion-MNIST",
    address="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    folders=("", "fashion-mnist", "FashionMNIST/raw"),
    files=(
        DataFile(
            "train-images-idx3-ubyte.gz",
            "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            26421880,
        ),
        DataFile(
            "train-labels-idx1-ubyte.gz",
            "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            29515,
        ),
        DataFile(
            "t10k-images-idx3-ubyte.gz",
            "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            4422102,
        ),
        DataFile(
            "t10k-labels-idx1-ubyte.gz",
            "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            5148,
        ),
    ),
)

TOLSTOY = DataSet(
    title="War and Peace",
    address="",
    folders=("", "tolstoy"),
    files=(
        DataFile(
            "war_and_peace.txt",
            "sha256:51da54e418dc36bbdba2ffcd1c63d6cf82057817ea4ec47525afd39ce3068a04",
            3196229,
        ),
    ),
    origin=(
        "(no address publishes it: it is Tolstoy's novel as Project Gutenberg's EBook 2600 has it, "
        "without header and contents; warpeace_input.txt of char-rnn with line feeds for CR LF, "
        "without the byte order mark and the blank lines around it)"
    ),
)


def locate(data_set: DataSet, data_dir: Path | None = None) -> dict[str, Path]:
    """Find and check the files of a data set; download them if no folder is named.

    Args:
        data_set: the data set.
        data_dir: folder that holds the files or one of ``data_set.folders``; if None,
            ``$SVAG_DATA``; if that is unset or empty too, the files are downloaded once to
            ``cache_folder()``.

    Returns:
        The path of each file, by its name.

    Raises:
        DataError: a folder or file is missing, cannot be fetched or read, or has other content.
    """
    named = named_folder(data_set.title, data_dir)
    if named is not None:
        paths = _search(data_set, *named)
    elif data_set.address:
        paths = {file.name: download(data_set, file) for file in data_set.files}
    else:
        names = ", ".join(file.name for file in data_set.files)
        raise DataError(
            f"{data_set.title} cannot be downloaded: get {names} {data_set.origin} and name "
            "its folder as data directory or $SVAG_DATA"
        )
    known = {file.checksum: file.name for file in data_set.files}
    for file in data_set.files:
        check(paths[file.name], file, f"get it again {data_set.remedy(file.name)}", known)
    return paths


def named_folder(title: str, data_dir: Path | None) -> tuple[Path, str] | None:
    """Return the user's data folder, with words that say where its name comes from.

    Args:
        title: name of the data set in messages.
        data_dir: the folder given as an argument; if None, ``$SVAG_DATA``.

    Returns:
        The folder and the words; None if the user names no folder.

    Raises:
        DataError: there is no such folder.
    """
    root, origin = data_dir, "data directory"
    if root is None and os.environ.get("SVAG_DATA"):
        root, origin = Path(os.environ["SVAG_DATA"]), "$SVAG_DATA"
    if root is None:
        return None
    if not root.is_dir():
        state = "is not a directory" if root.exists() else "does not exist"
        raise DataError(
            f"{origin} {str(root)!r} {state}; name one that holds the files of {title}, or none "
            "to download them"
        )
    return root, origin


def cache_folder() -> Path:
    """Return the folder for downloaded and decoded files.

    It is ``$SVAG_CACHE``; if that is unset or empty, the folder ``svag`` in the cache folder of the
    operating system.

    Raises:
        DataError: ``$SVAG_CACHE`` is not set, and pooch is not installed.
    """
    if os.environ.get("SVAG_CACHE"):
        return Path(os.environ["SVAG_CACHE"])
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            "the cache folder of this system is found by pooch; pip install 'svag[lab]', or name "
            "a folder as $SVAG_CACHE"
        ) from error
    return Path(pooch.os_cache("svag"))


def download(data_set: DataSet, file: DataFile) -> Path:
    """Return the path of a published file; download it if it is not in the cache folder yet.

    Raises:
        DataError: it cannot be downloaded, or its checksum is wrong.
    """
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"downloading {data_set.title} needs pooch; pip install 'svag[lab]', or get "
            f"{file.name} from {data_set.address} and name its folder as data directory or "
            "$SVAG_DATA"
        ) from error
    cache = cache_folder() / data_set.title.lower()
    try:
        path = pooch.retrieve(data_set.address + file.name, file.checksum, file.name, cache)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{data_set.address}{file.name} could not be downloaded to {str(cache)!r} "
            f"({type(error).__name__}: {reason}); get the files of {data_set.title} by other "
            "means and name their folder as data directory or $SVAG_DATA"
        ) from error
    return Path(path)


def check(path: Path, file: DataFile, remedy: str, known: Mapping[str, str] = {}) -> None:
    """Check that a file has the size and the checksum that its authors published.

    Args:
        path: path of the file.
        file: name, checksum and size that it should have.
        remedy: what the user can do if it differs; the end of the message.
        known: names of other files by checksum, to say which file it is instead.

    Raises:
        DataError: it cannot be read, is too short, or has another checksum.
    """
    algorithm, expected = file.checksum.split(":")
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); {remedy}") from error
    if found == expected:
        return
    if other := known.get(f"{algorithm}:{found}"):
        raise DataError(f"{str(path)!r} is {other}; {remedy}")
    if file.size is not None and size < file.size:
        raise DataError(f"{str(path)!r} has {size} of {file.size} bytes (truncated); {remedy}")
    name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
    raise DataError(f"{str(path)!r} has {name} {found} instead of {expected}; {remedy}")


def _search(data_set: DataSet, root: Path, origin: str) -> dict[str, Path]:
    """Return the path of each file below the root, by its name."""
    found = {
        file.name: path
        for file in data_set.files
        for folder in reversed(data_set.folders)  # so that files in the first one are used
        if (path := root / folder / file.name).is_file()
    }
    missing = [file.name for file in data_set.files if file.name not in found]
    if missing:
        below = ", ".join(repr(folder) for folder in data_set.folders if folder)
        raise DataError(
            f"{origin} {str(root)!r} lacks {', '.join(missing)} of {data_set.title} (looked in it "
            f"and in its subfolders {below}); get them {data_set.remedy()}"
        )
    return found


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read unsigned bytes from a gzipped idx file.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each
    dimension as a big-endian 32-bit integer, then the values, last dimension fastest.

    Args:
        path: the file.
        shape: the shape it must have.

    Raises:
        DataError: the file is not gzipped, not idx, or of another shape.
    """
    try:
        with gzip.open(path) as opened:
            content = opened.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{str(path)!r} is not a complete gzip file ({error})") from error
    header = 4 + 4 * len(shape)
    magic = bytes((0, 0, 8, len(shape)))
    if content[:4] != magic:
        raise DataError(
            f"{str(path)!r} starts with {content[:4].hex()} instead of {magic.hex()}: no idx "
            f"file of unsigned bytes in {len(shape)} dimensions"
        )
    found = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if found != shape:
        raise DataError(f"{str(path)!r} holds values of shape {found} instead of {shape}")
    if len(content) - header != np.prod(shape):
        raise DataError(
            f"{str(path)!r} holds {len(content) - header} values instead of {np.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
