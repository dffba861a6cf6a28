"""The problems from the theory: their gradients against its formulas, their runs against lemmas."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab.made import run_of

from svag import within_batch_variance
from svag.analysis.study import analyse
from svag.anatomy import PAPER_METHODS
from svag.errors import InvalidOption, ProblemError
from svag.lab.base_run import base_run
from svag.lab.evaluation import subset
from svag.lab.protocol import Outcome, plan
from svag.lab.records import find
from svag.lab.run import Run
from svag.lab.session import Session
from svag.lab.studies import Study, keep
from svag.lab.train import train
from svag.optim import MSVAG, SSD, Adam
from svag.problems.quadratic import BATCH, MAJORITY, quadratic, quadratic_problem, wilson
from svag.theory import (
    LeastSquares,
    StochasticQuadratic,
    proportionality_error,
    wilson_test_error,
)


def theory_of(problem, noise):
    """The same quadratic as the theory has it."""
    Q = problem.model().Q.double().numpy()  # noqa: N806
    x_star = problem.load(None).test.inputs[0].double().numpy()
    return StochasticQuadratic(Q, x_star, noise)


def model_at(problem, theta):
    model = problem.model().double()
    model.theta.data = torch.tensor(theta)
    return model


def gradients(problem, theta, count, noise_seed=0):
    """Gradients of ``count`` batches as a run draws them, in float64."""
    x_star = problem.load(None).test.inputs.double()
    generator = torch.Generator().manual_seed(noise_seed)
    model, found = model_at(problem, theta), []
    for _ in range(count):
        inputs = problem.augment(x_star.repeat(BATCH, 1), generator)
        model.zero_grad()
        problem.loss(model(inputs), torch.zeros(BATCH)).backward()
        found.append(model.theta.grad.clone())
    return torch.stack(found).numpy()


@pytest.mark.parametrize("spectrum", ["well-conditioned", "ill-conditioned"])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_gradient_of_a_batch_is_that_of_the_theory(spectrum, rotated):
    problem = quadratic_problem(spectrum, rotated=rotated, noise=4.0, dimension=20)
    known = theory_of(problem, 4.0)
    theta = np.random.default_rng(1).standard_normal(20)
    inputs = torch.tensor(np.random.default_rng(2).standard_normal((5, 20)))
    model = model_at(problem, theta)
    problem.loss(model(inputs), torch.zeros(5)).backward()
    expected = known.Q @ (theta - inputs.numpy().mean(0))
    np.testing.assert_allclose(model.theta.grad, expected, rtol=1e-12, atol=1e-12)


def test_the_noise_of_a_batch_is_that_of_the_theory():
    problem = quadratic_problem("ill-conditioned", rotated=True, noise=0.5, dimension=10)
    known = theory_of(problem, 0.5)
    theta, count = np.full(10, 2.0), 4000
    found = gradients(problem, theta, count)
    std = known.gradient_std()
    assert np.abs(found.mean(0) - known.gradient(theta)).max() < 5 * std.max() / math.sqrt(count)
    scale = np.outer(std, std)
    error = (np.cov(found.T) - known.gradient_covariance()) / scale
    assert np.abs(error).max() < 5 * math.sqrt(2 / count)


def test_the_examples_of_a_batch_tell_its_variance():
    problem = quadratic_problem("ill-conditioned", rotated=True, noise=0.5, dimension=10)
    known = theory_of(problem, 0.5)
    generator = torch.Generator().manual_seed(0)
    model, found = model_at(problem, np.zeros(10)), []
    for _ in range(400):
        inputs = problem.augment(torch.zeros(BATCH, 10, dtype=torch.float64), generator)
        model.zero_grad()
        with within_batch_variance(model):
            problem.loss(model(inputs), torch.zeros(BATCH)).backward()
        found.append(model.theta.grad_var.clone())
    ratio = torch.stack(found).mean(0).numpy() / known.gradient_std() ** 2
    assert np.abs(ratio - 1).max() < 5 * math.sqrt(2 / (400 * (BATCH - 1)))


def test_what_is_recorded_is_the_exact_suboptimality(tmp_path):
    problem = quadratic_problem("ill-conditioned", rotated=False, noise=4.0, dimension=30)
    problem, data = replace(problem, steps=40), problem.load(None)
    run = run_of(problem, data, lr=1e-3)
    session = Session(problem, data, run)
    for _ in session:
        pass
    theta = session.model.theta.detach().double().numpy()
    expected = theory_of(problem, 4.0).suboptimality(theta)
    train(problem, data, run, tmp_path)
    record = find(tmp_path, run)
    assert record.status == "done"
    for name in ("train_loss", "test_loss"):
        assert record.end[name] == pytest.approx(expected, rel=1e-5)
    assert record.run["metric"] == "loss"


@pytest.mark.parametrize(("method", "lr"), [("sgd", 0.01), ("ssd", 0.02)])
def test_without_noise_a_run_is_the_theorys_recursion(method, lr):
    problem = replace(
        quadratic_problem("ill-conditioned", rotated=True, noise=0.0, dimension=12), steps=60
    )
    data, known = problem.load(None), theory_of(problem, 0.0)
    session = Session(problem, data, run_of(problem, data, method=method, lr=lr))
    for _ in session:
        pass
    theta = np.zeros(12)
    for _ in range(60):
        gradient = known.gradient(theta)
        theta = theta - lr * (gradient if method == "sgd" else np.sign(gradient))
    np.testing.assert_allclose(session.model.theta.detach(), theta, rtol=1e-4, atol=1e-4)


def test_the_problem_of_that_name_is_a_panel_of_figure_2():
    problem = quadratic()
    known = theory_of(problem, 4.0)
    assert (problem.name, known.dimension) == ("quadratic", 100)
    assert np.array_equal(known.Q, np.diag(np.diagonal(known.Q)))
    assert sum(known.eigenvalues > 30) == 10
    assert sum(known.eigenvalues < 1) == 90
    assert np.abs(known.x_star).max() <= 10 < 2 * np.abs(known.x_star).max()
    data = problem.load(None)
    assert torch.equal(data.train.inputs, data.test.inputs.expand(len(data.train), -1))


def test_the_sign_helps_there_as_in_figure_2(tmp_path):
    problem = replace(quadratic(), steps=300)
    data = problem.load(None)
    lrs = {"m-sgd": (1e-3, 3e-3, 1e-2), "m-ssd": (0.03, 0.1)}
    best = {}
    for method, several in lrs.items():
        losses = []
        for lr in several:
            run = run_of(problem, data, method=method, lr=lr)
            train(problem, data, run, tmp_path)
            losses.append(find(tmp_path, run).end["test_loss"])
        best[method] = min(losses)
    assert 2 * best["m-ssd"] < best["m-sgd"]


def test_seeds_differ_and_a_repeated_run_does_not():
    problem = replace(quadratic(), steps=20)
    data = problem.load(None)

    def theta(seed):
        session = Session(problem, data, run_of(problem, data, seed=seed, lr=1e-3))
        list(session)
        return session.model.theta.detach()

    assert torch.equal(theta(1), theta(1))
    assert not torch.equal(theta(1), theta(2))


def test_every_setting_that_the_data_do_not_show_makes_another_version():
    usual = {"rotated": False, "noise": 4.0}
    problems = [
        quadratic(),
        quadratic_problem("well-conditioned", **usual),
        quadratic_problem("ill-conditioned", rotated=True, noise=4.0),
        quadratic_problem("ill-conditioned", rotated=False, noise=0.1),
        quadratic_problem("ill-conditioned", **usual, seed=1),
    ]
    assert len({problem.version for problem in problems}) == len(problems)
    assert quadratic_problem("ill-conditioned", **usual).version == quadratic().version


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spectrum": "flat"}, "spectrum='flat': choose one of well-conditioned"),
        ({"noise": -1.0}, "noise=-1"),
        ({"noise": math.nan}, "noise=nan"),
        ({"noise": math.inf}, "noise=inf"),
        ({"noise": "4"}, "noise='4': give a number"),
        ({"noise": True}, "noise=True: give a number"),
        ({"dimension": 0}, "dimension=0"),
        ({"dimension": 2.5}, "dimension=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": None}, "seed=None"),
    ],
)
def test_unusable_settings_are_refused(changes, says):
    settings = {"spectrum": "ill-conditioned", "rotated": False, "noise": 4.0, **changes}
    with pytest.raises(InvalidOption, match=says):
        quadratic_problem(**settings)


def test_without_scipy_one_sentence_says_so(monkeypatch):
    for name in ("svag.theory.quadratic", "svag.theory.wilson"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delattr(sys.modules["svag.theory"], name.rpartition(".")[2], raising=False)
    with pytest.raises(ProblemError, match=r"pip install 'svag\[theory\]'"):
        quadratic()
    with pytest.raises(ProblemError, match=r"pip install 'svag\[theory\]'"):
        wilson().load(None)


@pytest.fixture(scope="module")
def data():
    return wilson().load(None)


@pytest.fixture(scope="module")
def known(data):
    return LeastSquares(data.train.inputs.double().numpy(), data.train.targets.double().numpy())


def test_the_training_data_meet_the_premise_of_the_lemmas(data, known):
    assert known.X.shape == (100, 503)
    assert known.lemma2_constant() == 4.0
    fresh, labels = data.test.inputs, data.test.targets
    assert torch.equal(fresh[:, 0], labels)
    assert (fresh[:, 1:3] == 1).all()
    assert not fresh[:, 3:].any()
    positive = (labels > 0).double().mean()
    assert abs(positive - MAJORITY) < 4 * math.sqrt(MAJORITY * (1 - MAJORITY) / len(labels))


def test_the_gradient_is_that_of_the_risk(data, known):
    problem = wilson()
    model = problem.model().double()
    theta = np.random.default_rng(0).standard_normal(503)
    model.weight.data = torch.tensor(theta)[None]
    loss = problem.loss(model(data.train.inputs.double()), data.train.targets.double())
    loss.backward()
    assert loss.item() == pytest.approx(known.risk(theta), rel=1e-12)
    np.testing.assert_allclose(model.weight.grad[0], known.gradient(theta), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "on_the_line"),
    [
        (lambda params: SSD(params, lr=1e-3), True),
        (lambda params: Adam(params, lr=1e-3, eps=1e-30), True),
        (lambda params: MSVAG(params, lr=0.05), False),
    ],
)
def test_sign_descent_and_adam_keep_to_the_line_of_the_lemmas(data, known, make, on_the_line):
    problem = wilson()
    model = problem.model().double()
    optimizer = make(model.parameters())
    inputs, targets = data.train.inputs.double(), data.train.targets.double()
    farthest = 0.0
    for _ in range(100):
        optimizer.zero_grad()
        problem.loss(model(inputs), targets).backward()
        optimizer.step()
        theta = model.weight.detach()[0].numpy()
        farthest = max(farthest, proportionality_error(theta, known.sign_direction()))
    assert farthest < 1e-8 if on_the_line else farthest > 0.1


@pytest.mark.parametrize(
    ("method", "lr", "fails"),
    [
        ("ssd", 1e-3, True),
        ("m-ssd", 1e-3, True),
        ("adam", 3e-3, True),
        ("adam", 3e-2, True),
        ("m-ssd", 3e-2, True),
        ("sgd", 0.1, False),
        ("m-sgd", 0.1, False),
        ("m-svag", 0.1, False),
        ("m-svag", 1.0, False),
    ],
)
def test_who_takes_the_sign_calls_everything_by_the_majority(tmp_path, data, method, lr, fails):
    problem = replace(wilson(), steps=300)
    run = run_of(problem, data, method=method, lr=lr)
    session = Session(problem, data, run)
    for _ in session:
        pass
    figures = session.evaluate(full=True)
    assert figures["train_accuracy"] == 1.0
    majority = (data.test.targets > 0).double().mean().item()
    assert figures["test_accuracy"] == (majority if fails else 1.0)
    theta = session.model.weight.detach()[0].double().numpy()
    assert wilson_test_error(theta, MAJORITY).expected == pytest.approx(0.3 if fails else 0.0)


def test_a_score_of_nothing_is_wrong(data):
    problem = wilson()
    few = subset(data.test, 10)
    assert problem.metric.function(problem.model()(few.inputs), few.targets) == 0


def test_a_comparison_says_that_the_sign_decides(tmp_path, data):
    problem = wilson()
    lrs = {"m-sgd": 0.1, "m-svag": 0.1, "m-ssd": 1e-3, "adam": 3e-3}
    made = Study(base=base_run(problem, data, steps=150), methods=PAPER_METHODS, seeds=2, lrs=lrs)
    keep(tmp_path, made)
    for key in PAPER_METHODS:
        for run in next(plan(made, key, Outcome(key))).needed:
            assert isinstance(run, Run)
            train(problem, data, run, tmp_path)
    analysis = analyse(tmp_path)
    assert analysis.claims.finding == "sign decides"
    assert analysis.claims.effects["sign"].estimate == pytest.approx(-0.297)
    assert analysis.claims.effects["adaptation"].estimate == 0
    assert (analysis.quantity.name, analysis.quantity.unit) == ("accuracy", "%")
