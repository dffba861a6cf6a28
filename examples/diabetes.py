"""A regression: how far diabetes has gone a year later, from ten measurements of 442 patients.

Run ``svag compare examples/diabetes.py:diabetes``. Methods are judged by R^2, the share of the
variance that the model explains, which is a function of the whole test split.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional

from svag.problems import Data, Problem, Split, r_squared_metric


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))


def load(data_dir: Path | None) -> Data:
    inputs, targets = (torch.as_tensor(array) for array in load_diabetes(return_X_y=True))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order].float(), targets[order].float()[:, None]
    targets = (targets - targets[:300].mean()) / targets[:300].std()
    inputs = (inputs - inputs[:300].mean(0)) / inputs[:300].std(0)
    return Data(Split(inputs[:300], targets[:300]), Split(inputs[300:], targets[300:]))


def diabetes() -> Problem:
    return Problem(
        name="diabetes",
        description="regression on ten measurements, one hidden layer",
        model=model,
        load=load,
        loss=functional.mse_loss,
        metric=r_squared_metric(),
        batch_size=30,
        steps=1000,
        quick_steps=200,
    )
