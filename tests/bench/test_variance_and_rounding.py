"""What the benchmarks of variance and rounding measure; never how long it took."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from svag import problems
from svag.bench import rounding, variance


def test_every_contestant_leaves_what_it_is_there_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, targets = torch.randn(6, 4), torch.randint(3, (6,))
    work = variance.Workload("small", model, inputs, targets, functional.cross_entropy)
    cost = variance.measure(work, rounds=2)
    assert {"plain", "svag"} <= cost.milliseconds.keys()
    assert cost.ratios["plain"] == 1.0
    assert all(value > 0 for value in cost.milliseconds.values())
    assert all(hasattr(p, "grad_var") for p in model.parameters())


def test_rounding_moves_the_curve_by_less_than_a_seed() -> None:
    task = problems.get("digits")
    result = rounding.measure(task, problems.load(task), key="m-svag", lr=0.3, steps=60)
    assert 0 < result.rounding < result.seeds
    assert result.final[0] != result.final[1]
    assert result.final[1] == pytest.approx(result.final[0], rel=0.2)
    assert "bfloat16" in str(result)
