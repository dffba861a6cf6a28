"""The re-encoded form of CIFAR: decoded once by the program that comes with it, then cached.

The folder ``<data>/cifar-10`` holds ``labels.npz`` and ``images.rans``, and ``<data>`` the decoder.
The decoded images, ``cifar-10.npy``, are in one of these two folders or in the cache folder.
"""

import fcntl
import hashlib
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from svag.errors import DataError
from svag.problems.cifar_sets import (
    CIFAR_SETS,
    DECODER,
    DECODER_MODEL,
    CifarSet,
    files_known_by_checksum,
)
from svag.problems.data import cache_folder, check

_REMEDY = "copy it again from where the re-encoded data came from"


def read_encoded(known: CifarSet, home: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read all images and labels, training examples first; decode the images if necessary.

    Args:
        known: the data set.
        home: the folder that holds ``labels.npz``.

    Returns:
        Images ``(n, 32, 32, 3)`` and labels ``(n,)``.

    Raises:
        DataError: a file is missing, damaged, or of another data set.
    """
    path = home / known.label_file.name
    check(path, known.label_file, _REMEDY, files_known_by_checksum())
    with np.load(path, allow_pickle=False) as opened:
        labels = np.concatenate([opened["train"], opened["test"]])
    return _read_pixels(known, _decoded(known, home)), labels


def _read_pixels(known: CifarSet, path: Path) -> NDArray[np.uint8]:
    """Read decoded images, and check them."""
    remedy = "remove it, so that the images are decoded again"
    try:
        with path.open("rb") as opened:
            pixels = np.lib.format.read_array(opened, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{str(path)!r} cannot be read ({reason}); {remedy}") from error
    shape = (known.train + known.test, 32, 32, 3)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise DataError(
            f"{str(path)!r} holds {pixels.dtype} of shape {pixels.shape} instead of uint8 of "
            f"shape {shape}; {remedy}"
        )
    _check_pixels(known, pixels, f"{str(path)!r}", remedy)
    return np.ascontiguousarray(pixels)


def _check_pixels(known: CifarSet, pixels: NDArray[np.uint8], source: str, remedy: str) -> None:
    """Compare the images' checksum with the data set's."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    if digest == known.pixels:
        return
    others = {other.pixels: other.title for other in CIFAR_SETS.values()}
    if digest in others:
        raise DataError(
            f"{source} holds the images of {others[digest]} instead of {known.title}; {remedy}"
        )
    raise DataError(
        f"{source} holds images of SHA-256 {digest} instead of {known.pixels}; {remedy}"
    )


def _decoded(known: CifarSet, home: Path) -> Path:
    """Return the path of the decoded images; decode them if there is no such file."""
    for folder in (home.parent, home):
        if (path := folder / known.decoded_name).is_file():
            return path
    path = cache_folder() / known.decoded_name
    if not path.is_file():
        with _one_process_at_a_time(path):
            if not path.is_file():  # another process may have written it meanwhile
                _decode(known, home, path)
    return path


@contextmanager
def _one_process_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock, so that only one process decodes to a path at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise _unwritable(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _decode(known: CifarSet, home: Path, path: Path) -> None:
    """Run the decoder that comes with the data, after a check of its hash; write the images."""
    stream = home / known.stream.name
    program, model = (home.parent / file.name for file in (DECODER, DECODER_MODEL))
    wanted = ((stream, known.stream), (program, DECODER), (model, DECODER_MODEL))
    absent = [str(where) for where, _ in wanted if not where.is_file()]
    if absent:
        raise DataError(
            f"{str(home)!r} has the labels of {known.title} without {known.decoded_name} in it, "
            f"in its parent or in {str(path.parent)!r}, and decoding needs {', '.join(absent)}; "
            "copy one or the other there"
        )
    for where, file in wanted:
        check(where, file, _REMEDY, files_known_by_checksum())
    print(
        f"svag: decoding the images of {known.title} once, to {str(path)!r}; "
        "this takes about five minutes",
        file=sys.stderr,
        flush=True,
    )
    try:
        functions = runpy.run_path(str(program))
        pixels = functions["decode"](str(stream), functions["Model"](str(model)))
    except Exception as error:
        raise DataError(f"{str(stream)!r} could not be decoded ({error!r}); {_REMEDY}") from error
    _check_pixels(known, pixels, f"{str(stream)!r}, decoded,", _REMEDY)
    _write(path, pixels)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write images to a scratch file and rename it, so that no partial file is ever read."""
    part = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as opened:
            part = Path(opened.name)
            np.save(opened, pixels)
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> DataError:
    """Return the error for a cache that cannot be written."""
    return DataError(
        f"decoded images cannot be kept as {str(path)!r} ({error.strerror or error}); name another "
        "folder as $SVAG_CACHE"
    )
