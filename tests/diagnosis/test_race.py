"""The race: what is run, who wins, and how often an effect is seen that is not there."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from diagnosis.quadratics import sampled
from svag.diagnosis.objective import Objective
from svag.diagnosis.race import SEEDS, Heat, Race, RaceResult, race_effects
from svag.diagnosis.race_training import FromHere
from svag.diagnosis.sampling import Sampling
from svag.entrants import entrant
from svag.theory import StochasticQuadratic

FOUR = ("m-sgd", "m-svag", "m-ssd", "adam")


class Bowl:
    """A trainer of known loss: ``best`` is the best step size, above ``limit`` it diverges."""

    def __init__(self, best, limit=math.inf, shrinks=0.0, sigma=0.0):
        self.best, self.limit, self.shrinks, self.sigma = best, limit, shrinks, sigma
        self.calls = []

    def start_loss(self):
        return 10.0

    def train(self, one, lr, steps, seed):
        self.calls.append((one.key, lr, steps, seed))
        if lr > self.limit:
            return math.inf, 1
        best = self.best * steps**-self.shrinks
        noise = self.sigma * np.random.default_rng([seed, len(one.key)]).standard_normal()
        return 1 + math.log10(lr / best) ** 2 + noise, steps


def raced(trainer, starts, seconds=0.05, longest=40, keys=("m-sgd",)):
    entrants = [entrant(key) for key in keys]
    return Race(trainer, longest).run(entrants, starts, seconds=seconds)


@pytest.mark.parametrize("start", [0.001, 0.01, 0.1, 1.0])
def test_it_climbs_to_the_best_step_size(start):
    found = raced(Bowl(0.1), {"m-sgd": start})
    assert found.lrs == {"m-sgd": 0.1}
    assert found.losses["m-sgd"] == pytest.approx(1.0)
    assert len(found.finals("m-sgd")) == SEEDS
    assert found.start_loss == 10


def test_it_goes_down_where_the_start_diverges():
    found = raced(Bowl(0.1, limit=0.02), {"m-sgd": 1.0})
    assert found.lrs == {"m-sgd": 0.01}
    assert any(heat.diverged for heat in found.heats)


def test_where_all_diverge_there_is_no_step_size():
    found = raced(Bowl(0.1, limit=0.0), {"m-sgd": 1.0})
    assert math.isnan(found.lrs["m-sgd"])
    assert found.losses["m-sgd"] == math.inf


def test_no_training_is_longer_than_allowed_and_none_is_run_twice():
    trainer = Bowl(0.1)
    found = raced(trainer, {"m-sgd": 0.01}, seconds=0.5, longest=64)
    assert found.steps == 64
    assert max(heat.steps for heat in found.heats) == 64
    keys = [(heat.method, heat.lr, heat.steps, heat.seed) for heat in found.heats]
    assert len(keys) == len(set(keys))


def test_a_method_without_a_start_is_left_out():
    found = raced(Bowl(0.1), {"m-sgd": 0.1, "adam": math.nan}, keys=("m-sgd", "adam", "ssd"))
    assert list(found.lrs) == ["m-sgd"]


def result_of(finals):
    heats = tuple(
        Heat(key, 0.1, 5, seed, loss)
        for key, losses in finals.items()
        for seed, loss in enumerate(losses)
    )
    return RaceResult(2.0, 5, heats, dict.fromkeys(finals, 0.1), dict.fromkeys(finals, 1.0))


def test_effects_are_differences_of_the_cells():
    noise = np.random.default_rng(0).standard_normal(SEEDS) * 0.01
    finals = {key: value + noise for key, value in zip(FOUR, (1.0, 0.9, 0.5, 0.4), strict=True)}
    found = race_effects(result_of(finals), FOUR)
    assert found["sign"].estimate == pytest.approx(-0.5)
    assert found["adaptation"].estimate == pytest.approx(-0.1)
    assert found["interaction"].estimate == pytest.approx(0.0, abs=1e-12)
    assert (found["sign"].direction, found["adaptation"].direction) == (1, 1)


def test_an_effect_that_is_not_there_is_seen_in_at_most_five_percent():
    rng = np.random.default_rng(1)
    said = 0
    for _ in range(1000):
        shared = rng.standard_normal(SEEDS)
        finals = {key: shared + rng.standard_normal(SEEDS) for key in FOUR}
        said += any(e.direction for e in race_effects(result_of(finals), FOUR).values())
    assert said / 1000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_divergence_leaves_no_effect():
    finals = {key: [1.0] * SEEDS for key in FOUR}
    finals["adam"] = [1.0] * (SEEDS - 1) + [math.inf]
    found = race_effects(result_of(finals), FOUR)
    assert all(one.interval is None for one in found.values())


# ------------------------------------------------------------------------------- real training


@pytest.mark.parametrize("key", [*FOUR, "svag", "adam-star"])
def test_training_is_that_of_the_optimizer_and_is_undone(key):
    problem = StochasticQuadratic(np.diag([1.0, 2.0]), np.array([1.0, -1.0]), 0.5)
    objective, sampling = sampled(problem, seed=0)
    with objective.dissected():
        trainer = FromHere(objective, sampling, sampling.held(4))
        one = entrant(key)
        found = trainer.train(one, 0.05, 7, seed=0)
        again = trainer.train(one, 0.05, 7, seed=0)
        other = trainer.train(one, 0.05, 7, seed=1)
        batches = [trainer._batch(0, n) for n in range(7)]
        from svag.lab.optimizers import build

        optimizer = build(one, objective.params, lr=0.05)
        for batch in batches:
            objective.gradient(batch)
            optimizer.step()
        expected = trainer.start_loss()
    assert found == again == (expected, 7)
    assert other != found
    assert torch.equal(objective.params[0].detach(), torch.zeros(2, dtype=torch.float64))


def test_divergence_is_a_result():
    problem = StochasticQuadratic(np.diag([1.0, 2.0]), np.array([1.0, -1.0]), 0.5)
    objective, sampling = sampled(problem, seed=0)
    with objective.dissected():
        trainer = FromHere(objective, sampling, sampling.held(2))
        loss, steps = trainer.train(entrant("m-sgd"), 1e200, 50, seed=0)
    assert loss == math.inf
    assert steps < 50


def test_running_statistics_change_in_a_training_and_are_restored():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(5)]
    objective = Objective(model, functional.mse_loss)
    with objective.dissected():
        sampling = Sampling(objective, data)
        FromHere(objective, sampling, sampling.held(2)).train(entrant("adam"), 0.1, 12, seed=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_within_batch_methods_race():
    model = nn.Linear(3, 1)
    data = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(5)]
    objective = Objective(model, functional.mse_loss)
    with objective.dissected():
        sampling = Sampling(objective, data)
        trainer = FromHere(objective, sampling, sampling.held(2))
        loss, steps = trainer.train(entrant("m-svag@within-batch"), 0.1, 6, seed=0)
        assert math.isfinite(loss)
        assert loss < trainer.start_loss()
    assert steps == 6
