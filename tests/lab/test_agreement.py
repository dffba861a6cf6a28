"""Methods that take their variance from the mini-batch in the lab, and what is noted of them."""

import numpy as np
import pytest
import torch
from reference import averaging_weights, debiasing, moving_average, rho
from torch import nn

import svag
from lab.made import classification, points, run_of
from svag.entrants import entrant
from svag.lab.agreement import Agreement
from svag.lab.records import find
from svag.lab.train import train

BETA, STEPS = 0.9, 12


def test_correlations_are_those_of_the_two_factors() -> None:
    """Against float64 NumPy: r_t as the sum of c_s^2 s_s, v by its recurrence."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(0.3, 1.0, (STEPS, 50))
    variances = rng.uniform(0.1, 2.0, (STEPS, 50))
    model = nn.Linear(50, 1, bias=False, dtype=torch.float64)
    optimizer = svag.MSVAG(model.parameters(), beta=BETA, variance="within-batch")
    agreement = Agreement(model, optimizer)
    m, v = np.zeros(50), np.zeros(50)
    for gradient, variance in zip(gradients, variances, strict=True):
        model.weight.grad = torch.from_numpy(gradient[None])
        svag.variance.grad_var.attach(model.weight, torch.from_numpy(variance[None]))
        optimizer.step()
        agreement.observe()
        m, v = moving_average(m, gradient, BETA), moving_average(v, gradient**2, BETA)
    t = STEPS - 1
    m, v, share = m / debiasing(BETA, t), v / debiasing(BETA, t), rho(BETA, t)
    sampled = averaging_weights(BETA, t) ** 2 @ variances
    averaged = share * np.maximum(v - m**2, 0) / (1 - share)
    factors = [m**2 / (m**2 + variance) for variance in (averaged, sampled)]
    expected = np.corrcoef(*factors)[0, 1]
    assert agreement.correlations() == {"weight": pytest.approx(expected, abs=1e-12)}


def test_there_is_no_agreement_at_the_first_step() -> None:
    model = nn.Linear(3, 1)
    optimizer = svag.MSVAG(model.parameters(), variance="within-batch")
    agreement = Agreement(model, optimizer)
    assert agreement.correlations() == {}
    with svag.within_batch_variance(model):
        model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    agreement.observe()
    assert agreement.correlations() == {}


@pytest.mark.parametrize("key", ["m-svag", "adam-star", "svag"])
def test_the_lab_trains_a_variant_and_notes_the_agreement(tmp_path, key: str) -> None:
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    variant = f"{key}@within-batch"
    run = run_of(problem, data, method=variant, lr=entrant(key).lr, steps=20, eval_every=5)
    train(problem, data, run, tmp_path)
    record = find(tmp_path, run)
    assert record is not None
    assert record.status == "done", record.end
    noted = {(line["step"], line["parameter"]) for line in record.agreements}
    names = [name for name, _ in problem.model().named_parameters()]
    averages = entrant(variant).anatomy.buffers
    assert noted == {(s, n) for s in (5, 10, 15, 20) for n in names if averages}
