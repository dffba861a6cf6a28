"""Dissect a model in a training loop of your own: ``python examples/dissect_a_loop.py``.

A classifier of handwritten digits, a ``DataLoader``, AdamW and a schedule, as in most scripts. What
is added is between the two lines of dashes; the model trains on as if nothing had happened.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import svag


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.stack = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 128), nn.ReLU()
        )
        self.head = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stack(self.flatten(images)))


def train_epoch(model: nn.Module, loader: DataLoader, loss_fn: nn.Module, optimizer) -> None:
    model.train()
    for images, labels in loader:
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    return right / len(loader.dataset)


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
    train_data, test_data = random_split(data, [1500, len(data) - 1500])
    train_loader = DataLoader(train_data, batch_size=64, shuffle=True)
    test_loader = DataLoader(test_data, batch_size=64)

    model, loss_fn = Network(), nn.CrossEntropyLoss()
    epochs = 15
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train_epoch(model, train_loader, loss_fn, optimizer)

    # --------------------------------------------------------------------------------------
    found = svag.dissect(
        model, loss_fn, train_loader, optimizer=optimizer, budget="10s",
        steps=(epochs - 1) * len(train_loader),
    )  # fmt: skip
    print(found)
    # --------------------------------------------------------------------------------------

    for _ in range(epochs - 1):
        train_epoch(model, train_loader, loss_fn, optimizer)
    print(f"test accuracy: {accuracy(model, test_loader):.1%}")


if __name__ == "__main__":
    main()
