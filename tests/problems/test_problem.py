"""The contract's own checks: data of any form, and the metric that is taken where none is given."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from lab import made
from lab.made import points
from torch import nn
from torch.nn import functional

from svag.errors import InvalidOption
from svag.problems import Data, Metric, Split, loss_metric


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def classification(model, data, **changes):
    return made.classification(model, data, **{"select": "test", **changes})


def linear():
    return nn.Linear(3, 3)


def test_the_name_loss_is_that_of_the_loss():
    data = points()
    other = Metric(name="loss", larger_is_better=False, function=lambda *both: 0.0)
    with pytest.raises(InvalidOption, match="a metric called 'loss' is not the problem's loss"):
        classification(linear, data, metric=other)
    loss = functional.cross_entropy
    problem = classification(linear, data, loss=loss, metric=loss_metric(loss))
    assert problem.judged_by(data).name == "loss"


@pytest.mark.parametrize(
    "loss",
    [
        partial(functional.cross_entropy, label_smoothing=0.1, ignore_index=2),
        partial(partial(functional.cross_entropy, ignore_index=2), label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=2),
    ],
)
def test_the_accuracy_leaves_out_what_the_cross_entropy_does(loss):
    data = points()
    metric = classification(linear, data, loss=loss).judged_by(data)
    assert metric.name == "accuracy"
    outputs, targets = torch.eye(3)[[0, 1, 1, 1]], torch.tensor([0, 1, 0, 2])
    assert float(metric.function(outputs, targets)) == pytest.approx(2 / 3)


def test_the_fingerprint_tells_nestings_apart():
    one, two = torch.zeros(4, 2), torch.ones(4, 2)
    forms = [(one, two), [one, two], {0: one, 1: two}, Pair(one, two), (one, (two,))]
    split = Split(one, one)
    found = {Data(Split(form, one), split).fingerprint for form in forms}
    assert len(found) == len(forms)


class Listed(torch.utils.data.Dataset):
    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(1), 0)])


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Listed(), "the data set is empty"),
        (Listed(torch.zeros(3)), "are no pairs"),
        (Listed((torch.zeros(3), 0, 1)), "are no pairs"),
        (Endless(), "Endless, which has no length"),
    ],
)
def test_data_sets_that_cannot_be(dataset, words):
    with pytest.raises(InvalidOption, match=words):
        Split.from_dataset(dataset)


def test_a_data_set_whose_first_example_is_nan_is_not_called_random():
    split = Split.from_dataset(Listed((torch.tensor([float("nan")]), 0), (torch.ones(1), 1)))
    assert len(split) == 2
    data = Data(split, split)
    with pytest.raises(InvalidOption, match="hold NaN or infinite values"):
        classification(linear, data, batch_size=2).check(data)
