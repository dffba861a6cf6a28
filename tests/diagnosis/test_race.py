"""The race: what is run, who wins, and how often an effect is seen that is not there."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from measured import assert_within
from torch import nn
from torch.nn import functional

from diagnosis.quadratics import sampled
from svag.diagnosis.last_round import LEAST_ORDERS, MOST_ORDERS, LastRound
from svag.diagnosis.objective import Objective
from svag.diagnosis.race import Race
from svag.diagnosis.race_result import Heat, RaceResult, race_effects
from svag.diagnosis.race_training import ObjectiveTrainer
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
    assert LEAST_ORDERS <= len(found.finals("m-sgd")) <= MOST_ORDERS
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


def test_the_best_by_the_mean_wins_not_the_luckiest():
    """One training as noisy as the gap chooses a neighbour in a third of cases; the mean not."""
    lucky = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        final = LastRound(lambda index, seed: index**2 + rng.normal(), lambda index: True, 1, 10.0)  # noqa: B023
        final.run(20)
        lucky += final.best != 0
    assert lucky <= 2


def test_a_neighbour_that_is_clearly_worse_is_given_up_early():
    trained = []

    def loss(index, seed):
        trained.append(index)
        return 1 + index**2 + 0.01 * seed

    final = LastRound(loss, lambda index: True, 0, 10.0)
    final.run(LEAST_ORDERS)
    assert final.best == 0
    assert trained.count(0) == LEAST_ORDERS
    assert trained.count(1) == trained.count(-1) == 3


def test_the_last_round_goes_on_until_the_best_lies_between_two():
    final = LastRound(lambda index, seed: (index - 3.0) ** 2, lambda index: True, 0, 10.0)
    final.run(LEAST_ORDERS)
    assert final.best == 3
    assert not final.unbounded


def test_a_step_size_that_diverges_with_some_order_does_not_win():
    final = LastRound(
        lambda index, seed: math.inf if index == 0 and seed == 5 else 1 + index**2,
        lambda index: index <= 0,
        0,
        10.0,
    )
    final.run(5)
    assert final.best == 0
    final.run(6)
    assert final.best == -1


def test_a_loss_without_a_lower_bound_has_no_step_size():
    class Slope(Bowl):
        def train(self, one, lr, steps, seed):
            return -lr * steps, steps

    found = raced(Slope(0.1), {"m-sgd": 0.01})
    assert found.unbounded == ("m-sgd",)
    assert math.isnan(found.lrs["m-sgd"])


def test_rounds_end_where_nothing_is_left_to_tell_methods_apart():
    class Solved(Bowl):
        def train(self, one, lr, steps, seed):
            return (10 + math.log10(lr / self.best) ** 2) * 0.99**steps, steps

    found = raced(Solved(0.1), {"m-sgd": 0.1}, seconds=5, longest=2000)
    assert 330 <= found.steps < 2000
    assert found.losses["m-sgd"] < 0.5


def races_of_equal_methods(offset, noise, *, alone=False, count=250):
    """Return the share of races of four equal methods in which an effect is said.

    With ``alone``, the winner of the rounds before runs without its neighbours.
    """
    said = 0
    for trial in range(count):
        rng = np.random.default_rng([trial, int(100 * offset), int(100 * noise)])
        finals, heats, chosen = {}, [], {}
        for key in FOUR:

            def loss(index, seed, key=key):
                value = 10 + (index - offset) ** 2 + noise * rng.standard_normal()  # noqa: B023
                heats.append(Heat(key, float(index), 5, seed, value))  # noqa: B023
                return value

            winner = min(range(-2, 3), key=lambda k: (k - offset) ** 2 + noise * rng.normal())
            finals[key] = LastRound(loss, lambda index: True, winner, 20.0)
            finals[key].run(LEAST_ORDERS)
            chosen[key] = float(finals[key].best)
            if alone:
                chosen[key] = float(winner)
                for seed in range(LEAST_ORDERS):
                    if (winner, seed) not in {(h.lr, h.seed) for h in heats if h.method == key}:
                        loss(winner, seed)
        lrs = chosen
        found = race_effects(RaceResult(20.0, 5, tuple(heats), lrs, {}), FOUR)
        said += any(effect.direction for effect in found.values())
    return said / count


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_step_sizes_chosen_by_noise_make_no_effects(offset, noise):
    """Noise of one training as small and as large as the gap between neighbouring step sizes."""
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 250)
    assert_within("effects said of equal methods", races_of_equal_methods(offset, noise), bound)


def test_the_winner_alone_would_make_effects():
    assert races_of_equal_methods(0.25, 0.3, alone=True) > 0.15


def test_what_cannot_be_told_from_the_best_is_named():
    rng = np.random.default_rng(3)
    said = 0
    for _ in range(500):
        finals = {key: list(rng.standard_normal(LEAST_ORDERS)) for key in FOUR}
        losses = {key: float(np.mean(f)) for key, f in finals.items()}
        result = replace(result_of(finals), losses=losses)
        said += len(result.tied()) < 3
    assert said / 500 <= 0.08
    finals = {"adam": [1.0, 1.1, 0.9], "m-sgd": [2.0, 2.2, 1.9], "m-svag": [1.1, 0.9, 1.0]}
    losses = {key: float(np.mean(f)) for key, f in finals.items()}
    assert replace(result_of(finals), losses=losses).tied() == ("m-svag",)


def result_of(finals):
    heats = tuple(
        Heat(key, 0.1, 5, seed, loss)
        for key, losses in finals.items()
        for seed, loss in enumerate(losses)
    )
    return RaceResult(2.0, 5, heats, dict.fromkeys(finals, 0.1), dict.fromkeys(finals, 1.0))


def test_effects_are_differences_of_the_cells():
    noise = np.random.default_rng(0).standard_normal(LEAST_ORDERS) * 0.01
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
        shared = rng.standard_normal(LEAST_ORDERS)
        finals = {key: shared + rng.standard_normal(LEAST_ORDERS) for key in FOUR}
        said += any(e.direction for e in race_effects(result_of(finals), FOUR).values())
    assert said / 1000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_divergence_leaves_no_effect():
    finals = {key: [1.0] * LEAST_ORDERS for key in FOUR}
    finals["adam"] = [1.0] * (LEAST_ORDERS - 1) + [math.inf]
    found = race_effects(result_of(finals), FOUR)
    assert all(one.interval is None for one in found.values())


# ------------------------------------------------------------------------------- real training


@pytest.mark.parametrize("key", [*FOUR, "svag", "adam-star"])
def test_training_is_that_of_the_optimizer_and_is_undone(key):
    problem = StochasticQuadratic(np.diag([1.0, 2.0]), np.array([1.0, -1.0]), 0.5)
    objective, sampling = sampled(problem, seed=0)
    with objective.dissected():
        trainer = ObjectiveTrainer(objective, sampling, sampling.held(4))
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
        trainer = ObjectiveTrainer(objective, sampling, sampling.held(2))
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
        ObjectiveTrainer(objective, sampling, sampling.held(2)).train(
            entrant("adam"), 0.1, 12, seed=0
        )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_within_batch_methods_race():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    data = [(torch.randn(8, 3), torch.randn(8, 1) + 3) for _ in range(5)]
    objective = Objective(model, functional.mse_loss)
    with objective.dissected():
        sampling = Sampling(objective, data)
        trainer = ObjectiveTrainer(objective, sampling, sampling.held(2))
        loss, steps = trainer.train(entrant("m-svag@within-batch"), 0.1, 6, seed=0)
        assert math.isfinite(loss)
        assert loss < trainer.start_loss()
    assert steps == 6
