"""Models and loops that a dissection must leave as they were, or refuse in one sentence."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import svag
from svag.diagnosis.objective import Batch, Objective
from svag.diagnosis.problem_dissection import Point
from svag.diagnosis.trained_optimizer import decays_of
from svag.errors import DissectionError, InvalidOption

QUICK = {"budget": "1s", "draws": 3, "longest": 10}
LOSS = functional.cross_entropy


def data(count=96):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def batches(size=16):
    x, y = data()
    return list(zip(x.split(size), y.split(size), strict=True))


class Odd(nn.Module):
    """A linear model that does something more in its forward pass."""

    def __init__(self, more):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("center", None)
        self.average = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.calls, self.more = 0, more

    def forward(self, x):
        return self.layer(self.more(self, x))


def assigns(model, x):
    model.seen = model.seen + 1
    return x + 1e-3 * model.seen


def fills(model, x):
    if model.center is None:
        model.center = x.detach().mean(0)
    return x - model.center


def averages(model, x):
    with torch.no_grad():
        model.average.mul_(0.9).add_(1)
    return x * model.average.mean()


def scales_in_place(model, x):
    return x.mul_(1.001)


@pytest.mark.parametrize("more", [assigns, fills, averages, scales_in_place])
def test_what_a_forward_pass_changes_is_put_back(more):
    model, given = Odd(more), batches()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    svag.dissect(model, LOSS, given, **QUICK)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(given, batches(), strict=True))


def test_a_loss_that_depends_on_an_assigned_buffer_is_a_function_of_the_batch():
    objective = Objective(Odd(assigns), LOSS)
    batch = Batch(batches()[0], 0)
    with objective.dissected():
        assert len({objective.loss(batch) for _ in range(3)}) == 1


def test_state_that_drifts_slowly_is_refused_at_the_end():
    def drifts(model, x):
        model.calls += 1
        return x * (1 + 2e-5 * model.calls)

    with pytest.raises(DissectionError, match="two evaluations of one batch"):
        svag.dissect(Odd(drifts), LOSS, batches(), **QUICK)


def test_the_generator_of_a_loader_is_as_before():
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data()), 16, shuffle=True, generator=generator)
    before = generator.get_state()
    svag.dissect(nn.Linear(6, 2), LOSS, loader, **QUICK)
    assert torch.equal(generator.get_state(), before)


def test_no_variance_and_no_gradient_is_left_behind():
    model, given = nn.Linear(6, 2), batches()
    given[0][0].requires_grad_()
    svag.dissect(model, LOSS, given, methods=("m-svag(variance=within-batch)",), **QUICK)
    assert not any(vars(p) for p in model.parameters())
    assert given[0][0].grad is None


def test_a_frozen_layer_keeps_its_mode_in_a_model_that_trains():
    model, seen = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), set()
    model[1].eval()
    model[1].register_forward_hook(lambda module, *_: seen.add(module.training))
    svag.dissect(model, LOSS, batches(), **QUICK)
    assert seen == {False}
    svag.dissect(model.eval(), LOSS, batches(), **QUICK)
    assert seen == {False, True}


def foreign():
    head = nn.Linear(2, 2)
    return nn.Linear(6, 2), lambda outputs, targets: LOSS(head(outputs), targets)


def hooked():
    model = nn.Linear(6, 2)
    model.weight.register_post_accumulate_grad_hook(lambda param: None)
    return model, LOSS


def of_inference():
    with torch.inference_mode():
        return nn.Linear(6, 2), LOSS


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            foreign,
            r"trainable parameter of shape \(2, 2\) that is not among",
        ),
        (hooked, "'weight' has a hook"),
        (of_inference, "made in torch.inference_mode"),
        (lambda: (nn.LazyLinear(2), LOSS), "'weight' has no shape yet"),
        (lambda: (nn.Sequential(nn.Linear(6, 2), nn.LazyBatchNorm1d(affine=False)), LOSS), "lazy"),
    ],
)
def test_models_that_cannot_be_dissected(make, match):
    model, loss = make()
    with pytest.raises(InvalidOption, match=match):
        svag.dissect(model, loss, batches(), **QUICK)


def clamps(model, x):
    with torch.no_grad():
        model.layer.weight.clamp_(-0.1, 0.1)
    return x


def test_a_forward_pass_that_changes_the_parameters_is_refused():
    model = Odd(clamps)
    before = model.layer.weight.detach().clone()
    with pytest.raises(DissectionError, match=r"changes the parameter 'layer\.weight'"):
        svag.dissect(model, LOSS, batches(), **QUICK)
    assert torch.equal(model.layer.weight, before)


def test_buffers_that_are_expanded():
    model = Odd(lambda model, x: x + model.flat[0])
    model.register_buffer("flat", torch.zeros(1).expand(6))
    assert svag.dissect(model, LOSS, batches(), **QUICK).improvements


def test_inference_mode_is_refused():
    model = nn.Linear(6, 2)
    with torch.inference_mode(), pytest.raises(InvalidOption, match="outside of it"):
        svag.dissect(model, LOSS, batches(), **QUICK)


def test_a_bad_batch_among_good_ones_is_refused():
    given = batches()
    given[4][0][0] = math.nan
    with pytest.raises(DissectionError, match=r"the loss.* is nan"):
        svag.dissect(nn.Linear(6, 2), LOSS, given, **QUICK)


def test_a_gradient_that_is_not_finite_is_refused():
    def root_at_zero(outputs, targets):
        return LOSS(outputs, targets) + (outputs - outputs.detach()).abs().sqrt().sum()

    with pytest.raises(DissectionError, match="gradient of 'weight' is not finite"):
        svag.dissect(nn.Linear(6, 2), root_at_zero, batches(), **QUICK)


def test_a_complex_loss_is_refused():
    with pytest.raises(DissectionError, match=r"is torch\.complex64, not one"):
        svag.dissect(nn.Linear(6, 2), lambda o, t: LOSS(o, t) + 0j, batches(), **QUICK)


def test_methods_without_a_direction_are_named():
    model = nn.Linear(6, 2)
    found = svag.dissect(model, lambda o, t: (0 * o).sum() + 1, batches(), **QUICK)
    assert "adam: its direction is 0" in found.skipped


class Foreign(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"weight_decay": 0.1})


def test_weight_decay_that_is_decoupled_or_not_known():
    model = nn.Linear(6, 2, bias=False)
    assert decays_of(model, torch.optim.Muon(model.parameters(), weight_decay=0.1)) == {}
    assert decays_of(model, torch.optim.Adafactor(model.parameters(), weight_decay=0.1)) == {}
    with pytest.raises(InvalidOption, match="nothing says whether it is added"):
        decays_of(model, Foreign(model.parameters()))


def test_an_optimizer_that_maximizes_is_refused():
    model = nn.Linear(6, 2)
    with pytest.raises(InvalidOption, match="maximize=True"):
        decays_of(model, torch.optim.SGD(model.parameters(), lr=0.1, maximize=True))


def test_two_points_at_once_are_refused(tmp_path):
    from diagnosis.test_problem_dissection import dissected

    with pytest.raises(InvalidOption, match="give one of them"):
        dissected("digits", Point(after=3, at=tmp_path / "saved.pt"))
