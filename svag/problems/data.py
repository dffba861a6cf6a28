"""Original data files: where they are looked for, how they are checked, how they are read."""

import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from svag.errors import DataError


@dataclass(frozen=True)
class DataFile:
    """A file as its authors published it: name, size in bytes, hash."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """The files of one data set.

    Attributes:
        title: what messages call it.
        address: URL of the folder that the files are published in, ending in a slash.
        folders: where the files may lie below a data directory.
        files: all of them, whether or not each is needed.
    """

    title: str
    address: str
    folders: tuple[str, ...]
    files: tuple[DataFile, ...]


FASHION_MNIST = DataSet(
    title="Fashion-MNIST",
    address="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    folders=("", "fashion-mnist", "FashionMNIST/raw"),
    files=(
        DataFile(
            "train-images-idx3-ubyte.gz",
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        DataFile(
            "train-labels-idx1-ubyte.gz",
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        DataFile(
            "t10k-images-idx3-ubyte.gz",
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        DataFile(
            "t10k-labels-idx1-ubyte.gz",
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
)


def locate(data_set: DataSet, data_dir: Path | None = None) -> dict[str, Path]:
    """Find the files of a data set, download them if no folder was named, and check them.

    Args:
        data_set: what to look for.
        data_dir: folder that holds the files or one of ``data_set.folders``; if None,
            ``$SVAG_DATA``; if that is unset or empty too, the files are downloaded once to the
            cache folder of the operating system.

    Returns:
        The path of each file, by its name.

    Raises:
        DataError: a folder or file is missing, cannot be fetched or read, or has other content.
    """
    if data_dir is not None:
        paths = _search(data_set, data_dir, "data directory")
    elif os.environ.get("SVAG_DATA"):
        paths = _search(data_set, Path(os.environ["SVAG_DATA"]), "$SVAG_DATA")
    else:
        paths = {file.name: _download(data_set, file) for file in data_set.files}
    for file in data_set.files:
        _check(paths[file.name], file, data_set.address)
    return paths


def _search(data_set: DataSet, root: Path, origin: str) -> dict[str, Path]:
    if not root.is_dir():
        state = "is not a directory" if root.exists() else "does not exist"
        raise DataError(
            f"{origin} {str(root)!r} {state}; name one that holds the files of "
            f"{data_set.title}, or none to download them"
        )
    found = {
        file.name: path
        for file in data_set.files
        for folder in reversed(data_set.folders)  # so that the first one wins
        if (path := root / folder / file.name).is_file()
    }
    missing = [file.name for file in data_set.files if file.name not in found]
    if missing:
        below = ", ".join(repr(folder) for folder in data_set.folders if folder)
        raise DataError(
            f"{origin} {str(root)!r} lacks {', '.join(missing)} of {data_set.title} (looked in it "
            f"and in its subfolders {below}); get them from {data_set.address}"
        )
    return found


def _download(data_set: DataSet, file: DataFile) -> Path:
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"downloading {data_set.title} needs pooch; pip install 'svag[lab]', or get "
            f"{file.name} from {data_set.address} and name its folder as data directory or "
            "$SVAG_DATA"
        ) from error
    cache = pooch.os_cache("svag") / data_set.title.lower()
    try:
        path = pooch.retrieve(
            data_set.address + file.name, f"sha256:{file.sha256}", file.name, cache
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{data_set.address}{file.name} could not be downloaded to {str(cache)!r} "
            f"({type(error).__name__}: {reason}); get the files of {data_set.title} by other "
            "means and name their folder as data directory or $SVAG_DATA"
        ) from error
    return Path(path)


def _check(path: Path, file: DataFile, address: str) -> None:
    remedy = f"get it again from {address}{file.name}"
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); {remedy}") from error
    if size < file.size:
        raise DataError(f"{str(path)!r} has {size} of {file.size} bytes (truncated); {remedy}")
    if digest != file.sha256:
        raise DataError(f"{str(path)!r} has SHA-256 {digest} instead of {file.sha256}; {remedy}")


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
