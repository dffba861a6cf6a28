"""``svag.dissect`` and the command, on models and loops as users write them."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import svag
from diagnosis.quadratics import Quadratic, drawn, mean
from svag.analysis.dissection_records import of_kind, read
from svag.diagnosis.trained_optimizer import decays_of
from svag.errors import DissectionError, InvalidOption, SparseGradient
from svag.theory import StochasticQuadratic

QUICK = {"budget": "1s", "draws": 6}


def loader(shape=(96, 6), batch_size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    y = (x.flatten(1)[:, 0] > 0).long()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True, generator=generator)


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 2)
    )


def state(net):
    found = [t.detach().clone() for t in net.state_dict().values()]
    return [*found, torch.get_rng_state()]


def test_a_users_model_is_dissected_and_left_as_it_was(tmp_path):
    net = model()
    net.eval()
    before = state(net)
    found = svag.dissect(net, functional.cross_entropy, loader(), out=tmp_path, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, state(net), strict=True))
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
    plain = {one.method: one for one in found.improvements if one.track == "plain"}
    assert set(plain) == {"m-sgd", "m-svag", "m-ssd", "adam"}
    assert all(one.value > 0 and one.draws == 6 for one in plain.values())
    assert {one.effect.name for one in found.effects} == {"sign", "adaptation", "interaction"}
    assert found.noise[-1].name == "all"
    assert found.conclusion.best in plain
    assert found.race.losses[found.conclusion.best] < found.race.start_loss
    kinds = {row["kind"] for row in read(tmp_path)}
    assert kinds >= {"dissection", "noise", "improvement", "step effect", "heat", "conclusion"}


def test_the_same_seed_and_draws_give_the_same_directions():
    one, other = (
        svag.dissect(model(), functional.cross_entropy, loader(), race=False, **QUICK)
        for _ in range(2)
    )
    values = [[i.value for i in f.improvements if i.track == "plain"] for f in (one, other)]
    assert values[0] == values[1]


def test_on_a_quadratic_it_is_the_theory():
    problem = StochasticQuadratic(np.diag(np.linspace(0.5, 2, 12)), np.ones(12), 0.3)
    found = svag.dissect(
        Quadratic(problem),
        mean,
        drawn(problem, 0),
        methods=("sgd", "ssd"),
        budget="1s",
        draws=40,
        race=False,
    )
    theta = np.zeros(12)
    values = {one.method: one for one in found.improvements if one.track == "plain"}
    for key, value, lr in (
        ("sgd", problem.expected_improvement_sgd(theta), problem.optimal_step_size_sgd(theta)),
        ("ssd", problem.expected_improvement_ssd(theta), problem.optimal_step_size_ssd(theta)),
    ):
        assert values[key].value == pytest.approx(value, rel=0.15)
        assert values[key].lr == pytest.approx(lr, rel=0.15)
    assert found.setting.cells == ()
    assert found.conclusion.statements[0].verdict == "cannot tell"
    assert found.conclusion.suggestions[0].basis == "one step"


def test_batches_of_dictionaries_and_an_optimizers_state():
    net = model()
    data = [{"x": x, "y": y} for x, y in loader()]

    def loss(net, batch):
        return functional.cross_entropy(net(batch["x"]), batch["y"])

    optimizer = svag.MSVAG(net.parameters(), lr=0.1)
    for batch in data:
        optimizer.zero_grad()
        loss(net, batch).backward()
        optimizer.step()
    kept = {k: v["exp_avg"].clone() for k, v in optimizer.state.items()}
    found = svag.dissect(net, batches=data, batch_loss=loss, optimizer=optimizer, **QUICK)
    assert all(torch.equal(kept[k], v["exp_avg"]) for k, v in optimizer.state.items())
    assert found.conclusion.best


def test_sparse_gradients_are_refused():
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
    data = [(torch.randint(5, (8, 2)), torch.randint(2, (8,))) for _ in range(4)]
    with pytest.raises(SparseGradient, match=r"'0\.weight' is sparse"):
        svag.dissect(net, functional.cross_entropy, data, **QUICK)


@pytest.mark.parametrize(
    ("make", "decay"),
    [
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), 0.1),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1), 0.0),
        (lambda p: svag.MSVAG(p, weight_decay=0.1), 0.1),
        (lambda p: svag.MSVAG(p, weight_decay=0.1, decoupled_weight_decay=True), 0.0),
        (lambda p: torch.optim.SGD(p), 0.0),
    ],
)
def test_weight_decay_that_is_added_to_gradients_belongs_to_the_loss(make, decay):
    net = nn.Linear(6, 2)
    found = decays_of(net, make(net.parameters()))
    assert found == ({"weight": decay, "bias": decay} if decay else {})


def test_interrupting_the_race_restores_everything(monkeypatch):
    from svag.diagnosis import race_training

    net, calls = model(), []
    train = race_training.ObjectiveTrainer.train

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 6:
            with torch.no_grad():
                net[0].weight.add_(1)
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(race_training.ObjectiveTrainer, "train", interrupted)
    before = state(net)
    with pytest.raises(KeyboardInterrupt):
        svag.dissect(net, functional.cross_entropy, loader(), **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, state(net), strict=True))
    assert net.training


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"budget": "soon"}, InvalidOption, "budget='soon'"),
        ({"budget": 0}, InvalidOption, "budget=0"),
        ({"draws": 2}, InvalidOption, "draws=2"),
        ({"methods": ()}, InvalidOption, "leaves nothing to dissect"),
        ({"methods": ("adam(weight_decay=0.1)",)}, InvalidOption, "make it decoupled"),
        ({"batches": []}, DissectionError, "there is no batch"),
        ({"batches": iter(list(loader()))}, DissectionError, "batches ended after 6"),
    ],
)
def test_bad_input_is_refused(options, error, match):
    given = {"batches": loader(), **QUICK, **options}
    with pytest.raises(error, match=match):
        svag.dissect(model(), functional.cross_entropy, **given)


def test_a_loss_that_is_not_finite_is_refused():
    net = model()
    with torch.no_grad():
        net[0].weight.fill_(math.nan)
    with pytest.raises(DissectionError, match="loss is nan at the current parameters"):
        svag.dissect(net, functional.cross_entropy, loader(), **QUICK)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.GELU(), nn.Linear(8, 2)),
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 2)),
        nn.Linear(6, 2, bias=False),
        nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
    ],
    ids=["norm", "spectral", "linear", "double"],
)
def test_models_of_many_kinds(net):
    data = [(x.to(next(net.parameters()).dtype), y) for x, y in loader()]
    before = state(net)
    found = svag.dissect(net, functional.cross_entropy, data, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, state(net), strict=True))
    assert found.conclusion.suggestions


def test_the_gauss_of_a_flat_loss_says_nothing():
    """Where no direction changes the loss there is no verdict and no suggestion."""
    net = nn.Linear(6, 2)

    def flat(outputs, targets):
        return (0 * outputs).mean() + 1

    found = svag.dissect(net, flat, loader(), **QUICK)
    assert found.conclusion.suggestions == ()
    assert {one.verdict for one in found.conclusion.statements} == {"cannot tell"}


# ------------------------------------------------------------------------------- the command


def test_the_command(svag, tmp_path):
    code, out, _ = svag(
        *("dissect", "digits", "--budget", "2s", "--draws", "6", "--race-steps", "12"),
        *("--out", str(tmp_path), "--device", "cpu", "--after", "3", "--with", "m-sgd"),
    )
    assert code == 0
    assert "optimizer = svag." in out
    rows = read(tmp_path)
    assert rows[0]["step"] == 3
    assert rows[0]["problem"] == "digits"
    assert len(of_kind(rows, "conclusion")) == 1


def test_the_command_in_json_and_at_saved_parameters(svag, tmp_path):
    from svag import problems

    net = problems.get("digits").model()
    torch.save({"model": net.state_dict()}, tmp_path / "saved.pt")
    code, out, _ = svag(
        *("dissect", "digits", "--budget", "1s", "--draws", "6", "--race-steps", "10", "--json"),
        *("--at", str(tmp_path / "saved.pt"), "--out", str(tmp_path), "--methods", "adam,m-sgd"),
    )
    assert code == 0
    rows = json.loads(out)
    assert rows[0]["step"] is None
    assert rows[-1]["headline"].startswith("Neither the sign nor variance adaptation can be judged")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["digits", "--at", "nowhere.pt"], "nowhere.pt cannot be loaded"),
        (["digits", "--budget", "0s"], "budget='0s'"),
        (["digits", "--lr", "0.1"], "give --after STEPS, too"),
        (["digits", "--with", "sgd"], "give --after STEPS, too"),
        (["digits", "--out", f"{__file__}/folder"], "no folder that you may write to"),
        (["digits", "--after", "3", "--at", "saved.pt"], "give one of them"),
        (["nothing"], "no problem is called 'nothing'"),
        (["digits", "--after", "20", "--with", "m-sgd", "--lr", "1e30"], "diverged after"),
    ],
)
def test_the_command_refuses(svag, words, match):
    code, _, error = svag("dissect", *words, "--device", "cpu")
    assert code == 2
    assert match in error.replace("\n", " ")


def test_the_optimizers_averages_are_a_start_for_plain_directions_only():
    """In rotated coordinates, or for averaged gradients, they would be of something else."""
    net, data = model(), list(loader())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    for x, y in data * 4:
        optimizer.zero_grad()
        (1000 * functional.cross_entropy(net(x), y)).backward()  # averages of another scale
        optimizer.step()
    options = {"race": False, "budget": "90s", "draws": 3}
    fresh, warm = (
        svag.dissect(net, functional.cross_entropy, data, optimizer=one, **options)
        for one in (None, optimizer)
    )
    lrs = [
        {(one.track, one.method): one.lr for one in found.improvements} for found in (fresh, warm)
    ]
    assert lrs[1]["plain", "adam"] > 10 * lrs[0]["plain", "adam"]  # small steps by large averages
    for track in ("rotated", "batch x 2"):
        assert lrs[1][track, "adam"] == pytest.approx(lrs[0][track, "adam"], rel=0.5)
