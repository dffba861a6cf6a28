"""Memory and time of a dissection of a transformer with 97 million parameters.

    python results/dissect/large_model.py train    # three steps of Adam
    python results/dissect/large_model.py dissect  # directions alone, 6 draws; prints as it goes

Random tokens, batches of 2 x 32; each prints the peak of this process's memory.
"""

import resource
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import svag

WORDS, WIDTH, LAYERS, LENGTH = 8000, 768, 12, 32


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 12, 4 * WIDTH, batch_first=True, dropout=0.0, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(words) + self.places)).transpose(1, 2)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        words = torch.randint(WORDS, (2, LENGTH), generator=generator)
        yield words, words.roll(-1, 1)


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def main() -> None:
    torch.manual_seed(0)
    model, started = Network(), time.perf_counter()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {peak()} before")
    if sys.argv[1] == "train":
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        for _, (words, targets) in zip(range(3), batches(), strict=False):
            optimizer.zero_grad()
            cross_entropy(model(words), targets).backward()
            optimizer.step()
        print(f"training: peak {peak()}, {(time.perf_counter() - started) / 3:.1f} s a step")
        return

    def show(part: str, share: float) -> None:
        seconds = time.perf_counter() - started
        print(f"{part}: {share:.0%}, peak {peak()}, {seconds:.0f} s", flush=True)

    svag.dissect(model, cross_entropy, batches(), budget=60, draws=6, race=False, progress=show)
    print(f"dissection: peak {peak()}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
