"""What a problem may bring of its own, held against loops written by hand, bit for bit."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import svag
from lab.made import after, classification, equal, points, run_of, trained
from svag.errors import InvalidOption
from svag.lab.session import Session
from svag.problems import Data, Split, supervised


def linear():
    return nn.Linear(3, 3)


def orders(count, size, seed, steps):
    """The rows of each batch, in the order in which the lab takes them."""
    generator, rows = torch.Generator().manual_seed(seed), []
    while len(rows) < steps:
        order = torch.randperm(count, generator=generator)
        rows += order[: count // size * size].split(size)
    return rows[:steps]


# --- augmentation


def noisy(inputs, generator):
    return inputs + torch.randn(inputs.shape, generator=generator)


def test_augmentation_changes_training_batches_only(tmp_path):
    data = points()
    seen = []

    class Watched(nn.Linear):
        def forward(self, inputs):
            seen.append((self.training, inputs))
            return super().forward(inputs)

    problem = classification(lambda: Watched(3, 3), data, augment=noisy, steps=4)
    trained(tmp_path, problem, data, eval_every=4, seed=5)
    evaluated = [inputs for training, inputs in seen if not training]
    assert torch.equal(evaluated[1], data.test.inputs)
    batches = [inputs for training, inputs in seen if training]
    generator = torch.Generator().manual_seed(5)
    for batch, rows in zip(batches, orders(43, 8, 5, 4), strict=True):
        assert torch.equal(batch, noisy(data.train.inputs[rows], generator))


def test_augmentation_is_that_of_the_seed_whatever_is_evaluated():
    data = points()
    problem = classification(linear, data, augment=noisy)
    first = after(problem, data, eval_every=1)
    assert equal(first, after(problem, data, eval_every=20))
    assert not equal(first, after(classification(linear, data), data))
    assert not equal(first, after(problem, data, seed=2))


# --- steps of one's own


def by_hand(data, steps, take_step, *, seed=1):
    """Run a loop over the lab's batches; return the parameters at the end."""
    torch.manual_seed(seed)
    model = linear()
    optimizer = svag.MSGD(model.parameters(), lr=0.1)
    rows = iter(orders(43, 8, seed, 200))
    for _ in range(steps):
        take_step(model, optimizer, lambda: data.train.take(next(rows)))
    return list(model.parameters())


def accumulating(parts, most=0.1):
    """A step that accumulates over several batches and clips, written as in the guide."""

    def step(model, batches, optimizers):
        total = 0.0
        optimizers[0].zero_grad()
        for _ in range(parts):
            inputs, targets = next(batches)
            loss = functional.cross_entropy(model(inputs), targets) / parts
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), most)
        optimizers[0].step()
        return total

    return step


def test_accumulation_and_clipping():
    data = points()

    def take_step(model, optimizer, batch):
        optimizer.zero_grad()
        for _ in range(3):
            part = batch()
            (functional.cross_entropy(model(part.inputs), part.targets) / 3).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    problem = classification(linear, data, step=accumulating(3))
    assert equal(after(problem, data), by_hand(data, 20, take_step))


class Counting:
    """A step with state: the step size that it takes shrinks with every call, ever."""

    def __init__(self):
        self.calls = 0
        self.usual = supervised(functional.cross_entropy)

    def __call__(self, model, batches, optimizers):
        self.calls += 1
        loss = self.usual(model, batches, optimizers)
        with torch.no_grad():
            model.bias.div_(self.calls)
        return loss

    def method(self, model, batches, optimizers):
        return self(model, batches, optimizers)


def counting():
    count = Counting()
    calls = 0

    def step(model, batches, optimizers, *, slack=0):
        nonlocal calls
        calls += 1
        assert count.calls == calls - 1 + slack
        return count(model, batches, optimizers)

    return step


@pytest.mark.parametrize("make", [Counting, counting, lambda: Counting().method])
def test_state_of_a_step_does_not_go_from_run_to_run(make):
    data = points()
    problem = classification(linear, data, step=make())
    first = after(problem, data)
    assert equal(first, after(problem, data))
    assert not equal(first, after(classification(linear, data), data))


def test_state_that_cannot_be_copied_is_refused_by_name(tmp_path):
    stream = (n for n in range(100))

    def step(model, batches, optimizers):
        return next(stream)

    data = points()
    record = trained(tmp_path, classification(linear, data, step=step), data)
    assert record.status == "error"
    assert "the state of the step 'step' cannot be copied for a run" in record.end["message"]


@pytest.mark.parametrize("returned", [1, 0.5, torch.tensor(0.5), torch.tensor([2.0])])
def test_a_step_may_return_any_number(tmp_path, returned):
    data = points()
    problem = classification(linear, data, step=lambda model, batches, optimizers: returned)
    assert trained(tmp_path, problem, data).status == "done"


def test_a_loss_that_is_not_finite_ends_a_run_with_a_step_of_its_own(tmp_path):
    data = points()
    problem = classification(linear, data, step=lambda m, b, o: float("inf"))
    record = trained(tmp_path, problem, data)
    assert (record.status, record.end["step"]) == ("diverged", 0)


def test_autocast_is_around_a_step_of_ones_own(tmp_path):
    data = points()

    def step(model, batches, optimizers):
        if not torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no autocast")
        return supervised(functional.cross_entropy)(model, batches, optimizers)

    problem = classification(linear, data, step=step)
    assert trained(tmp_path, problem, data, autocast="bfloat16").status == "done"
    assert "no autocast" in trained(tmp_path, problem, data).end["message"]


# --- several optimizers


class Game(nn.Module):
    """A generator of points and a critic, which tells the true ones from them."""

    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, inputs):
        return self.critic(inputs)


def against(model, inputs, optimizers):
    """One step of the critic and one of the generator."""
    one, zero = torch.ones(len(inputs), 1), torch.zeros(len(inputs), 1)
    entropy = functional.binary_cross_entropy_with_logits
    made_up = model.generator(torch.randn(len(inputs), 2))
    optimizers[1].zero_grad()
    loss = entropy(model(inputs), one) + entropy(model(made_up.detach()), zero)
    loss.backward()
    optimizers[1].step()
    optimizers[0].zero_grad()
    entropy(model(made_up), one).backward()
    optimizers[0].step()
    return loss.detach()


def game(data, **changes):
    return classification(
        Game,
        data,
        loss=lambda outputs, targets: outputs.square().mean(),
        step=lambda model, batches, optimizers: against(model, next(batches)[0], optimizers),
        optimizers=lambda model, make: [
            make(model.generator.parameters(), lr_factor=0.5),
            make(model.critic.parameters()),
        ],
        **changes,
    )


def test_two_optimizers_are_a_loop_with_two_bit_for_bit():
    data = points()
    problem = game(data, schedule=lambda step, steps: 1 - step / steps)
    found = after(problem, data, method="adam", lr=0.1, eval_every=3)
    torch.manual_seed(1)
    model = Game()
    optimizers = [
        svag.Adam(model.generator.parameters(), lr=0.05),
        svag.Adam(model.critic.parameters(), lr=0.1),
    ]
    for step, rows in enumerate(orders(43, 8, 1, 20)):
        for optimizer, lr in zip(optimizers, (0.05, 0.1), strict=True):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / 20)
        against(model, data.train.inputs[rows], optimizers)
    assert equal(found, model.parameters())


def test_two_optimizers_have_the_weight_decay_of_the_problem():
    """A group that states its own keeps it."""

    def optimizers(model, make):
        stated = {"params": model.critic.parameters(), "weight_decay": 0.3}
        plain = {"params": model.generator.parameters(), "lr": 0.02}
        return [make(model.generator.weight), make([stated]), make([plain])]

    data = points()
    problem = classification(Game, data, weight_decay=0.1, optimizers=optimizers)
    session = Session(problem, data, run_of(problem, data))
    decays = [[g["weight_decay"] for g in o.param_groups] for o in session.optimizers]
    assert decays == [[0.1], [0.3], [0.1, 0.0]]
    assert [g["lr"] for g in session.optimizers[2].param_groups] == [0.02, 0.02]


# --- state that is carried from batch to batch


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.read = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1)
        self.carried_state = None
        self.starts = []

    def forward(self, inputs):
        if self.training:
            self.starts.append(self.carried_state is None)
        hidden, self.carried_state = self.cell(inputs, self.carried_state)
        return self.read(hidden)


def sequence(rows=22, width=5):
    """Batches of 4 rows, each going on where the one before ended; two rows are left over."""
    inputs = torch.sin(torch.arange(rows * width) / 3.0).reshape(rows, width, 1)
    return Split(inputs, inputs.roll(-1, 1))


def recurrence(**changes):
    data = Data(sequence(), sequence(9))
    settings = {"carry_state": True, "batch_size": 4, "loss": functional.mse_loss, **changes}
    return classification(Recurrent, data, steps=12, **settings), data


def test_carried_state_is_truncated_backpropagation_by_hand():
    problem, data = recurrence()
    found = after(problem, data, lr=0.1, eval_every=2)
    torch.manual_seed(1)
    model = Recurrent()
    optimizer = svag.MSGD(model.parameters(), lr=0.1)
    state = None
    for step in range(12):
        at = step % 5 * 4
        if at == 0:
            state = None
        hidden, state = model.cell(data.train.inputs[at : at + 4], state)
        loss = functional.mse_loss(model.read(hidden), data.train.targets[at : at + 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = state.detach()
    assert equal(found, model.parameters())


def test_carried_state_begins_anew_with_every_epoch_only():
    problem, data = recurrence()
    session = Session(problem, data, run_of(problem, data, eval_every=1))
    for _ in session:
        before = session.model.carried_state
        session.evaluate()
        assert session.model.carried_state is before
    assert session.model.starts == [step % 5 == 0 for step in range(12)]


def test_carried_state_in_an_evaluation_by_hand():
    """State goes from batch to batch; the ninth row is left out."""
    problem, data = recurrence()
    session = Session(problem, data, run_of(problem, data))
    found = session.evaluate()
    with torch.no_grad():
        state, total = None, 0.0
        for at in (0, 4):
            hidden, state = session.model.cell(data.test.inputs[at : at + 4], state)
            outputs = session.model.read(hidden)
            total += functional.mse_loss(outputs, data.test.targets[at : at + 4]).item() / 2
    assert found["test_loss"] == pytest.approx(total, rel=1e-6)


def test_carried_state_and_validation_rows_are_the_last():
    problem, data = recurrence(batch_size=2, select="validation")
    session = Session(problem, data, run_of(problem, data, select="validation"))
    found = session.evaluate()
    with torch.no_grad():
        outputs = session.model.read(session.model.cell(data.train.inputs[-2:])[0])
    expected = functional.mse_loss(outputs, data.train.targets[-2:]).item()
    assert found["validation_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("select", "name"), [("validation", "validation"), ("test", "test")])
def test_carried_state_needs_a_whole_batch_to_evaluate(select, name):
    problem, data = recurrence(batch_size=4 if select == "validation" else 10)
    with pytest.raises(InvalidOption, match=f"the {name} split of 'points' has"):
        Session(problem, data, run_of(problem, data, select=select))


# --- the variance of a mini-batch


def normalized():
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("method", ["m-svag@within-batch", "adam-star@within-batch"])
def test_batch_norm_goes_through_micro_batches_by_hand(method):
    """Eight examples in four parts of two, normalised for themselves."""
    data = points()
    found = after(classification(normalized, data), data, method=method)
    torch.manual_seed(1)
    model = normalized()
    kind = svag.MSVAG if method.startswith("m-svag") else svag.AdamStar
    optimizer = kind(model.parameters(), lr=0.1, variance="within-batch")
    for rows in orders(43, 8, 1, 20):
        optimizer.zero_grad()
        with svag.micro_batch_variance(model.parameters()) as micro_batches:
            for part in rows.split(2):
                outputs = model(data.train.inputs[part])
                (functional.cross_entropy(outputs, data.train.targets[part]) / 4).backward()
                micro_batches.micro_step()
        optimizer.step()
    for ours, theirs in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_batch_norm_that_is_frozen_leaves_examples_alone():
    """In evaluation mode it normalises by constants, so single examples have gradients."""

    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    data = points()
    make = lambda: nn.Sequential(linear(), Frozen(3))  # noqa: E731
    method = "m-svag@within-batch"
    found = after(classification(make, data), data, method=method)
    torch.manual_seed(1)
    model = make().train()
    optimizer = svag.MSVAG(model.parameters(), lr=0.1, variance="within-batch")
    for rows in orders(43, 8, 1, 20):
        optimizer.zero_grad()
        with svag.within_batch_variance(model):
            outputs = model(data.train.inputs[rows])
            functional.cross_entropy(outputs, data.train.targets[rows]).backward()
        optimizer.step()
    assert equal(found, model.parameters())
