"""The monitor's figures, against the reference and against the truth."""

import json
import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from optim.cases import Case, by_name, named
from torch import nn

import svag
from svag import Monitor
from svag.diagnosis.monitoring.noise_figures import RunningNoiseScale

from .watching import Make, drawn, watched

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)


# ----------------------------------------------------------------- figures are what they say


def expected_figures(case: Case, step: Any, t: int, beta: float, var: Any) -> dict[str, float]:
    """From the reference's averages, sorted and summed by hand."""
    share = reference.rho(beta, t)
    m, s = step.m, (step.v - step.m**2) / (1 - share)
    if case.within_batch:
        of_mean = reference.within_batch_variance(case.anatomy, list(var[: t + 1]), beta)
        m, share = (step.m, share) if case.anatomy.direction == "momentum" else (step.gradient, 1.0)
        s = of_mean / share
    there = (m != 0) | (s != 0)
    eta_sq = np.sort(np.maximum(s[there], 0) / m[there] ** 2)
    at = [math.ceil(level * len(eta_sq)) - 1 for level in LEVELS]
    gamma = step.gamma[there]
    return {
        "entries": len(m),
        "sampled": len(m),
        "non_finite": 0.0,
        "at_rest": (np.count_nonzero(~there) + np.count_nonzero(gamma < 0.01)) / len(m),
        "gamma_mean": gamma.mean(),
        "variance": s.sum(),
        "grad_sq": (m**2 - share * s).sum(),
        **{f"eta_sq_p{round(100 * q):02d}": eta_sq[i] for q, i in zip(LEVELS, at, strict=True)},
    }


@by_name(
    named("m-svag", "svag", "adam", "adam-star", "m-ssd-erf", "raw-sgd-svag")
    + named("m-svag/batch", "svag/batch")
)
def test_figures_are_those_of_the_reference(case: Case) -> None:
    mean = np.concatenate([np.zeros(40), np.linspace(-2, 2, 160)])
    std = np.concatenate([np.zeros(20), np.ones(80), np.full(100, 0.1)])
    gradients = drawn(mean, std, 12)
    variances = gradients**2 * 0.3 if case.within_batch else None
    records = watched(lambda p: case.build(p, lr=0.0), gradients, variances, batch_size=8)
    decay = case.decay(0.9)
    steps = case.reference(gradients, np.zeros(200), lr=0.0, variances=variances, **decay)
    for t in (1, 2, 11):
        record = dict(records[t])
        assert (record.pop("kind"), record.pop("layer")) == ("monitor", "all")
        assert record.pop("step") == t + 1
        record.pop("overhead")
        record.pop("noise_scale")
        expected = expected_figures(case, steps[t], t, 0.9, variances)
        assert record == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_torchs_own_adam_is_read_as_ours(kind: Make, amsgrad: bool) -> None:
    gradients = drawn(np.linspace(-1, 1, 50), 1.0, 6)
    theirs = watched(lambda p: kind(p, lr=0.0, amsgrad=amsgrad), gradients)
    ours = watched(lambda p: svag.Adam(p, lr=0.0, amsgrad=amsgrad), gradients)
    for one, other in zip(theirs, ours, strict=True):
        del one["overhead"], other["overhead"]
        assert one == pytest.approx(other)


def test_the_largest_square_of_amsgrad_is_in_the_factor_alone() -> None:
    gradients = drawn(0.1, np.geomspace(1, 0.1, 40), 30) * np.geomspace(10, 1, 30)[:, None]
    plain, largest = (
        watched(lambda p, a=a: svag.Adam(p, betas=(0.5, 0.6), amsgrad=a), gradients)[-1]
        for a in (False, True)
    )
    assert largest["gamma_mean"] < 0.5 * plain["gamma_mean"]
    for name in ("variance", "grad_sq", "eta_sq_p50"):
        assert largest[name] == plain[name]


def test_one_gradient_shows_no_variance() -> None:
    for beta, steps in ((0.9, 1), (0.0, 3)):
        record = watched(
            lambda p, beta=beta: svag.MSVAG(p, beta=beta), drawn(np.ones(5), 1.0, steps)
        )[-1]
        assert record["gamma_mean"] == 1.0
        assert record["variance"] is record["grad_sq"] is record["eta_sq_p50"] is None


def test_averages_that_are_not_finite_are_left_out_and_counted() -> None:
    gradients = drawn(np.ones(8), 0.5, 4)
    full = watched(svag.MSVAG, gradients[:, 2:])[-1]
    gradients[2, 0], gradients[2, 1] = np.nan, np.inf
    record = watched(svag.MSVAG, gradients)[-1]
    assert record["non_finite"] == 0.25
    assert record["variance"] == pytest.approx(full["variance"])
    assert record["eta_sq_p75"] == pytest.approx(full["eta_sq_p75"])
    nothing = watched(svag.MSVAG, np.full((2, 3), np.nan), batch_size=4)[-1]
    assert nothing["non_finite"] == 1.0
    assert nothing["gamma_mean"] is nothing["variance"] is nothing["noise_scale"] is None
    json.dumps(nothing, allow_nan=False)


def test_complex_entries_count_as_two_and_half_precision_is_widened() -> None:
    whole = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    half = nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
    empty = nn.Parameter(torch.zeros(0))
    optimizer = svag.MSVAG([whole, half, empty])
    with Monitor(optimizer, 2, None) as monitor:
        for n in (1, 2):
            for param in (whole, half, empty):
                param.grad = torch.full_like(param, n)
            optimizer.step()
    assert [(r["layer"], r["entries"]) for r in monitor.last] == [
        ("all", 11),
        ("param0", 6),
        ("param1", 5),
    ]
    assert monitor.last[1]["at_rest"] == 0.5  # the imaginary parts


# --------------------------------------------------------------- against the truth, simulated


def standard_errors(eta_sq: float, beta: float, *, two_betas: bool) -> tuple[float, float]:
    """Of s and of the noise scale of one reading, relative, times sqrt(d); delta method.

    m is Gaussian and, with one beta, independent of s, whose variance is that of a weighted sample
    variance. With a longer memory of squares, the error 2 mu (m - mu) of m^2 is left in s.
    """
    c2, c3 = (1 - beta) ** 2 / (1 - beta**2), (1 - beta) ** 3 / (1 - beta**3)
    of_s = 2 * (c2 - 2 * c3 + c2**2) / (1 - c2) ** 2
    if two_betas:
        of_s = (4 * c2 / eta_sq + 2 * c2**2) / (1 - c2) ** 2 + of_s
    of_mean = 4 * c2 * eta_sq + (2 + of_s) * (c2 * eta_sq) ** 2
    return math.sqrt(of_s), math.sqrt(of_mean + of_s)


D, B = 3000, 32
FROZEN = {
    "M-SVAG": lambda p: svag.MSVAG(p, lr=0.0),
    "SVAG": lambda p: svag.SVAG(p, lr=0.0),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.0),
    "Adam 0.99": lambda p: torch.optim.Adam(p, lr=0.0, betas=(0.9, 0.99)),
}


@pytest.mark.parametrize("eta_sq", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("name", FROZEN)
def test_the_noise_scale_is_the_true_one_at_frozen_parameters(name: str, eta_sq: float) -> None:
    gradients = drawn(np.ones(D), math.sqrt(eta_sq), 150)
    record = watched(FROZEN[name], gradients, batch_size=B, every=150)[-1]
    of_s, of_scale = standard_errors(eta_sq, 0.9, two_betas="Adam" in name)
    assert of_scale / math.sqrt(D) < 0.2
    assert record["variance"] == pytest.approx(D * eta_sq, rel=4 * of_s / math.sqrt(D))
    assert record["noise_scale"] == pytest.approx(B * eta_sq, rel=4 * of_scale / math.sqrt(D))


def test_averaged_readings_of_the_noise_scale_are_closer() -> None:
    eta_sq, readings = 100.0, 12
    gradients = drawn(np.ones(300), math.sqrt(eta_sq), 40 * readings)
    records = watched(lambda p: svag.MSVAG(p, lr=0.0), gradients, batch_size=B, every=40)
    single = [B * r["variance"] / r["grad_sq"] for r in records]
    truth = B * eta_sq
    assert abs(records[-1]["noise_scale"] / truth - 1) < 0.5 * np.std(single) / truth
    weights = 0.9 ** np.arange(readings)[::-1]
    ratio = (weights @ [r["variance"] for r in records]) / (
        weights @ [r["grad_sq"] for r in records]
    )
    assert records[-1]["noise_scale"] == pytest.approx(B * ratio)


def test_readings_that_are_not_finite_do_not_count_in_the_noise_scale() -> None:
    scale = RunningNoiseScale(8)
    assert math.isnan(scale.add({"grad_sq": math.nan, "variance": 1.0}))
    assert scale.add({"grad_sq": 2.0, "variance": 1.0}) == pytest.approx(4)
    assert scale.add({"grad_sq": math.inf, "variance": 1.0}) == pytest.approx(4)
    assert scale.add({"grad_sq": -5.0, "variance": 1.0}) == math.inf
    assert math.isnan(RunningNoiseScale(8).add({"grad_sq": 1.0, "variance": -1.0}))


@pytest.mark.parametrize("eta_sq", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(("beta", "bound"), [(0.9, 0.1), (0.99, 0.04)])
def test_the_median_relative_variance_is_the_true_one(
    eta_sq: float, beta: float, bound: float
) -> None:
    gradients = drawn(np.ones(D), math.sqrt(eta_sq), round(30 / (1 - beta)))
    record = watched(lambda p: svag.MSVAG(p, lr=0.0, beta=beta), gradients, every=len(gradients))[
        -1
    ]
    assert record["eta_sq_p50"] == pytest.approx(eta_sq, rel=bound)


@pytest.mark.parametrize("eta_sq", [0.1, 1.0, 10.0])
def test_adams_median_is_the_true_one_too(eta_sq: float) -> None:
    gradients = drawn(np.ones(D), math.sqrt(eta_sq), 300)
    record = watched(lambda p: torch.optim.AdamW(p, lr=0.0), gradients, every=300)[-1]
    assert record["eta_sq_p50"] == pytest.approx(eta_sq, rel=0.1)


def test_the_median_levels_off_where_the_sign_of_m_is_chance() -> None:
    """At 1/(0.455 rho), 42 at beta = 0.9: 0.455 is the median of chi^2 with one degree."""
    gradients = drawn(np.zeros(D), 1.0, 150)
    record = watched(lambda p: svag.MSVAG(p, lr=0.0), gradients, every=150)[-1]
    assert record["eta_sq_p50"] == pytest.approx(42, rel=0.15)


def test_quantiles_of_many_scales_are_the_true_ones() -> None:
    eta_sq = 10 ** np.linspace(-3, 1, D)
    gradients = drawn(np.ones(D), np.sqrt(eta_sq), 150)
    record = watched(lambda p: svag.MSVAG(p, lr=0.0), gradients, every=150)[-1]
    for level in (0.1, 0.25, 0.5, 0.75):
        found = record[f"eta_sq_p{round(100 * level):02d}"]
        assert found == pytest.approx(np.quantile(eta_sq, level), rel=0.2)


def test_a_mean_that_swings_counts_as_noise() -> None:
    """As documented: the estimate of |grad L|^2 is negative then, and there is no noise scale."""
    swinging = 0.1 + np.where(np.arange(150) % 2, 1.0, -1.0)[:, None] * np.ones(5)
    record = watched(lambda p: svag.MSVAG(p, lr=0.0), swinging, batch_size=B)[-1]
    assert record["grad_sq"] < 0
    assert record["noise_scale"] is None
    assert record["eta_sq_p50"] == pytest.approx(1 / 0.1**2, rel=0.8)


def test_a_sample_of_the_coordinates_stands_for_all_of_them() -> None:
    gradients = drawn(np.linspace(-1, 1, 2000), np.linspace(0, 2, 2000), 20)
    sums = []
    for seed in range(60):
        records = watched(svag.MSVAG, gradients[-3:], coordinates=100, seed=seed, every=3)
        sums.append(records[-1]["variance"])
    whole = watched(svag.MSVAG, gradients[-3:], every=3)[-1]
    assert (records[-1]["entries"], records[-1]["sampled"]) == (2000, 100)
    assert abs(np.mean(sums) - whole["variance"]) < 4 * np.std(sums) / math.sqrt(len(sums))


def test_the_same_coordinates_are_read_each_time_and_layers_weigh_by_their_size() -> None:
    big, small = nn.Parameter(torch.zeros(30, 30)), nn.Parameter(torch.zeros(10))
    optimizer = svag.MSVAG([big, small], lr=0.0)
    monitor = Monitor(optimizer, hook=False, coordinates=90)
    for _ in range(3):
        big.grad, small.grad = torch.arange(900.0).view(30, 30), torch.full((10,), -1.0)
        optimizer.step()
    first = monitor.read()
    assert first == monitor.read()
    assert first != Monitor(optimizer, hook=False, coordinates=90, seed=1).read()
    overall, of_big, of_small = first
    assert [r["sampled"] for r in first] == [100, 90, 10]
    assert overall["grad_sq"] == pytest.approx(of_big["grad_sq"] + of_small["grad_sq"])
    assert of_big["grad_sq"] == pytest.approx((np.arange(900.0) ** 2).sum(), rel=0.4)
    big.data = big.data.to(memory_format=torch.contiguous_format)
    state = optimizer.state[big]
    state["exp_avg"] = state["exp_avg"].t().contiguous().t()  # other strides, the same entries
    assert monitor.read() == first


def test_of_a_distributed_tensor_this_processs_part_is_read() -> None:
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        part = torch.arange(12.0).view(3, 4)
        read = []
        for place in (lambda t: t, lambda t: DTensor.from_local(t, mesh, [Shard(0)])):
            param = nn.Parameter(place(torch.zeros(3, 4)))
            optimizer = svag.MSVAG([param], foreach=False)
            for n in range(3):
                param.grad = place(part + n)
                optimizer.step()
            read.append(Monitor(optimizer, hook=False).read())
        assert read[0] == read[1]
        assert read[0][0]["entries"] == 12
    finally:
        dist.destroy_process_group()
