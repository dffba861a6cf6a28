"""The loss is a pure function of parameters and batch, and everything is as before afterwards."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from svag.diagnosis.objective import Batch, Objective
from svag.diagnosis.sampling import Sampling
from svag.errors import DissectionError, InvalidOption


class Remembering(nn.Module):
    """BatchNorm, dropout, a counter in a buffer, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        self.register_buffer("seen", torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x):
        self.seen += 1
        return self.layers(x) * self.frozen


def batches(count=4, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(2, (size,), generator=generator))
        for _ in range(count)
    ]


def everything(model):
    return {
        **{n: t.detach().clone() for n, t in model.state_dict(keep_vars=True).items()},
        "modes": [m.training for m in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
    }


def same(one, other):
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        elif key == "grads":
            assert [g is None for g in value] == [g is None for g in other[key]]
            assert all(
                torch.equal(a, b) for a, b in zip(value, other[key], strict=True) if a is not None
            )
        else:
            assert value == other[key], key


def test_one_batch_has_one_loss_and_everything_is_restored():
    model = Remembering()
    model.eval()
    model.layers[0].train()
    functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    before = everything(model)
    objective = Objective(model, functional.cross_entropy)
    with objective.dissected():
        assert all(m.training for m in model.modules())
        batch, other = (Batch(content, seed) for seed, content in enumerate(batches(2)))
        first = objective.loss(batch)
        objective.gradient(other)
        objective.loss(other)
        with torch.no_grad():
            objective.params[0].add_(1.0)
        changed = objective.loss(batch)
        with torch.no_grad():
            objective.params[0].sub_(1.0)
        assert changed != first
        assert objective.loss(batch) == pytest.approx(first, rel=1e-5)
        assert objective.loss(Batch(batch.content, seed=99)) != first  # another dropout mask
        random.random(), np.random.random()  # noqa: NPY002
    same(before, everything(model))


def test_a_dissection_within_a_dissection_is_the_same_one():
    model = nn.Linear(5, 2)
    objective = Objective(model, functional.cross_entropy)
    first = model.weight.detach().clone()
    with objective.dissected():
        with objective.dissected():
            with torch.no_grad():
                model.weight.add_(1)
            assert torch.equal(objective.theta[0], first)
        assert torch.equal(model.weight, first + 1)
    assert torch.equal(model.weight, first)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_everything_is_restored_after_an_interruption(error):
    model = Remembering()
    before = everything(model)
    objective = Objective(model, functional.cross_entropy)

    def interrupted():
        with objective.dissected():
            objective.gradient(Batch(batches()[0], 0))
            with torch.no_grad():
                objective.params[1].mul_(3)
            raise error

    with pytest.raises(error):
        interrupted()
    same(before, everything(model))


def test_buffers_may_be_written_in_training_and_are_restored():
    model = Remembering()
    objective = Objective(model, functional.cross_entropy)
    with objective.dissected():
        with objective.writing():
            for content in batches():
                objective.gradient(Batch(content, 0))
            assert model.seen == 4
        assert model.seen == 0


def test_the_gradient_is_that_of_the_penalised_loss():
    model = nn.Linear(5, 2)
    objective = Objective(
        model, functional.cross_entropy, weight_decay={"weight": 0.3, "other": 1.0}
    )
    (x, y), *_ = batches()
    loss = objective.gradient(Batch((x, y), 0))
    found = [p.grad.clone() for p in objective.params]
    expected = functional.cross_entropy(model(x), y) + 0.15 * model.weight.square().sum()
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    assert loss == pytest.approx(float(expected.detach()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_batches_of_any_kind():
    model = nn.Linear(5, 2)
    objective = Objective(
        model,
        batch_loss=lambda net, batch: functional.cross_entropy(net(batch["x"]), batch["y"]),
    )
    x, y = batches()[0]
    batch = Batch({"x": x, "y": y, "name": "first"}, 0)
    assert batch.size == 6
    assert objective.loss(batch) == pytest.approx(
        float(functional.cross_entropy(model(x), y).detach())
    )
    assert not objective.has_outputs


def test_a_tied_parameter_is_there_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    objective = Objective(model, functional.mse_loss)
    assert objective.names == ["0.weight", "0.bias", "1.bias"]
    assert objective.size == 15


def test_what_cannot_be_dissected_is_refused():
    model = nn.Linear(5, 2)
    with pytest.raises(InvalidOption, match="not both"):
        Objective(model)
    with pytest.raises(InvalidOption, match="not both"):
        Objective(model, functional.mse_loss, batch_loss=lambda m, b: m(b).sum())
    with pytest.raises(InvalidOption, match="no trainable parameter"):
        Objective(nn.ReLU(), functional.mse_loss)
    for dtype in (torch.complex64, torch.bfloat16, torch.float16):
        with pytest.raises(InvalidOption, match=f"'weight' has the dtype {dtype}"):
            Objective(nn.Linear(2, 2, dtype=dtype), functional.mse_loss)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda o, t: functional.cross_entropy(o, t, reduction="none"), r"\(6,\), not one number"),
        (lambda o, t: 1.5, "float, not one number"),
        (lambda o, t: (o * float("nan")).mean(), "loss is nan"),
        (lambda o, t: (o * float("inf")).abs().mean(), "loss is inf"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, match):
    objective = Objective(nn.Linear(5, 2), loss)
    with pytest.raises(DissectionError, match=match):
        objective.check(Batch(batches()[0], 0))


def test_a_loss_without_a_graph_is_refused():
    objective = Objective(nn.Linear(5, 2), lambda o, t: functional.cross_entropy(o.detach(), t))
    with pytest.raises(DissectionError, match="does not depend on any trainable parameter"):
        objective.gradient(Batch(batches()[0], 0))


def test_a_loss_that_is_not_reproducible_is_refused():
    generator = torch.Generator().manual_seed(0)

    def noisy(outputs, targets):
        return functional.cross_entropy(outputs, targets) + torch.rand((), generator=generator)

    with pytest.raises(DissectionError, match="two evaluations of one batch"):
        Objective(nn.Linear(5, 2), noisy).check(Batch(batches()[0], 0))


def test_a_batch_that_is_no_pair_is_refused():
    objective = Objective(nn.Linear(5, 2), functional.cross_entropy)
    with pytest.raises(DissectionError, match="dict, not a pair"):
        objective.loss(Batch({"x": batches()[0][0]}, 0))


# ------------------------------------------------------------------------------------- batches


def taken(iterable, count, **options):
    objective = Objective(nn.Linear(5, 2), functional.cross_entropy, **options)
    sampling = Sampling(objective, iterable)
    stream = sampling.stream()
    return sampling, [next(stream) for _ in range(count)]


def test_a_list_is_started_again_and_every_batch_has_its_own_seed():
    given = batches(3)
    sampling, found = taken(given, 7)
    places = [next(n for n, b in enumerate(given) if b is one.content) for one in found]
    assert places == [0, 1, 2, 0, 1, 2, 0]
    assert len({one.seed for one in found}) == 7
    assert sampling.batch_size == 6


def test_a_list_may_have_another_order_each_time():
    given = batches(8)
    stream = Sampling(Objective(nn.Linear(5, 2), functional.cross_entropy), given, True).stream()
    found = [next(n for n, b in enumerate(given) if b is one.content) for one in islice(stream, 24)]
    passes = [tuple(found[k : k + 8]) for k in (0, 8, 16)]
    assert all(sorted(one) == list(range(8)) for one in passes)
    assert len(set(passes)) == 3


def test_a_smaller_last_batch_is_left_out_and_said():
    sampling, found = taken([*batches(3), batches(1, size=2)[0]], 6)
    assert {one.size for one in found} == {6}
    assert sampling.notes == ["batches of other sizes than 6 were left out"]


def test_batches_of_all_sizes_are_all_taken():
    given = [batches(1, size=size)[0] for size in (3, 4, 5, 6)]
    sampling, found = taken(given, 4)
    assert [one.size for one in found] == [3, 4, 5, 6]
    assert sampling.batch_size is None


def test_a_generator_that_ends_is_refused_when_it_ends():
    with pytest.raises(DissectionError, match="ended after 3, and a generator cannot"):
        taken(iter(batches(3)), 4)


@pytest.mark.parametrize("nothing", [[], iter([])])
def test_an_empty_iterable_is_refused(nothing):
    with pytest.raises(DissectionError, match="there is no batch"):
        taken(nothing, 1)


def test_carried_state_belongs_to_its_batch():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.carried_state = None

        def forward(self, x):
            state = torch.zeros(()) if self.carried_state is None else self.carried_state
            self.carried_state = state + 1
            return self.weight * state * x

    model = Counting()
    objective = Objective(model, lambda o, t: o.mean(), carries=True)
    with objective.dissected():
        held = Sampling(objective, [(torch.ones(1), None)] * 5).held(4)
        assert [objective.loss(one) for one in held] == [0, 1, 2, 3]
        assert [objective.loss(one) for one in reversed(held)] == [3, 2, 1, 0]
    assert model.carried_state is None
