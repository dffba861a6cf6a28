"""A small causal transformer on text: Python's own documentation strings, a character at a time.

Run ``svag compare examples/transformer_text.py:transformer_text``. Inputs are a dictionary, and
methods are judged by bits per character, of which fewer are better.
"""

import math
import pydoc
from pathlib import Path

import torch
from torch import Tensor, nn

from svag.problems import Data, Metric, Problem, Split, cross_entropy

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
LENGTH, WIDTH = 32, 32
MODULES = ("argparse", "asyncio", "collections", "datetime", "decimal", "email", "unittest")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(CHARACTERS))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.embedding(inputs["characters"]) + self.places(inputs["places"])
        return self.head(self.encoder(hidden, mask=self.mask))


def load(data_dir: Path | None) -> Data:
    text = "".join(pydoc.plain(pydoc.render_doc(name)) for name in MODULES)
    indices = torch.tensor([CHARACTERS.index(c) for c in text if c in CHARACTERS])
    count = (len(indices) - 1) // LENGTH
    characters = indices[: count * LENGTH].reshape(count, LENGTH)
    targets = indices[1 : count * LENGTH + 1].reshape(count, LENGTH)
    inputs = {"characters": characters, "places": torch.arange(LENGTH).expand(count, LENGTH)}
    whole = Split(inputs, targets)
    cut = round(0.9 * count)
    return Data(whole.take(slice(0, cut)), whole.take(slice(cut, count)))


def transformer_text() -> Problem:
    return Problem(
        name="transformer-text",
        description="two-layer causal transformer on Python's documentation",
        model=Model,
        load=load,
        metric=Metric(
            name="bits_per_character",
            function=lambda outputs, targets: cross_entropy(outputs, targets) / math.log(2),
            larger_is_better=False,
            low=0.0,
        ),
        batch_size=16,
        steps=2000,
        quick_steps=150,
        schedule=lambda step, steps: min(1.0, (step + 1) / 20),
    )
