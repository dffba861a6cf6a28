"""What is evaluated: metrics that raise, that have no value, that draw random numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lab.made import after, classification, equal, points, run_of, trained
from svag.lab.evaluation import subset
from svag.lab.session import Session
from svag.problems import Data, Metric, Split, loss_metric


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


def test_during_a_run_some_examples_are_evaluated_and_at_its_end_all(tmp_path):
    data = points(train=60, test=40)
    record = trained(tmp_path, classification(linear, data), data, eval_examples=7, steps=20)
    session = Session(*(task := (classification(linear, data), data)), run_of(*task, steps=20))
    for _ in session:
        pass
    with torch.no_grad():
        for name, split in (("train", data.train), ("test", data.test)):
            losses = functional.cross_entropy(
                session.model(split.inputs), split.targets, reduction="none"
            )
            some = subset(split, 7)
            of_some = functional.cross_entropy(session.model(some.inputs), some.targets)
            assert record.end[f"{name}_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
            assert record.evals[-1][f"{name}_loss"] == pytest.approx(of_some.item(), rel=1e-6)
            assert len(some) == len(some.inputs.unique(dim=0)) == 7


def test_the_evaluated_examples_are_the_same_in_every_run():
    data = points(train=60, test=40)
    assert torch.equal(subset(data.train, 9).inputs, subset(data.train, 9).inputs)
    assert torch.equal(subset(data.train, 9, in_order=True).inputs, data.train.inputs[:9])
    for count in (None, 60, 61):
        assert subset(data.train, count) is data.train


@pytest.mark.parametrize("some", [None, 7])
def test_a_gain_is_measured_on_the_same_examples(tmp_path, some):
    """Nothing is learnt with a step size of next to nothing, whatever the examples."""
    data = points(train=60, test=40)
    loss = functional.cross_entropy
    problem = classification(linear, data, loss=loss, metric=loss_metric(loss))
    record = trained(tmp_path, problem, data, eval_examples=some, lr=1e-12, method="sgd")
    assert record.gain == pytest.approx(0, abs=1e-6)
    if some:
        assert abs(record.merit - record.merit_at_start) > 1e-3


def test_all_examples_are_evaluated_once_at_the_end(tmp_path):
    data, seen = points(train=60, test=40), []

    class Watched(nn.Linear):
        def forward(self, inputs):
            seen.append(0 if self.training else len(inputs))
            return super().forward(inputs)

    for some, last in ((None, 100), (7, 14 + 100)):
        seen.clear()
        problem = classification(lambda: Watched(3, 3), data, steps=4)
        trained(tmp_path, problem, data, eval_examples=some, eval_every=4, seed=last)
        at = max(place for place, count in enumerate(seen) if not count)
        assert sum(seen[at:]) == last
