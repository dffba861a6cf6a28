"""Directions are those of the methods in training, at every row of the table, and independent."""

import math

import numpy as np
import pytest
import torch
from reference import run
from scipy.stats import norm

from diagnosis.quadratics import sampled
from svag.anatomy import METHODS
from svag.diagnosis.directions import Directions, Track, block_length
from svag.diagnosis.line_search import LineSearch
from svag.diagnosis.rotation import Rotation
from svag.entrants import entrant
from svag.errors import DissectionError
from svag.theory import StochasticQuadratic

ROWS = [*METHODS, "sign(m) * erf(1/sqrt(2 rho s/m^2))", "m-svag(beta=0.5)", "adam(beta2=0.9)"]


def gradients(count, seed=0, size=40):
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(size) * 10.0 ** rng.uniform(-4, 2, size)
    mean[:3] = 0
    drawn = mean + np.abs(mean) * rng.standard_normal((count, size))
    drawn[:, 3] = mean[3]  # without noise
    return drawn


def drawn_from(directions, gradient):
    """Take in one parameter's gradient, and return copies of the directions by method."""
    found = directions.draw([torch.as_tensor(gradient)])
    return {key: [part.clone() for part in z] for key, z in found}


@pytest.mark.parametrize("key", ROWS)
def test_a_direction_is_the_update_of_the_method(key):
    drawn = gradients(12)
    param = torch.nn.Parameter(torch.randn(40, dtype=torch.float64))
    before = param.detach().clone()
    one = entrant(key)
    directions = Directions([param], [one])
    beta = one.betas[0] if one.betas else 0.9
    options = {"betas": one.betas, "eps": 1e-8} if one.anatomy.raw else {"beta": beta}
    steps = list(run(one.anatomy, drawn, theta=np.zeros(40), lr=1.0, **options))
    for g, step in zip(drawn, steps, strict=True):
        z = drawn_from(directions, g)[one.key][0]
        np.testing.assert_allclose(z.numpy(), -step.update, rtol=1e-10, atol=1e-14)
    assert torch.equal(param, before)
    assert param.grad is None


def test_what_is_not_drawn_counts_all_the_same():
    drawn = gradients(5)
    param = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
    seen, blind = (Directions([param], [entrant("m-svag")]) for _ in range(2))
    for g in drawn[:-1]:
        drawn_from(seen, g)
        blind.observe([torch.tensor(g)])
    one, other = (drawn_from(d, drawn[-1])["m-svag"][0] for d in (seen, blind))
    assert torch.equal(one, other)


def test_the_state_of_an_optimizer_is_the_start():
    import svag

    drawn = gradients(6)
    param = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
    trained = svag.MSVAG([param], lr=0.1)
    whole = Directions([param], [entrant("m-svag")])
    for g in drawn[:5]:
        param.grad = torch.tensor(g)
        trained.step()
        whole.observe([torch.tensor(g)])
    going_on = Directions([param], [entrant("m-svag")], {"m-svag": trained.state})
    one, other = (drawn_from(d, drawn[5])["m-svag"][0] for d in (whole, going_on))
    assert torch.equal(one, other)
    assert float(trained.state[param]["step"]) == 5


def test_an_optimizer_from_outside_steps_on_copies():
    param = torch.nn.Parameter(torch.full((4, 4), 3.0))
    one = entrant("torch.optim.SGD(momentum=0.5)")
    directions = Directions([param], [one])
    first = drawn_from(directions, np.ones((4, 4), np.float32))[one.key][0]
    second = drawn_from(directions, np.ones((4, 4), np.float32))[one.key][0]
    torch.testing.assert_close(first, torch.full((4, 4), -1.0))
    torch.testing.assert_close(second, torch.full((4, 4), -1.5))
    assert torch.equal(param, torch.full((4, 4), 3.0))


def test_muon_is_a_direction_on_matrices():
    param = torch.nn.Parameter(torch.randn(6, 4))
    one = entrant("torch.optim.Muon(weight_decay=0.0)")
    z = drawn_from(Directions([param], [one]), np.random.default_rng(0).random((6, 4), np.float32))
    z = z[one.key][0]
    singular = torch.linalg.svdvals(z)
    assert float(singular.max() / singular.min()) < 2  # orthogonalised


def test_an_optimizer_that_cannot_step_is_refused():
    param = torch.nn.Parameter(torch.zeros(3))
    one = entrant("torch.optim.Rprop")
    directions = Directions([param], [one])
    directions.observe([torch.ones(3)])
    sparse = entrant("torch.optim.SparseAdam")
    with pytest.raises(DissectionError, match=r"torch\.optim\.SparseAdam cannot step"):
        Directions([param], [sparse]).observe([torch.ones(3)])


def test_block_lengths_follow_the_slowest_first_moment():
    assert block_length([entrant("m-sgd(beta=0.99)"), entrant("adam")]) == math.ceil(
        math.log(0.04) / math.log(0.99)
    )
    assert block_length([entrant("sgd"), entrant("ssd")]) == 1
    assert block_length([entrant("m-sgd(beta=0)")]) == 1
    assert block_length([entrant("svag")]) == 31


def test_a_larger_batch_is_the_average_of_gradients():
    track = Track(3)
    given = [[torch.tensor([1.0])], [torch.tensor([2.0])], [torch.tensor([6.0])]]
    taken = [track.take(grads) for grads in given]
    assert taken[:2] == [None, None]
    assert taken[2][0].item() == 3
    assert track.take(given[0]) is None
    assert track.name == "batch x 3"


def test_rotated_plain_directions_are_the_same_and_signs_are_not():
    param = torch.nn.Parameter(torch.zeros(64, dtype=torch.float64))
    drawn = gradients(4, size=67)[:, 3:]
    both = [entrant("m-sgd"), entrant("m-ssd")]
    tracks = [Track(), Track(rotation=Rotation([param], 0))]
    found = []
    for track in tracks:
        directions = Directions([param], both)
        for g in drawn:
            z = drawn_from(directions, track.take([torch.tensor(g)])[0])
        found.append({key: track.back(one)[0] for key, one in z.items()})
    torch.testing.assert_close(found[0]["m-sgd"], found[1]["m-sgd"])
    assert not torch.allclose(found[0]["m-ssd"], found[1]["m-ssd"])
    torch.testing.assert_close(found[0]["m-ssd"].norm(), found[1]["m-ssd"].norm())


def test_draws_once_a_block_are_as_good_as_independent():
    """The mean of 24 draws of m covers the gradient in 95 % of the cases, of consecutive in few."""
    rng = np.random.default_rng(0)
    repetitions, draws, length = 2000, 24, block_length([entrant("m-sgd")])
    weights = 0.1 * 0.9 ** np.arange(300)[::-1]
    covered = {}
    for spacing in (1, length):
        g = rng.standard_normal((repetitions, 300 + draws * spacing))
        windows = [g[:, at : at + 300] @ weights for at in range(0, draws * spacing, spacing)]
        m = np.stack(windows, axis=1)
        reach = 2.069 * m.std(axis=1, ddof=1) / math.sqrt(draws)  # Student's, 23 degrees
        covered[spacing] = float((np.abs(m.mean(axis=1)) <= reach).mean())
    assert covered[1] < 0.5
    assert covered[length] > 0.93


def test_signs_of_a_quadratic_succeed_as_often_as_the_theory_says():
    problem = StochasticQuadratic(np.diag([1.0, 2.0, 0.5]), np.array([1.0, -0.3, 0.2]), 0.8)
    objective, sampling = sampled(problem, seed=0)
    directions = Directions(objective.params, [entrant("ssd")])
    signs = []
    for batch in sampling.stream():
        objective.gradient(batch)
        z = drawn_from(directions, objective.params[0].grad)["ssd"][0]
        signs.append(-z.numpy())
        if len(signs) == 4000:
            break
    gradient, std = problem.gradient(np.zeros(3)), problem.gradient_std()
    expected = 2 * norm.cdf(gradient / std) - 1
    np.testing.assert_allclose(np.mean(signs, axis=0), expected, atol=4 / math.sqrt(4000))


def test_the_line_search_restores_and_measures_exactly():
    problem = StochasticQuadratic(np.diag([1.0, 3.0]), np.array([1.0, 1.0]), 0.0)
    objective, sampling = sampled(problem, seed=0, theta=[0.0, 4.0])
    with objective.dissected():
        check_line(problem, objective, LineSearch(objective), sampling.held(2))


def check_line(problem, objective, line, held):
    before = objective.params[0].detach().clone()
    z = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = line.decreases([z], [0.0, 0.5, 1e200], held)
    start = problem.loss([0.0, 4.0])
    assert found[0] == pytest.approx([0.0, 0.0])
    assert found[1] == pytest.approx(start - problem.loss([0.5, 3.5]))
    assert found[2].tolist() == [-math.inf, -math.inf]
    assert torch.equal(objective.params[0].detach(), before)
    assert line.evaluations == 6
    slope, curvature = -z @ torch.tensor(problem.gradient([0.0, 4.0])), float(z @ z * 2)
    best = float(slope) / curvature
    assert best / 4 <= line.best_of([z], held) <= 4 * best
    assert line.best_of([-z], held) == 0
    assert line.best_of([0 * z], held) == 0


def test_on_rotated_axes_the_sign_is_what_the_rotated_sign_was():
    """theta -> R theta makes the plain sign of one problem the rotated sign of the other."""
    problem = StochasticQuadratic(np.diag([1.0, 4.0, 0.5, 2.0, 3.0]), np.arange(5) - 2.5, 0.0)
    objective, sampling = sampled(problem, seed=0)
    rotation = Rotation(objective.params, 5)
    basis = torch.eye(5, dtype=torch.float64)
    matrix = torch.stack([rotation.apply([e])[0] for e in basis], dim=1).numpy()
    turned = StochasticQuadratic(matrix @ problem.Q @ matrix.T, matrix @ problem.x_star, 0.0)
    other, of_other = sampled(turned, seed=0)
    lrs = [0.1, 0.5, 1.0]
    found = {}
    for name, subject, batches, track in (
        ("diagonal, rotated sign", objective, sampling, Track(rotation=rotation)),
        ("rotated, plain sign", other, of_other, Track()),
        ("diagonal, plain sign", objective, sampling, Track()),
    ):
        with subject.dissected():
            held = batches.held(1)
            subject.gradient(held[0])
            seen = track.take([p.grad for p in subject.params])
            z = drawn_from(Directions(subject.params, [entrant("ssd")]), seen[0])["ssd"]
            found[name] = LineSearch(subject).decreases(track.back(z), lrs, held)[:, 0]
    np.testing.assert_allclose(found["diagonal, rotated sign"], found["rotated, plain sign"])
    assert not np.allclose(found["diagonal, plain sign"], found["rotated, plain sign"])
