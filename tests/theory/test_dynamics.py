"""Runs on quadratics: against the optimizer family's oracle, closed forms and symmetries."""

import numpy as np
import pytest
from measured import assert_within
from reference import run

from svag import METHODS, Anatomy
from svag.errors import InvalidOption
from svag.theory.dynamics import Contender, Trajectories, log_spaced, simulate
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.spectra import eigenvalues_uniform, random_rotation

D = 12
SVAG = Contender(Anatomy(factor="svag"), 0.5, idealised=True)


def quadratic(noise=0.5, d=D, rotated=True, seed=0):
    rng = np.random.default_rng(seed)
    eigenvalues, rotation = eigenvalues_uniform(d, rng), random_rotation(d, rng)
    if not rotated:
        rotation = np.eye(d)
    return StochasticQuadratic((rotation * eigenvalues) @ rotation.T, rng.uniform(-5, 5, d), noise)


def contenders(lr=0.05):
    table = {key: Contender.of(key, lr) for key in METHODS}
    return table | {
        "idealised": SVAG,
        "decreasing": Contender(Anatomy(), lambda t: 1 / (2 + t)),
        "SGD*": Contender.of("sgd", "optimal"),
        "SSD*": Contender.of("ssd", "optimal"),
        "erf": Contender(Anatomy("momentum", True, "erf"), lr, (0.5,)),
    }


def drawn(problem, seed, steps):
    """The noise of the gradients of a seed, from its definition."""
    xi = np.random.default_rng(seed).standard_normal((steps, problem.dimension))
    return -problem.noise * xi @ problem.Q


def reference_curve(problem, contender, noise):
    """Suboptimality by the optimizer tests' oracle, fed with the gradients where it stands."""
    theta = np.zeros(problem.dimension)
    betas = {"beta": contender.betas[0]}
    if contender.anatomy.raw:
        betas = {"betas": tuple(contender.betas), "eps": contender.eps}
    curve = [problem.suboptimality(theta)]
    gradients = (problem.gradient(theta) + sample for sample in noise)  # where theta then stands
    for step in run(contender.anatomy, gradients, theta, lr=contender.step_size, **betas):
        theta = step.theta
        curve.append(problem.suboptimality(theta))
    return np.array(curve)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("key", METHODS)
def test_every_method_follows_the_oracle(key, rotated):
    problem, contender = quadratic(rotated=rotated), Contender.of(key, 0.05)
    found = simulate(problem, {key: contender}, 200, seeds=[7]).suboptimality[key][0]
    expected = reference_curve(problem, contender, drawn(problem, 7, 200))
    worst = float(np.abs(found / expected - 1).max())
    assert_within("theory: dynamics against the reference", worst, 1e-9, key)


def test_idealised_svag_is_its_definition():
    problem = quadratic()
    theta, curve = np.zeros(D), []
    for sample in drawn(problem, 3, 100):
        curve.append(problem.suboptimality(theta))
        gradient = problem.gradient(theta)
        gamma = gradient**2 / (gradient**2 + problem.gradient_std() ** 2)
        theta = theta - 0.5 * gamma * (gradient + sample)
    found = simulate(problem, {"x": SVAG}, 99, seeds=[3]).suboptimality["x"][0]
    assert found == pytest.approx(np.array(curve), rel=1e-9)


@pytest.mark.parametrize("key", ["sgd", "ssd"])
def test_optimal_step_sizes_are_those_of_the_problem(key):
    problem = quadratic()
    size = getattr(problem, f"optimal_step_size_{key}")
    theta, curve = np.zeros(D), []
    for sample in drawn(problem, 3, 30):
        curve.append(problem.suboptimality(theta))
        gradient = problem.gradient(theta) + sample
        theta = theta - size(theta) * (np.sign(gradient) if key == "ssd" else gradient)
    found = simulate(problem, {"x": Contender.of(key, "optimal")}, 29, seeds=[3])
    assert found.suboptimality["x"][0] == pytest.approx(np.array(curve), rel=1e-9)


def test_schedules_see_the_step_from_0():
    seen = []
    schedule = Contender(Anatomy(), lambda t: seen.append(t) or 0.1)
    simulate(quadratic(), {"x": schedule}, 5, seeds=2)
    assert seen == [0, 1, 2, 3, 4]


def test_a_method_does_not_depend_on_its_company():
    """Common random numbers: neither other methods, nor other seeds, nor what is recorded."""
    problem = quadratic()
    together = simulate(problem, contenders(), 50, seeds=5)
    assert together.seeds == (0, 1, 2, 3, 4)
    for name, contender in contenders().items():
        alone = simulate(problem, {"x": contender}, 50, seeds=[3, 1], record=[0, 10, 50])
        expected = together.suboptimality[name][[3, 1]][:, [0, 10, 50]]
        assert alone.suboptimality["x"] == pytest.approx(expected, rel=1e-12), name


def test_noise_does_not_depend_on_the_blocks_it_is_drawn_in(monkeypatch):
    problem = quadratic()
    whole = simulate(problem, {"x": SVAG}, 50, seeds=3)
    monkeypatch.setattr("svag.theory.dynamics._NOISE_BYTES", 8 * 3 * D * 7)
    pieces = simulate(problem, {"x": SVAG}, 50, seeds=3)
    assert pieces.suboptimality["x"] == pytest.approx(whole.suboptimality["x"], rel=1e-12)


def test_every_seed_may_start_elsewhere():
    problem = quadratic()
    theta_0 = np.random.default_rng(0).normal(size=(3, D))
    found = simulate(problem, {"x": SVAG}, 10, seeds=3, theta_0=theta_0)
    assert found.suboptimality["x"][:, 0] == pytest.approx(problem.suboptimality(theta_0))
    one = simulate(problem, {"x": SVAG}, 10, seeds=[2], theta_0=theta_0[2])
    assert one.suboptimality["x"][0] == pytest.approx(found.suboptimality["x"][2], rel=1e-12)


def test_only_the_way_to_the_minimum_matters():
    problem, shift = quadratic(), np.full(D, 3.0)
    moved = StochasticQuadratic(problem.Q, problem.x_star + shift, problem.noise)
    here = simulate(problem, contenders(), 30, seeds=2)
    there = simulate(moved, contenders(), 30, seeds=2, theta_0=shift)
    for name, values in here.suboptimality.items():
        assert there.suboptimality[name] == pytest.approx(values, rel=1e-9)


@pytest.mark.parametrize("name", ["sgd", "m-sgd", "m-svag", "idealised", "SGD*", "SSD*"])
def test_scaling_distance_and_noise_scales_the_suboptimality(name):
    problem = quadratic()
    scaled = StochasticQuadratic(problem.Q, 3 * problem.x_star, 3 * problem.noise)
    one = simulate(problem, {"x": contenders()[name]}, 40, seeds=2).suboptimality["x"]
    three = simulate(scaled, {"x": contenders()[name]}, 40, seeds=2).suboptimality["x"]
    assert three == pytest.approx(9 * one, rel=1e-9)


@pytest.mark.parametrize("rotated", [True, False])
def test_constant_step_sgd_has_its_closed_form(rotated):
    """E (theta - x*)_k^2 obeys m <- (1 - a lam_k)^2 m + (a lam_k nu)^2 in each eigendirection."""
    problem, lr, steps, seeds = quadratic(noise=2.0, rotated=rotated), 0.3, 60, 2_000
    lam, basis = np.linalg.eigh(problem.Q)
    m, exact = (basis.T @ problem.x_star) ** 2, []
    for _ in range(steps + 1):
        exact.append(lam @ m / 2)
        m = (1 - lr * lam) ** 2 * m + (lr * lam * problem.noise) ** 2
    found = simulate(problem, {"SGD": Contender(Anatomy(), lr)}, steps, seeds=seeds)
    off = np.abs(found.mean("SGD") - exact)[1:] / found.standard_error("SGD")[1:]
    assert_within("theory: SGD from its closed form, standard errors", float(off.max()), 4.0)


def test_without_noise_every_seed_is_gradient_descent():
    problem = quadratic(noise=0.0)
    theta, curve = np.zeros(D), []
    for _ in range(31):
        curve.append(problem.suboptimality(theta))
        theta = theta - 0.9 * problem.gradient(theta)
    found = simulate(problem, {"g": Contender(Anatomy(), 0.9), "s": Contender(SVAG.anatomy, 0.9,
                     idealised=True)}, 30, seeds=2)  # fmt: skip
    for values in found.suboptimality.values():
        assert values == pytest.approx(np.array([curve, curve]), rel=1e-9)


def test_suboptimality_sinks_below_the_round_off_of_theta():
    problem = quadratic(noise=0.0)
    found = simulate(problem, {"SGD": Contender.of("sgd", "optimal")}, 600, seeds=1)
    assert 0 < found.mean("SGD")[-1] < 1e-60 * problem.suboptimality(np.zeros(D))


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("d", [1, 2])
def test_at_the_minimum_and_in_one_dimension_all_is_finite(noise, d):
    problem = quadratic(noise=noise, d=d)
    found = simulate(problem, contenders(), 20, seeds=2, theta_0=problem.x_star)
    for name, values in found.suboptimality.items():
        assert np.isfinite(values).all(), name
        if noise == 0 or name in ("idealised", "SGD*", "SSD*"):
            assert not values.any(), name


def test_divergence_is_data():
    problem = quadratic()
    found = simulate(problem, {"x": Contender(Anatomy(), 1e3), "y": SVAG}, 200, seeds=2)
    assert np.isinf(found.mean("x")[-1])
    assert np.isfinite(found.mean("y")).all()
    assert not np.isnan(found.suboptimality["x"]).any()


def test_long_runs_record_on_a_log_scale():
    t = simulate(quadratic(d=2), {"x": SVAG}, 2_000, seeds=1).t
    assert np.array_equal(t, log_spaced(2_000))
    assert t[0] == 0
    assert t[-1] == 2_000
    assert len(t) < 140
    assert np.array_equal(log_spaced(0), [0])
    assert np.array_equal(log_spaced(1), [0, 1])


def test_recording_is_sorted_and_stops_where_it_ends():
    found = simulate(quadratic(), {"x": SVAG}, 50, seeds=1, record=[20, 5, 5])
    assert np.array_equal(found.t, [5, 20])
    assert found.suboptimality["x"].shape == (1, 2)


def test_no_steps():
    problem = quadratic()
    found = simulate(problem, {"x": SVAG}, 0, seeds=2)
    assert found.mean("x") == pytest.approx([problem.suboptimality(np.zeros(D))])


def test_means_and_standard_errors():
    values = np.array([[1.0, 4.0], [3.0, 8.0]])
    curves = Trajectories(np.arange(2), {"x": values, "one": values[:1]}, (0, 1))
    assert curves.mean("x") == pytest.approx([2.0, 6.0])
    assert curves.standard_error("x") == pytest.approx([1.0, 2.0])
    assert np.isnan(curves.standard_error("one")).all()


def test_methods_of_the_table_bring_their_decays():
    for key, row in METHODS.items():
        contender = Contender.of(key, 0.1)
        assert contender.anatomy == row.anatomy
        assert not row.betas or contender.betas == row.betas


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "positive and finite"),
        ({"step_size": -1.0}, "positive and finite"),
        ({"step_size": float("nan")}, "positive and finite"),
        ({"step_size": float("inf")}, "positive and finite"),
        ({"step_size": "best"}, "'optimal'"),
        ({"step_size": "optimal", "anatomy": Anatomy("momentum")}, "known for g and sign"),
        ({"step_size": "optimal", "anatomy": Anatomy(factor="svag")}, "known for g and sign"),
        ({"anatomy": Anatomy("momentum"), "betas": (1.5,)}, r"\[0, 1\)"),
    ],
)
def test_bad_contenders(options, message):
    with pytest.raises(InvalidOption, match=message):
        Contender(**{"anatomy": Anatomy(), "step_size": 0.1} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contenders": {}}, "at least one method"),
        ({"seeds": 0}, "one seed"),
        ({"seeds": []}, "one seed"),
        ({"steps": -1}, "negative number of steps"),
        ({"theta_0": np.zeros(D + 1)}, r"\(12,\)"),
        ({"theta_0": np.zeros((3, D))}, r"\(2, 12\)"),
        ({"theta_0": np.full(D, np.nan)}, "finite"),
        ({"record": [0, 11]}, "0 to 10"),
        ({"record": [-1]}, "0 to 10"),
        ({"record": []}, "whole numbers"),
        ({"record": [0.5]}, "whole numbers"),
    ],
)
def test_bad_runs(options, message):
    arguments = {"problem": quadratic(), "contenders": {"x": SVAG}, "steps": 10, "seeds": 2}
    with pytest.raises(InvalidOption, match=message):
        simulate(**arguments | options)
