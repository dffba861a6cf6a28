"""Odd arguments, loaders and forward passes: refused in a sentence, or nothing is changed."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import svag
from svag.diagnosis.trained_optimizer import states_of
from svag.entrants import entrant
from svag.errors import DissectionError, InvalidOption

from .test_odd_loops import LOSS, QUICK, Odd, batches, data


def dissected(model=None, loss=LOSS, given=None, **options):
    return svag.dissect(
        nn.Linear(6, 2) if model is None else model,
        loss,
        batches() if given is None else given,
        **{**QUICK, **options},
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"methods": "adam"}, r"methods='adam' is no sequence .* methods=\("),
        ({"methods": (torch.optim.Adam,)}, "is no sequence of names"),
        ({"methods": None}, "methods=None"),
        ({"draws": 3.5}, r"draws=3\.5: an interval takes 3 or more"),
        ({"draws": "5"}, "draws='5'"),
        ({"steps": -4}, "steps=-4: give an integer of 1 or more"),
        ({"steps": 1e4}, r"steps=10000\.0"),
        ({"steps": True}, "steps=True"),
        ({"longest": 0}, "longest=0: give an integer of 1 or more"),
        ({"seed": 1.5}, r"seed=1\.5: give an integer"),
        ({"seed": 2**70}, r"from -2\^63 to 2\^64 - 1"),
        ({"optimizer": torch.optim.Adam}, "is no optimizer; give the one that trained"),
        ({"progress": None}, "progress=None cannot be called"),
        ({"precision": torch.autocast("cpu")}, "precision=lambda: torch.autocast"),
        ({"precision": None}, "precision=None is no function"),
        ({"loss": "cross_entropy"}, "loss_fn='cross_entropy' cannot be called"),
        ({"loss": nn.CrossEntropyLoss}, r"the class CrossEntropyLoss; make one"),
        ({"model": lambda x: x}, r"is no torch\.nn\.Module"),
        ({"given": 5}, "batches=5 cannot be iterated over; give a DataLoader"),
        ({"given": TensorDataset(*data())}, r"has examples and not batches; give DataLoader\("),
    ],
)
def test_arguments_that_are_none(options, match):
    with pytest.raises(InvalidOption, match=match):
        dissected(**options)


def test_numpys_integers_are_numbers():
    assert dissected(draws=np.int64(3), longest=np.int64(10), seed=np.int32(1)).improvements


def on_meta():
    with torch.device("meta"):
        return nn.Linear(6, 2)


def expanded():
    model = nn.Linear(6, 2, bias=False)
    model.weight = nn.Parameter(torch.zeros(1, 6).expand(2, 6))
    return model


@pytest.mark.parametrize(
    ("make", "match"),
    [(on_meta, "on the meta device and has no values"), (expanded, "is expanded, so that entries")],
)
def test_parameters_that_cannot_be_set(make, match):
    with pytest.raises(InvalidOption, match=match):
        dissected(make())


def test_an_optimizer_of_another_model_is_refused():
    other = torch.optim.Adam(nn.Linear(6, 2).parameters(), weight_decay=0.1)
    with pytest.raises(InvalidOption, match="none of the model's parameters"):
        dissected(optimizer=other)


class Adam(torch.optim.Optimizer):
    """Keeps its averages in blocks, as 8-bit optimizers do."""

    def __init__(self, params):
        super().__init__(params, {"betas": (0.9, 0.999)})
        for param in self.param_groups[0]["params"]:
            self.state[param] = {
                "step": 1,
                "exp_avg": torch.zeros(3),
                "exp_avg_sq": torch.zeros(3),
            }


def test_averages_of_another_shape_are_no_start():
    assert states_of(Adam(nn.Linear(6, 2).parameters()), [entrant("adam")]) == {}


def test_a_direction_that_is_not_finite_is_named(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\n"
        "class Wild(torch.optim.SGD):\n"
        "    def step(self):\n"
        "        for param in self.param_groups[0]['params']:\n"
        "            param.data.fill_(float('nan'))\n"
    )
    found = dissected(methods=("m-sgd", f"{path}:Wild"))
    assert found.skipped[0].endswith("Wild: its direction is not finite")


def test_a_trainable_tensor_that_is_no_parameter_is_refused_and_gets_no_gradient():
    temperature = torch.ones((), requires_grad=True)
    with pytest.raises(InvalidOption, match=r"trainable tensor of shape \(\) that is not among"):
        dissected(loss=lambda outputs, targets: LOSS(outputs * temperature, targets))
    assert temperature.grad is None


def test_inputs_whose_gradient_is_in_the_loss():
    """They are leaves of the graph, made anew in every pass."""

    def penalised(model, batch):
        x = batch[0].detach().requires_grad_()
        outputs = model(x).square().sum()
        (slope,) = torch.autograd.grad(outputs, x, create_graph=True)
        return LOSS(model(x), batch[1]) + slope.square().mean()

    model = nn.Linear(6, 2)
    found = svag.dissect(model, None, batches(), batch_loss=penalised, **QUICK)
    with torch.no_grad():
        slopes = [2 * model(x) @ model.weight for x, _ in batches()]
        losses = [
            float(LOSS(model(x), y) + slope.square().mean())
            for (x, y), slope in zip(batches(), slopes, strict=True)
        ]
    assert min(abs(found.setting.loss - loss) for loss in losses) < 1e-4


def test_an_empty_parameter_is_left_alone():
    model = Odd(lambda model, x: x + model.empty.sum())
    model.empty = nn.Parameter(torch.empty(0))
    assert dissected(model).improvements
    assert model.empty.grad is None


def seldom_averages(model, x):
    model.calls += 1
    if model.calls % 7 == 0:
        with torch.no_grad():
            model.average.mul_(0.9).add_(1)
    return x


def follows(model, x):
    """Does not change the average while it is equal to what it follows."""
    with torch.no_grad():
        model.average.mul_(0.5).add_(model.layer.bias, alpha=0.5)
    return x * (1 + model.average.mean())


@pytest.mark.parametrize("more", [seldom_averages, follows])
@pytest.mark.parametrize("stopped", [False, True])
def test_frozen_parameters_that_are_not_changed_by_the_first_pass(more, stopped):
    model = Odd(more)
    with torch.no_grad():
        model.average.copy_(model.layer.bias)
    before = model.average.clone()

    def stop(part, share):
        if part == "race":
            raise KeyboardInterrupt

    if stopped:
        with pytest.raises(KeyboardInterrupt):
            dissected(model, progress=stop)
    else:
        assert dissected(model).improvements
    assert torch.equal(model.average, before)


def test_a_parameter_that_is_replaced_is_refused_and_put_back():
    def replaces(model, x):
        model.calls += 1
        if model.calls == 20:
            model.layer.bias = nn.Parameter(model.layer.bias.detach().clone())
        return x

    model = Odd(replaces)
    bias = model.layer.bias
    with pytest.raises(DissectionError, match="replaces the parameter 'bias'"):
        dissected(model)
    assert model.layer.bias is bias


def test_a_buffer_that_changes_its_shape_is_put_back():
    def grows(model, x):
        model.cache.resize_(len(model.cache) + 1).fill_(1)
        return x + len(model.cache)

    model = Odd(grows)
    model.register_buffer("cache", torch.zeros(2))
    assert dissected(model).improvements
    assert torch.equal(model.cache, torch.zeros(2))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_model():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 2))
    model = torch.jit.script(plain)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert dissected(model).improvements
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_an_epoch_of_persistent_workers_goes_on_where_it_was():
    loader = DataLoader(TensorDataset(*data()), 16, num_workers=1, persistent_workers=True)
    epoch = iter(loader)
    seen = [next(epoch)[1]]
    dissected(given=loader)
    seen += [targets for _, targets in epoch]
    assert torch.equal(torch.cat(seen), data()[1])


def test_a_loader_that_fills_the_same_tensors_again_is_refused():
    class Refilled:
        def __iter__(self):
            x, y = torch.empty(16, 6), torch.empty(16, dtype=torch.long)
            for inputs, targets in batches():
                yield x.copy_(inputs), y.copy_(targets)

    with pytest.raises(DissectionError, match=r"yield new tensors, such as tensor\.clone"):
        dissected(given=Refilled())


@pytest.mark.parametrize("part", ["directions", "race", "curvature", "variants"])
def test_everything_is_as_before_after_an_interruption(part):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 2))
    model[1].eval()
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    LOSS(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()

    def state():
        params, modules = list(model.parameters()), list(model.modules())
        averages = [t for s in optimizer.state.values() for t in s.values()]
        tensors = [*model.state_dict().values(), *averages, torch.get_rng_state()]
        tensors += [p.grad for p in params if p.grad is not None]
        things = [id(p.grad) for p in params], [p.requires_grad for p in params]
        numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
        modes = [module.training for module in modules]
        return [t.tolist() for t in tensors], things, modes, random.getstate(), numpys

    def stop(at, share):
        if at == part:
            raise KeyboardInterrupt

    before = state()
    with pytest.raises(KeyboardInterrupt):
        dissected(model, optimizer=optimizer, progress=stop, budget="20s")
    assert state() == before


def test_modes_are_as_before_where_train_fails():
    class Stubborn(Odd):
        def train(self, mode=True):
            super().train(mode)
            if mode:
                raise ZeroDivisionError
            return self

    model = Stubborn(lambda model, x: x).eval()
    with pytest.raises(ZeroDivisionError):
        dissected(model)
    assert not any(module.training for module in model.modules())
