"""Outputs in containers, of which each tensor becomes a view of its own."""

from collections import OrderedDict
from dataclasses import dataclass

import torch

from diagnosis.curved_models import Pair
from svag.diagnosis.outputs import separated


@dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor
    count: int


class Attributed(OrderedDict):
    """A dictionary whose items are attributes, too, like Hugging Face's outputs."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.__dict__[key] = value


def test_containers_keep_their_types_and_other_values():
    z = torch.ones(2, requires_grad=True)
    plain, number = torch.zeros(2), torch.tensor(3)
    attributed = Attributed(logits=z * 2)
    outputs = [
        z * 1,
        (plain, number, None, "text"),
        Pair(z * 3, plain),
        Frozen(z * 4, 7),
        attributed,
    ]
    found, views = separated(outputs)
    assert [type(part) for part in found] == [torch.Tensor, tuple, Pair, Frozen, Attributed]
    assert found[1] == (plain, number, None, "text")
    assert found[3].count == 7
    assert found[4].logits is found[4]["logits"]
    assert attributed["logits"] is not found[4]["logits"]
    expected = [found[0], found[2].logits, found[3].logits, found[4].logits]
    assert all(a is b for a, b in zip(views, expected, strict=True))
    assert [view.tolist() for view in views] == [[k, k] for k in (1.0, 3.0, 4.0, 2.0)]


def test_a_tensor_that_occurs_twice_counts_twice():
    z = torch.ones(2, requires_grad=True)
    (first, second), views = separated((z, z))
    partial = torch.autograd.grad((first * second.square()).sum(), views)
    assert [part.tolist() for part in partial] == [[1.0, 1.0], [2.0, 2.0]]
