"""Character models: on the text of Python's standard library (no download), and the paper's P4."""

import math
import sysconfig
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from svag.errors import DataError
from svag.problems.data import TOLSTOY, locate
from svag.problems.models import CharLSTM
from svag.problems.problem import Data, Problem, Split
from svag.problems.schedules import fifths

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
WINDOW = 50
TEST_FRACTION = 0.1
STREAMS = 50
VOCABULARY = 82
TOLSTOY_TEST_FRACTION = 0.2
# Modules that every supported Python has as one file of pure Python; about 1 MB together.
MODULES = (
    "argparse ast bdb calendar codecs configparser contextlib csv dataclasses difflib enum "
    "fractions functools gettext heapq ipaddress pickle random shutil socket socketserver "
    "statistics string subprocess"
)


def stdlib_chars() -> Problem:
    """Predict the next character of the standard library's source text.

    Examples are windows of 50 characters in random order; the LSTM state is not carried from one to
    the next. The test windows are the last tenth of the text, the training windows the rest. The
    text is that of the running Python, so that data of two versions have different fingerprints.
    The layers are half as wide as P4's, for a quarter of its time.
    """
    return Problem(
        name="stdlib-chars",
        description="two-layer LSTM on the text of Python's standard library (no download)",
        model=_char_lstm,
        load=_load,
        batch_size=50,
        steps=4000,
        quick_steps=300,
        select="test",
    )


def tolstoi_char_lstm() -> Problem:
    """Predict the next character of *War and Peace*: P4 of the paper, as in DeepOBS.

    The first four fifths of the text are cut into 50 streams. A batch holds the next 50 characters
    of each, and the LSTM state is carried from batch to batch; it starts from zero in every epoch
    (1,022 batches). The last fifth is the test split, cut likewise. The paper decreases the step
    size by a schedule that it does not give; here it is P3's.
    """
    return Problem(
        name="tolstoi-char-lstm",
        description="P4 of the paper: two-layer LSTM on the characters of War and Peace",
        model=_carrying_lstm,
        load=_load_tolstoy,
        batch_size=STREAMS,
        steps=200 * 1022,
        quick_steps=500,
        select="test",
        schedule=fifths,
        carry_state=True,
    )


def _char_lstm() -> nn.Module:
    return CharLSTM(len(CHARACTERS), embedding=64, hidden=64)


def _carrying_lstm() -> nn.Module:
    return CharLSTM(VOCABULARY, carry=True)


def _load(data_dir: Path | None) -> Data:
    """Read the modules' text; ``data_dir`` is not used."""
    indices = _encode(_text(Path(sysconfig.get_path("stdlib"))))
    split = round(len(indices) * (1 - TEST_FRACTION))
    return Data(_windows(indices[:split]), _windows(indices[split:]))


def _load_tolstoy(data_dir: Path | None) -> Data:
    path = locate(TOLSTOY, data_dir)["war_and_peace.txt"]
    with path.open(encoding="utf-8", newline="") as opened:
        _, indices = np.unique(np.array(list(opened.read())), return_inverse=True)
    split = math.ceil(len(indices) * (1 - TOLSTOY_TEST_FRACTION))
    return Data(_streams(indices[:split]), _streams(indices[split:]))


def _streams(indices: NDArray[np.int64]) -> Split:
    """Cut into rows of streams: row ``i + STREAMS`` continues row ``i``."""
    windows = (len(indices) - 1) // (STREAMS * WINDOW)
    length = STREAMS * windows * WINDOW

    def rows(first: int) -> torch.Tensor:
        streams = indices[first : first + length].reshape(STREAMS, windows, WINDOW)
        return torch.tensor(streams.swapaxes(0, 1).reshape(-1, WINDOW))

    return Split(rows(0), rows(1))


def _text(folder: Path) -> str:
    paths = [folder / f"{module}.py" for module in MODULES.split()]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise DataError(
            f"the standard library in {str(folder)!r} has no source file {', '.join(absent)}; "
            "use a Python that ships them as .py"
        )
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def _encode(text: str) -> NDArray[np.int64]:
    """Turn characters into their indices in ``CHARACTERS``; other characters are dropped."""
    codes = np.frombuffer(text.encode("ascii", errors="ignore"), np.uint8)
    place = np.full(256, -1, np.int64)
    place[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    places = place[codes]
    return places[places >= 0]


def _windows(indices: NDArray[np.int64]) -> Split:
    """Cut into inputs ``(n, WINDOW)`` and targets, the inputs shifted by one character."""
    count = (len(indices) - 1) // WINDOW
    inputs = indices[: count * WINDOW].reshape(count, WINDOW)
    targets = indices[1 : count * WINDOW + 1].reshape(count, WINDOW)
    return Split(torch.tensor(inputs), torch.tensor(targets))
