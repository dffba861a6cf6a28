"""What one step is worth: against the theory of quadratics, and how often intervals are right."""

import math

import numpy as np
import pytest

from svag.analysis.contrasts import WEIGHTS
from svag.diagnosis.improvement import Factorial, effects, improvement, worth
from svag.diagnosis.line_search import Decreases, grid_about
from svag.errors import DissectionError
from svag.theory import StochasticQuadratic

REPETITIONS = 200
DRAWS = 24


def of_quadratic(slopes, curvatures, lrs, noise=0.0, rng=None, key="m-sgd"):
    """Decreases alpha s - alpha^2 c/2 of every draw, with noise as held batches have it."""
    found = Decreases(key, "plain", list(lrs))
    for slope, curvature in zip(slopes, curvatures, strict=True):
        at = np.array(lrs)
        extra = 0.0 if rng is None else noise * at * rng.standard_normal()
        found.rows.append(at * slope - 0.5 * at**2 * curvature + extra)
    return found


def test_without_noise_it_is_the_maximum_of_the_parabola():
    found = improvement(of_quadratic([3.0] * 5, [2.0] * 5, grid_about(1.1)))
    assert found.value == pytest.approx(0.5 * 3.0**2 / 2.0, rel=1e-3)
    assert found.lr == pytest.approx(1.5, rel=0.02)
    assert found.interval == pytest.approx((found.value, found.value))
    assert found.edge == ""
    assert found.draws == 5


@pytest.mark.parametrize(("about", "edge"), [(0.001, "highest"), (1000.0, "lowest")])
def test_a_maximum_at_the_end_of_the_step_sizes_is_said(about, edge):
    assert improvement(of_quadratic([3.0] * 5, [2.0] * 5, grid_about(about))).edge == edge


def test_a_direction_of_ascent_is_worth_nothing():
    rng = np.random.default_rng(0)
    found = improvement(of_quadratic([-1.0] * 12, [1.0] * 12, grid_about(1.0), 0.1, rng))
    assert found.value < 0
    ratio, interval = worth(
        of_quadratic([-1.0] * 12, [1.0] * 12, grid_about(1.0)),
        of_quadratic([1.0] * 12, [1.0] * 12, grid_about(1.0)),
    )
    assert math.isnan(ratio)
    assert interval is None


def test_a_loss_that_overflows_ends_the_step_sizes():
    table = of_quadratic([3.0] * 5, [2.0] * 5, grid_about(1.1))
    for row in table.rows:
        row[-1] = -math.inf
    table.rows[0][-2] = -math.inf
    found = improvement(table)
    assert found.value == pytest.approx(2.25, rel=1e-2)
    assert found.curve[-1] == -math.inf


@pytest.mark.parametrize("draws", [1, 2])
def test_too_few_draws_are_refused(draws):
    with pytest.raises(DissectionError, match=f"m-sgd: {draws} draws"):
        improvement(of_quadratic([1.0] * draws, [1.0] * draws, grid_about(1.0)))


def test_too_few_step_sizes_with_finite_losses_are_refused():
    table = of_quadratic([1.0] * 5, [1.0] * 5, grid_about(1.0))
    for row in table.rows:
        row[2:] = -math.inf
    with pytest.raises(DissectionError, match="2 step sizes"):
        improvement(table)


def test_a_maximum_over_noise_is_not_optimistic():
    """With no improvement at all, the mean of what is reported is not above 0."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(REPETITIONS):
        slopes = rng.standard_normal(DRAWS)
        values.append(improvement(of_quadratic(slopes, np.ones(DRAWS), grid_about(0.1))).value)
    error = np.std(values) / math.sqrt(REPETITIONS)
    assert np.mean(values) < 2 * error


@pytest.fixture(scope="module")
def intervals():
    """Intervals of SGD's and SSD's worth and step size on a quadratic, from fresh draws."""
    rng = np.random.default_rng(2)
    eigenvalues = np.linspace(0.1, 1.1, 30)
    rotation = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    problem = StochasticQuadratic(
        rotation * eigenvalues @ rotation.T, 3 * np.sin(np.arange(30)), noise=1.0
    )
    theta = np.zeros(30)
    gradient = problem.gradient(theta)
    truth = {
        "sgd": (problem.expected_improvement_sgd(theta), problem.optimal_step_size_sgd(theta)),
        "ssd": (problem.expected_improvement_ssd(theta), problem.optimal_step_size_ssd(theta)),
    }
    found = {key: [] for key in truth}
    for _ in range(REPETITIONS):
        g = problem.sample_gradients(theta, DRAWS, rng)
        held = problem.sample_gradients(theta, DRAWS, rng) - gradient
        for key, z in (("sgd", -g), ("ssd", -np.sign(g))):
            slopes = -(z @ gradient) - np.einsum("ni,ni->n", z, held)
            curvatures = np.einsum("ni,ij,nj->n", z, problem.Q, z)
            lrs = grid_about(1.3 * truth[key][1])
            found[key].append(improvement(of_quadratic(slopes, curvatures, lrs)))
    return truth, found


@pytest.mark.parametrize("key", ["sgd", "ssd"])
def test_intervals_cover_in_90_to_98_percent(intervals, key):
    truth, found = intervals
    value, lr = truth[key]
    covers = np.mean([one.interval[0] <= value <= one.interval[1] for one in found[key]])
    of_lr = np.mean([one.lr_interval[0] <= lr <= one.lr_interval[1] for one in found[key]])
    print(f"coverage of the worth of a step, {key}: {covers:.3f}, of its step size: {of_lr:.3f}")
    assert 0.90 <= covers <= 0.985
    assert 0.90 <= of_lr <= 0.985


@pytest.mark.parametrize("key", ["sgd", "ssd"])
def test_on_average_it_is_the_expected_improvement(intervals, key):
    truth, found = intervals
    assert np.mean([one.value for one in found[key]]) == pytest.approx(truth[key][0], rel=0.02)


def cells(rng, worths, shared=1.0):
    """Four methods of given worth at step size 1, whose draws share part of their noise."""
    common = rng.standard_normal(DRAWS)
    tables = []
    for worth_of, key in zip(worths, ("m-sgd", "m-svag", "m-ssd", "adam"), strict=True):
        own = rng.standard_normal(DRAWS)
        slopes = 2 * worth_of * (1 + 0.3 * shared * common + 0.2 * own)
        tables.append(of_quadratic(slopes, np.full(DRAWS, 2 * worth_of), grid_about(0.9), key=key))
    return tables


def test_effects_are_those_of_the_cells():
    found = effects(cells(np.random.default_rng(3), (1.0, 1.1, 2.0, 2.2)))
    assert found["sign"].ratio == pytest.approx(2.0, rel=0.15)
    assert found["sign"].direction == 1
    assert found["adaptation"].ratio == pytest.approx(1.1, rel=0.15)
    low, high = found["interaction"].interval
    assert low < 1 < high


def test_where_there_is_no_effect_one_is_found_in_at_most_five_percent():
    rng = np.random.default_rng(4)
    said = 0
    for _ in range(2 * REPETITIONS):
        found = effects(cells(rng, (1.0, 1.0, 1.0, 1.0)))
        said += any(one.direction for one in found.values())
    assert said / (2 * REPETITIONS) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / (2 * REPETITIONS))


def test_no_interval_where_some_worth_is_not_clearly_positive():
    tables = cells(np.random.default_rng(5), (1.0, 1.0, 1.0, 1.0))
    rng = np.random.default_rng(6)
    tables[0] = of_quadratic(rng.standard_normal(DRAWS), np.ones(DRAWS), grid_about(0.3))
    assert all(one.interval is None for one in effects(tables).values())


def test_worth_of_a_method_against_itself_is_one():
    table = cells(np.random.default_rng(7), (1.0, 1.0, 1.0, 1.0))[0]
    ratio, interval = worth(table, table)
    assert ratio == 1
    assert interval == pytest.approx((1.0, 1.0))


def test_directions_of_effects():
    assert Factorial("sign", 1.2, (1.1, 1.3)).direction == 1
    assert Factorial("sign", 0.8, (0.7, 0.9)).direction == -1
    assert Factorial("sign", 1.0, (0.9, 1.1)).direction == 0
    assert Factorial("sign", math.nan, None).direction == 0


# ------------------------------------------------- moving averages, draws once a block of gradients


def directions_of(problem, theta, chains, blocks, rng):
    """Draw z of the four methods at the ends of blocks of 31 gradients, after two to warm up.

    Written from Eqs. (4) to (8), (22) and (25); of shape (chains, blocks, d) by method.
    """
    found = {key: [] for key in ("m-sgd", "m-ssd", "m-svag", "adam")}
    m = v = slow = np.zeros((chains, problem.dimension))
    for t in range(31 * (blocks + 2)):
        g = problem.sample_gradients(theta, chains, rng)
        m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g**2
        slow = 0.999 * slow + 0.001 * g**2
        if (t + 1) % 31 or t < 62:
            continue
        weight = 1 - 0.9 ** (t + 1)
        mean, square = m / weight, v / weight
        rho = 0.1 * (1 + 0.9 ** (t + 1)) / (1.9 * weight)
        spread = np.maximum(square - mean**2, 0) / (1 - rho)
        found["m-sgd"].append(-mean)
        found["m-ssd"].append(-np.sign(mean))
        found["m-svag"].append(-mean * mean**2 / (mean**2 + rho * spread))
        found["adam"].append(-mean / np.sqrt(slow / (1 - 0.999 ** (t + 1))))
    return {key: np.stack(z, axis=1) for key, z in found.items()}


@pytest.fixture(scope="module")
def chained():
    """Directions of many chains, and what one step along them is truly worth."""
    rng = np.random.default_rng(8)
    eigenvalues = np.array([0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0])
    problem = StochasticQuadratic(np.diag(eigenvalues), np.linspace(-1, 2, 8), noise=1.0)
    theta = np.zeros(8)
    gradient = problem.gradient(theta)

    def parts(z, held=0.0):
        slopes = -(z @ gradient) - np.sum(z * held, axis=-1)
        return slopes, np.einsum("...i,ij,...j->...", z, problem.Q, z)

    # Blocks from the twelfth on, as long as Adam's slow average is far from its start, too.
    many = directions_of(problem, theta, 4000, DRAWS, rng)
    few = {key: z[:REPETITIONS] for key, z in many.items()}
    truth = {}
    for key, z in many.items():
        slopes, curvatures = (part[REPETITIONS:].mean() for part in parts(z))
        truth[key] = 0.5 * slopes**2 / curvatures, slopes / curvatures
    found = {key: [] for key in many}
    for key, z in few.items():
        held = problem.sample_gradients(theta, REPETITIONS * DRAWS, rng) - gradient
        slopes, curvatures = parts(z, held.reshape(REPETITIONS, DRAWS, 8))
        lrs = grid_about(0.8 * truth[key][1])
        found[key] = [of_quadratic(s, c, lrs) for s, c in zip(slopes, curvatures, strict=True)]
    return truth, found


@pytest.mark.parametrize("key", ["m-sgd", "m-ssd", "m-svag", "adam"])
def test_intervals_of_momentum_methods_cover_in_90_to_98_percent(chained, key):
    truth, found = chained
    value, lr = truth[key]
    intervals = [improvement(one) for one in found[key]]
    covers = np.mean([one.interval[0] <= value <= one.interval[1] for one in intervals])
    of_lr = np.mean([one.lr_interval[0] <= lr <= one.lr_interval[1] for one in intervals])
    print(f"coverage of the worth of a step, {key}: {covers:.3f}")
    print(f"coverage of its step size, {key}: {of_lr:.3f}")
    assert 0.90 <= covers <= 0.985
    assert 0.90 <= of_lr <= 0.985


def test_the_family_of_effects_covers_in_90_to_98_percent(chained):
    truth, found = chained
    keys = ("m-sgd", "m-svag", "m-ssd", "adam")
    logs = np.log([truth[key][0] for key in keys])
    covers = []
    for cells_of in zip(*(found[key] for key in keys), strict=True):
        family = effects(cells_of)
        covers.append(
            all(
                one.interval[0] <= math.exp(WEIGHTS[name] @ logs) <= one.interval[1]
                for name, one in family.items()
            )
        )
    print(f"coverage of sign, adaptation and interaction together: {np.mean(covers):.3f}")
    assert 0.90 <= np.mean(covers) <= 0.99


def test_nothing_is_certain_where_a_method_is_best_beyond_the_step_sizes():
    inside = [of_quadratic([3.0] * 5, [2.0] * 5, grid_about(1.1)) for _ in range(3)]
    beyond = of_quadratic([3.0] * 5, [2.0] * 5, grid_about(0.001))
    assert effects([*inside, inside[0]])["sign"].interval is not None
    assert {one.interval for one in effects([*inside, beyond]).values()} == {None}
    assert worth(beyond, inside[0])[1] is None
