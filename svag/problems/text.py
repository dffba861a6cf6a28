"""A character model on the source text of Python's own standard library: real text, no download."""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from svag.errors import DataError
from svag.problems.models import CharLSTM
from svag.problems.problem import Data, Problem, Split

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
WINDOW = 50
TEST_FRACTION = 0.1
# Modules that every supported Python has as one file of pure Python; about 1 MB together.
MODULES = (
    "argparse ast bdb calendar codecs configparser contextlib csv dataclasses difflib enum "
    "fractions functools gettext heapq ipaddress pickle random shutil socket socketserver "
    "statistics string subprocess"
)


def stdlib_chars() -> Problem:
    """Predict the next character of the standard library's source text.

    Windows of 50 characters are examples of their own, drawn in any order: no LSTM state is
    carried from one to the next. The test windows are the last tenth of the text, the
    training windows the rest. The text is that of the running Python; the data's fingerprint tells
    two versions apart. The layers are half as wide as P4's, for a quarter of its time.
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


def _char_lstm() -> nn.Module:
    return CharLSTM(len(CHARACTERS), embedding=64, hidden=64)


def _load(data_dir: Path | None) -> Data:
    """Read the modules' text; nothing is looked for in ``data_dir``."""
    indices = _encode(_text(Path(sysconfig.get_path("stdlib"))))
    split = round(len(indices) * (1 - TEST_FRACTION))
    return Data(_windows(indices[:split]), _windows(indices[split:]))


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
    """Turn characters into their places in ``CHARACTERS``; others than these are dropped."""
    codes = np.frombuffer(text.encode("ascii", errors="ignore"), np.uint8)
    place = np.full(256, -1, np.int64)
    place[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    places = place[codes]
    return places[places >= 0]


def _windows(indices: NDArray[np.int64]) -> Split:
    """Cut into ``(n, WINDOW)`` inputs, each with the characters one further on as targets."""
    count = (len(indices) - 1) // WINDOW
    inputs = indices[: count * WINDOW].reshape(count, WINDOW)
    targets = indices[1 : count * WINDOW + 1].reshape(count, WINDOW)
    return Split(torch.tensor(inputs), torch.tensor(targets))
