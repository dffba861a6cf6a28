"""What is evaluated: metrics that raise, that have no value, that draw random numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lab.made import after, classification, equal, points, trained
from svag.problems import Data, Metric, Split


def linear():
    return nn.Linear(3, 3)


def of_parabola(metric, lr, scale=1.0):
    """A run on (w x)^2 with x = ``scale``."""
    split = Split(torch.full((8, 1), scale), torch.zeros(8, 1))
    data = Data(split, split)
    weight = lambda: nn.Linear(1, 1, bias=False)  # noqa: E731
    problem = classification(weight, data, loss=functional.mse_loss, metric=metric)
    return problem, data, {"method": "sgd", "lr": lr, "eval_every": 1}


@pytest.mark.parametrize("over", ["examples", "split"])
@pytest.mark.parametrize(("scale", "lr"), [(1.0, 1e39), (1e15, 1e8)])
def test_a_metric_that_raises_on_nan_hides_no_divergence(tmp_path, over, scale, lr):
    """As those of scikit-learn do; first the parameters overflow, then only the outputs."""

    def picky(outputs, targets):
        if not outputs.isfinite().all():
            raise ValueError("Input contains NaN")
        return 0.5

    metric = Metric(name="picky", larger_is_better=True, function=picky, over=over)
    problem, data, settings = of_parabola(metric, lr, scale)
    assert trained(tmp_path, problem, data, **settings).status == "diverged"


@pytest.mark.parametrize("over", ["examples", "split"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_without_a_finite_value_is_an_error_that_names_it(tmp_path, value, over):
    metric = Metric(name="f1", larger_is_better=True, function=lambda *both: value, over=over)
    problem, data, settings = of_parabola(metric, 0.1)
    record = trained(tmp_path, problem, data, **settings)
    assert record.status == "error"
    assert "the metric 'f1' of 'points' is" in record.end["message"]
    assert "on the train split while the loss is finite" in record.end["message"]


def test_what_is_drawn_in_an_evaluation_leaves_no_trace():
    """Dropout in training draws from torch's generator; so does this metric."""
    data = points()
    drawn = []

    def random_metric(outputs, targets):
        drawn.append(torch.rand(()).item())
        return drawn[-1]

    metric = Metric(name="luck", larger_is_better=True, function=random_metric, over="split")
    network = lambda: nn.Sequential(linear(), nn.Dropout(0.5), linear())  # noqa: E731
    problem = classification(network, data, metric=metric)
    often, seldom = after(problem, data, eval_every=1), after(problem, data, eval_every=20)
    assert equal(often, seldom)
    assert len(set(drawn)) == 2  # of the training and of the test data, the same each time
