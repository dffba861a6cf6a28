"""A run that is broken off anywhere goes on as if nothing had been, or begins again."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lab.made import classification, points, run_of
from svag.entrants import entrant
from svag.lab.checkpoints import Checkpoints
from svag.lab.records import find
from svag.lab.train import train


class Killed(BaseException):
    """Nothing catches it: the process might as well be gone."""


CALLS = []  # not within the loss: a loss that remembers something has no checkpoints


def breaking(loss, *at):
    """A loss that is a kill at some of its calls in training."""
    CALLS.clear()

    def breaks(outputs, targets):
        CALLS.append(torch.is_grad_enabled())
        if torch.is_grad_enabled() and sum(CALLS) in at:
            raise Killed
        return loss(outputs, targets)

    return breaks


def both(tmp_path, problem, data, *, at, method="m-svag", **changes):
    """Train once undisturbed and once with kills; return the two records."""
    run = run_of(problem, data, method=method, **changes)
    train(problem, data, run, tmp_path / "whole", checkpoint_every=None)
    broken = replace(problem, loss=breaking(problem.loss, *at), metric=problem.judged_by(data))
    for _ in range(len(at) + 1):
        try:
            train(broken, data, run, tmp_path / "broken", checkpoint_every=0)
            break
        except Killed:
            continue
    return find(tmp_path / "whole", run), find(tmp_path / "broken", run)


def alike(whole, broken):
    return whole.status == "done" and whole.findings == broken.findings


class Restless(nn.Module):
    """Dropout, running statistics, a buffer that is not persistent, a counter, all generators."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.calls, self.shifts = 0, [torch.zeros(8)]
        self.everything = list(self.parameters())

    def forward(self, inputs):
        hidden = functional.dropout(self.norm(self.first(inputs)), 0.2, self.training)
        if self.training:
            self.calls += 1
            self.seen += inputs.mean().detach()
            self.shifts = [self.shifts[0] + random.random() + np.random.rand()]  # noqa: NPY002
        penalty = sum(p.square().mean() for p in self.everything)
        return self.last(hidden + 0.01 * (self.calls + self.seen + self.shifts[0]) * penalty)


KEYS = ("sgd", "m-svag", "adam", "adam-star", "m-svag@within-batch", "torch.optim.RMSprop")


@pytest.mark.parametrize("method", KEYS)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, method):
    data = points()
    problem = classification(
        Restless, data, augment=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g)
    )
    key = entrant(method).key
    whole, broken = both(tmp_path, problem, data, at=(1, 2, 7, 12, 29), method=key, lr=0.01)
    assert alike(whole, broken)
    assert not (tmp_path / "broken" / "checkpoints").exists()
    assert broken.end["resumed"] > 0


@pytest.mark.parametrize("kill", range(1, 24))
def test_a_kill_at_any_step(tmp_path, kill):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, schedule=lambda t, n: 1 / (1 + t))
    whole, broken = both(tmp_path, problem, data, at=(kill,), eval_every=3)
    assert alike(whole, broken)
    assert broken.end.get("resumed") == (None if kill > 20 else kill - 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.read = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.carried_state = None

    def forward(self, inputs):
        hidden, self.carried_state = self.cell(inputs[:, None], self.carried_state)
        return self.read(hidden[:, 0])


def test_carried_state_goes_on(tmp_path):
    data = points()
    problem = classification(Recurrent, data, carry_state=True)
    whole, broken = both(tmp_path, problem, data, at=(3, 4, 8, 14))
    assert alike(whole, broken)
    assert broken.end["resumed"] > 0


def recurrent(kind):
    return lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), kind(1, 4, batch_first=True), Last())


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Linear(4, 3)

    def forward(self, outputs):
        return self.read(outputs[0][:, -1])


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    widen = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (1, 8)))
    return nn.Sequential(widen, nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(8, 3))


def parametrized(apply):
    return lambda: nn.Sequential(apply(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 3))


KINDS = {
    "LSTM": recurrent(nn.LSTM),
    "GRU": recurrent(nn.GRU),
    "RNN": recurrent(nn.RNN),
    "transformer": attention,
    "weight norm": parametrized(nn.utils.parametrizations.weight_norm),
    "spectral norm": parametrized(nn.utils.parametrizations.spectral_norm),
    "orthogonal": parametrized(nn.utils.parametrizations.orthogonal),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_torch_own_modules_go_on(tmp_path, kind):
    data = points()
    problem = classification(KINDS[kind], data)
    whole, broken = both(tmp_path, problem, data, at=(3, 11))
    assert alike(whole, broken)
    assert broken.end["resumed"] > 0


# --- steps of a problem's own


def accumulating():
    """Takes a step of the optimizer at every third batch: gradients are kept in between."""
    count = 0

    def step(model, batches, optimizers):
        nonlocal count
        inputs, targets = next(batches)
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        count += 1
        if count % 3 == 0:
            optimizers[0].step()
            optimizers[0].zero_grad()
        return loss

    return step


class Averaging:
    """Keeps an average of the weights, a generator, and a scale that grows."""

    def __init__(self):
        self.average, self.scale = nn.Linear(3, 3), 1.0
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, model, batches, optimizers):
        inputs, targets = next(batches)
        noise = torch.randn(inputs.shape, generator=self.generator)
        optimizers[0].zero_grad()
        loss = self.scale * functional.cross_entropy(model(inputs + 0.1 * noise), targets)
        loss.backward()
        optimizers[0].step()
        self.scale *= 1.01
        with torch.no_grad():
            for ours, its in zip(self.average.parameters(), model.parameters(), strict=True):
                ours.lerp_(its, 0.1)
                its.lerp_(ours, 0.01)
        return loss


@pytest.mark.parametrize("make", [accumulating, Averaging])
def test_a_step_with_state_goes_on(tmp_path, make):
    data = points()
    run = None
    records = []
    for name, at in (("whole", ()), ("broken", (5, 11, 12))):
        kills = list(at)

        class Killing(nn.Linear):
            def forward(self, inputs, kills=kills, seen=[0]):  # noqa: B006
                seen[0] += self.training
                if kills and seen[0] == kills[0]:
                    kills.pop(0)
                    raise Killed
                return super().forward(inputs)

        problem = classification(lambda: Killing(3, 3), data, step=make())
        run = run_of(problem, data)
        for _ in range(len(at) + 1):
            try:
                train(problem, data, run, tmp_path / name, checkpoint_every=0)
            except Killed:
                continue
        records.append(find(tmp_path / name, run))
    assert alike(*records)
    assert records[1].end["resumed"] > 0


# --- what cannot be taken along


class Hidden:
    """An object whose state nobody but itself knows."""

    def __init__(self):
        self.count = 0


class Secretive(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.hidden, self.constant = Hidden(), {"one": {1}}

    def forward(self, inputs):
        if self.training:
            self.hidden.count += 1
        return super().forward(inputs) * (1 + 0.01 * self.hidden.count)


def test_a_model_with_hidden_state_begins_again(tmp_path):
    data = points()
    whole, broken = both(tmp_path, classification(Secretive, data), data, at=(9,))
    assert alike(whole, broken)
    assert "resumed" not in broken.end
    assert "'hidden' of Secretive may have changed" in broken.end["checkpoints"]


def test_a_step_with_hidden_state_begins_again(tmp_path):
    data = points()
    drawn = np.random.default_rng(0)

    def step(model, batches, optimizers):
        inputs, targets = next(batches)
        optimizers[0].zero_grad()
        loss = functional.cross_entropy(model(inputs), targets) * (1 + drawn.random())
        loss.backward()
        optimizers[0].step()
        return loss

    problem = classification(lambda: nn.Linear(3, 3), data, step=step)
    run = run_of(problem, data)
    train(problem, data, run, tmp_path, checkpoint_every=0)
    assert "no checkpoints: 0 of the step is Generator" in find(tmp_path, run).end["checkpoints"]


# --- states of all kinds: each run goes on as it was, or says why it began again


class Kept(nn.Linear):
    """A layer whose outputs are scaled in training by what it keeps somewhere."""

    def __init__(self, prepare, factor):
        super().__init__(3, 3)
        Kept.factor = staticmethod(factor)  # of the class, which is not looked at
        prepare(self)

    def forward(self, inputs):
        return super().forward(inputs) * (Kept.factor(self) if self.training else 1)


def with_hook(layer):
    calls = []

    def hook(module, inputs, outputs):
        if module.training:
            calls.append(1)
        return outputs * (1 + 0.01 * len(calls))

    layer.register_forward_hook(hook)


def with_gradient_hook(layer):
    calls = []

    def hook(gradient):
        calls.append(1)
        return gradient * (1 + 0.05 * len(calls))

    layer.weight.register_hook(hook)


def lazily(layer):
    layer.seen = torch.zeros(()) if layer.seen is None else layer.seen + 1
    return 1 + 0.05 * layer.seen


def changing_type(layer):
    layer.seen = layer.seen * 0.9 + 0.3
    return 1 + 0.05 * layer.seen


def once(layer):
    factor = getattr(layer, "first", 1.0)
    if hasattr(layer, "first"):
        del layer.first
    return factor


def counted(layer):
    layer.weight.count += 1
    return 1 + 0.05 * layer.weight.count


def switched(layer):
    layer.calls += 1
    if layer.calls == 4:
        layer.part = nn.Sigmoid()
    return layer.part(torch.ones(3))


def keep(**values):
    def prepare(layer):
        for name, value in values.items():
            setattr(layer, name, value)

    return prepare


def nothing(layer):
    return 1.0


# what a layer keeps, its factor, and what the record says; None where the run goes on
KEPT = {
    "a hook": (with_hook, nothing, "'_forward_hooks' of Kept may have changed"),
    "a hook of a gradient": (with_gradient_hook, nothing, "'_backward_hooks' of parameter weight"),
    "a lazy buffer": (lambda k: k.register_buffer("seen", None, False), lazily, None),
    "a buffer of another type": (
        lambda k: k.register_buffer("seen", torch.zeros((), dtype=torch.long)),
        changing_type,
        None,
    ),
    "a removed attribute": (keep(first=1.5), once, None),
    "an attribute of a parameter": (lambda k: setattr(k.weight, "count", 0), counted, None),
    "the memory of a parameter": (
        lambda k: setattr(k, "raw", k.weight.data),
        lambda k: 1 + k.raw.abs().mean(),
        "'raw' of Kept may have changed",
    ),
    "a generator's method": (
        lambda k: setattr(k, "draw", random.Random(0).random),
        lambda k: 1 + 0.1 * k.draw(),
        "'draw' of Kept may have changed",
    ),
    "another module": (
        lambda k: keep(part=nn.Tanh(), calls=0)(k),  # a module for every layer
        switched,
        "a module or a parameter was added, removed or replaced",
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_a_layer_keeps_goes_on_or_is_told(tmp_path, kind):
    data = points()
    prepare, factor, said = KEPT[kind]
    problem = classification(lambda: Kept(prepare, factor), data)
    whole, broken = both(tmp_path, problem, data, at=(7, 12))
    assert alike(whole, broken)
    if said is None:
        assert broken.end["resumed"] > 0
    else:
        assert "resumed" not in broken.end
        assert said in broken.end["checkpoints"]


class LeavingOut(nn.Linear):
    """Its state_dict does not have all parameters, as of a model of which a part is frozen."""

    def __init__(self):
        super().__init__(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def state_dict(self, *args, **options):
        state = super().state_dict(*args, **options)
        del state["scale"]
        return state

    def load_state_dict(self, state, **options):
        return super().load_state_dict(state, strict=False)

    def forward(self, inputs):
        return super().forward(inputs) * self.scale


def test_parameters_that_a_state_dict_leaves_out_go_on(tmp_path):
    data = points()
    whole, broken = both(tmp_path, classification(LeavingOut, data), data, at=(7, 12))
    assert alike(whole, broken)
    assert broken.end["resumed"] > 0


def test_a_state_of_another_type_than_its_parameter_goes_on(tmp_path):
    """NAdam keeps a product in float32, which torch casts to float64 with the parameters."""
    data = points(dtype=torch.float64)
    problem = classification(lambda: nn.Linear(3, 3, dtype=torch.float64), data)
    key = entrant("torch.optim.NAdam").key
    whole, broken = both(tmp_path, problem, data, at=(7, 12), method=key, lr=0.05)
    assert alike(whole, broken)
    assert broken.end["resumed"] > 0


def test_several_optimizers_go_on(tmp_path):
    data = points()
    problem = classification(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3)),
        data,
        optimizers=lambda model, make: [make(model[0].parameters()), make(model[1].parameters())],
        step=stepping(lambda loss: loss),
    )
    whole, broken = both_by_step(tmp_path, problem, data)
    assert alike(whole, broken)
    assert broken.end["resumed"] > 0


def stateful(name):
    drawn = np.random.default_rng(0)
    if name == "loss":
        return lambda outputs, targets: functional.cross_entropy(outputs, targets) * drawn.random()
    return lambda inputs, other: inputs + drawn.random() if name == "augment" else drawn.random()


@pytest.mark.parametrize("name", ["loss", "augment", "schedule"])
def test_functions_of_a_problem_that_remember_have_no_checkpoints(tmp_path, name):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, **{name: stateful(name)})
    run = run_of(problem, data)
    train(problem, data, run, tmp_path, checkpoint_every=0)
    end = find(tmp_path, run).end
    assert end["checkpoints"] == f"no checkpoints: what {name} holds may have changed"


def stepping(change):
    """The usual step of all optimizers with a loss that is changed, and a kill now and then."""

    def step(model, batches, optimizers):
        inputs, targets = next(batches)
        model.zero_grad()
        loss = change(functional.cross_entropy(model(inputs), targets))
        CALLS.append(True)
        if len(CALLS) in KILLS:
            raise Killed
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    return step


KILLS = []


def both_by_step(tmp_path, problem, data):
    run = run_of(problem, data)
    for name, at in (("whole", ()), ("broken", (7, 12))):
        CALLS.clear()
        KILLS[:] = at
        for _ in range(len(at) + 1):
            try:
                train(problem, data, run, tmp_path / name, checkpoint_every=0 if at else None)
                break
            except Killed:
                continue
    return find(tmp_path / "whole", run), find(tmp_path / "broken", run)


class Scaled:
    """A step that scales the loss by what it makes of itself."""

    def __init__(self, factor, **held):
        vars(self).update(held)
        self.factor = factor

    def __call__(self, model, batches, optimizers):
        return stepping(lambda loss: loss * self.factor(self, model))(model, batches, optimizers)


def growing(step, model):
    step.scale = getattr(step, "scale", 1.0) * 1.05
    return step.scale


def averaging(step, model):
    if step.average is None:
        step.average = copy.deepcopy(model)
    with torch.no_grad():
        step.average.weight.lerp_(model.weight, 0.1)
    return 1 + step.average.weight.abs().mean().item()


def of_the_model(step, model):
    step.weights = step.weights or [model.weight]
    return 1 + step.weights[0].detach().abs().mean()


class Critic(nn.Linear):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(3, 3)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, inputs):
        self.calls += 1
        self.seen += 1
        return super().forward(inputs) * (1 + 0.05 * self.calls + 0.01 * self.seen)


def evaluating(step, model):
    step.calls += 1
    if step.calls == 3:
        model[1].eval()  # until the next evaluation
    return 1.0


def with_default(step, model, calls=[0]):  # noqa: B006
    calls[0] += 1
    return 1 + 0.05 * calls[0]


def nested():
    count = 0

    def up():
        nonlocal count
        count += 1

    def factor(step, model):
        up()
        return 1 + 0.05 * count

    return factor


STEPS = {
    "an attribute made later": (lambda: Scaled(growing), None),
    "an average made later": (lambda: Scaled(averaging, average=None), "did not hold when"),
    "parameters of the model": (
        lambda: Scaled(of_the_model, weights=None),
        "the step holds parameters",
    ),
    "Python's generator": (
        lambda: Scaled(lambda s, m: 1 + s.drawn.random(), drawn=random.Random(0)),
        "drawn of the step is Random",
    ),
    "a generator's method": (
        lambda: Scaled(lambda s, m: 1 + s.draw(), draw=random.Random(0).random),
        "draw of the step is builtin_function_or_method",
    ),
    "a network with state": (
        lambda: Scaled(
            lambda s, m: 1 + s.critic(torch.ones(3)).detach().square().mean(), critic=Critic()
        ),
        None,
    ),
    "a module's mode": (lambda: Scaled(evaluating, calls=0), None),
    "a default argument": (lambda: Scaled(with_default), "has default arguments"),
    "nested functions": (lambda: stepping_by(nested()), None),
    "a circle": (lambda: circle(), "no checkpoints: RecursionError"),
}


def stepping_by(factor):
    def step(model, batches, optimizers):
        return stepping(lambda loss: loss * factor(None, model))(model, batches, optimizers)

    return step


def circle():
    step = Scaled(growing)
    step.itself = step
    return step


@pytest.mark.parametrize("kind", STEPS)
def test_what_a_step_keeps_goes_on_or_is_told(tmp_path, kind):
    data = points()
    make, said = STEPS[kind]
    model = nn.Linear
    if kind == "a module's mode":
        problem = classification(
            lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
            data,
            step=make(),
            steps=40,
        )
    else:
        problem = classification(lambda: model(3, 3), data, step=make())
    whole, broken = both_by_step(tmp_path, problem, data)
    if kind in ("a default argument", "a generator's method"):  # of which runs get no copy
        assert whole.status == broken.status == "done"
    else:
        assert alike(whole, broken)
    if said is None:
        assert broken.end["resumed"] > 0
    else:
        assert "resumed" not in broken.end
        assert said in broken.end["checkpoints"]


# --- files


def left_off(tmp_path, method="m-svag"):
    """A run that was killed at its 9th step."""
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    run = run_of(problem, data, method=method)
    broken = replace(problem, loss=breaking(problem.loss, 9), metric=problem.judged_by(data))
    with pytest.raises(Killed):
        train(broken, data, run, tmp_path, checkpoint_every=0)
    path = Checkpoints(tmp_path, run, None).path
    assert path.exists()
    return problem, data, run, path


def changed(name, value):
    def change(path):
        content = torch.load(path, weights_only=True)
        torch.save({**content, name: value}, path)

    return change


def within(*names, **values):
    """Change values of the checkpoint, or of a part of it."""

    def change(path):
        content = torch.load(path, weights_only=True)
        part = content["checkpoint"]
        for name in names:
            part = part[name]
        part.update(values)
        torch.save(content, path)

    return change


DAMAGES = {
    "a step too many": (within(step=20), "is of step 20, of a run of 20"),
    "a step that is no number": (within(step="8"), "is of step '8', of a run of 20"),
    "the state of another step": (within("state", taken=5), "of step 8, its state of step 5"),
    "no time": (within(seconds=math.nan), "is of nan seconds"),
    "lines that are missing": (within(lines=[]), "is of step 8, its lines end with step -1"),
    "lines of another kind": (within(lines=[{"kind": "end"}]), "cannot be read"),
    "another batch size": (
        within("state", "batches", waiting=torch.zeros(3, 2, dtype=torch.long)),
        "does not fit",
    ),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot be read"),
    "no archive": (lambda path: path.write_bytes(b"checkpoint" * 100), "cannot be read"),
    "another format": (changed("format", 2), "is of format 2, not 1"),
    "another torch": (changed("torch", "2.0.0"), "is of torch 2.0.0, not"),
    "another run": (changed("run", "0123456789abcdef"), "is of run 0123456789abcdef, not"),
    "another model": (
        lambda path: changed("checkpoint", {**torch.load(path)["checkpoint"], "state": {}})(path),
        "does not fit",
    ),
    "code": (lambda path: torch.save({"format": Hidden()}, path), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_used_is_set_aside(tmp_path, damage):
    problem, data, run, path = left_off(tmp_path)
    change, words = DAMAGES[damage]
    change(path)
    train(problem, data, run, tmp_path)
    record = find(tmp_path, run)
    train(problem, data, run, tmp_path / "whole")
    assert record.findings == find(tmp_path / "whole", run).findings
    assert words in record.end["checkpoints"]
    assert "resumed" not in record.end
    assert not path.exists()


def test_a_disk_that_is_full_costs_checkpoints_alone(tmp_path):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    run = run_of(problem, data)
    (tmp_path / "checkpoints").write_text("no folder")
    train(problem, data, run, tmp_path, checkpoint_every=0)
    record = find(tmp_path, run)
    assert record.status == "done"
    assert "a checkpoint could not be written: " in record.end["checkpoints"]


def test_time_counts_over_attempts(tmp_path):
    problem, data, run, path = left_off(tmp_path)
    content = torch.load(path, weights_only=True)
    content["checkpoint"]["seconds"] = 1000.0
    torch.save(content, path)
    train(problem, data, run, tmp_path)
    assert find(tmp_path, run).end["wall_time"] > 1000


def test_what_a_kill_left_of_a_checkpoint_is_removed_with_it(tmp_path):
    problem, data, run, path = left_off(tmp_path)
    path.with_suffix(".123.part").write_bytes(b"half")
    train(problem, data, run, tmp_path)
    assert not path.parent.exists()


def test_other_threads_are_told(tmp_path):
    problem, data, run, path = left_off(tmp_path)
    changed("computed", "64 threads on AVX9")(path)
    train(problem, data, run, tmp_path)
    end = find(tmp_path, run).end
    assert end["resumed"] == 8
    assert end["checkpoints"].startswith("begun with 64 threads on AVX9, continued with ")
