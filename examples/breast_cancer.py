"""A problem of your own: benign or malignant, from 30 measurements of a tumour's cell nuclei.

Run ``svag compare examples/breast_cancer.py:breast_cancer``. Change anything below and the runs of
the changed problem are kept apart from the earlier ones.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from svag.problems import Data, Problem, Split


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))


def load(data_dir: Path | None) -> Data:
    inputs, targets = (torch.as_tensor(array) for array in load_breast_cancer(return_X_y=True))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order].float(), targets[order].long()
    train, test = inputs[:399], inputs[399:]
    mean, std = train.mean(0), train.std(0)
    return Data(
        Split((train - mean) / std, targets[:399]),
        Split((test - mean) / std, targets[399:]),
    )


def breast_cancer() -> Problem:
    return Problem(
        name="breast-cancer",
        description="Wisconsin breast cancer, one hidden layer",
        model=model,
        load=load,
        batch_size=32,
        steps=1000,
        quick_steps=300,
        weight_decay=1e-3,
    )
