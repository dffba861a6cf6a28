"""Mixed precision: gradients of a scaled loss, steps that a scaler skips, and autocast."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svag

from .cases import METHODS, by_name, named
from .stepping import (
    FreshLoop,
    assert_all_close,
    assert_all_equal,
    assert_same_state,
    copies,
    drawn,
    held,
    parameter,
    parameters,
)

# A scaler sees gradients and found_inf, whatever the row: averages of each kind, and none.
SCALED = named("ssd", "m-svag", "adam", "m-svag/batch", "ssd-erf/batch")


class Line(nn.Module):
    """A loss that is linear in its parameters: the gradient is whatever it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = parameter(4, 5), parameter(5, seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x[:4]).sum() + (self.bias * x[4]).sum()


def inputs(n: int, worst: float | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(2, 5, 5, generator=generator)
    if worst is not None:
        x[:, 0, 0] = worst
    return x


def backward(model: Line, x: Tensor, scaler: Any = None) -> None:
    """Of two micro-batches, which make a variance for the rows that need one."""
    with svag.micro_batch_variance(list(model.parameters())) as batches:
        for part in x:
            loss = model(part) / 2
            (loss if scaler is None else scaler.scale(loss)).backward()
            batches.micro_step()


def steps_in(states: Any) -> set[float]:
    return {float(state["step"]) for state in states.values() if "step" in state}


RECIPES = ("scaler.step alone", "svag.unscale_", "scaler.unscale_")


@pytest.mark.parametrize("worst", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("recipe", RECIPES)
@by_name(SCALED)
def test_a_scaler_skips_steps_with_infinite_gradients_and_nothing_else(case, engine, recipe, worst):
    model, reference = Line(), Line()
    optimizer, unscaled = (
        case.build(m.parameters(), weight_decay=0.1, **engine) for m in (model, reference)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for n, bad in enumerate((True, False, False, True, True, False, False)):
        before, state = copies(held(optimizer)), copy.deepcopy(optimizer.state_dict())
        optimizer.zero_grad()
        backward(model, inputs(n, worst if bad else None), scaler)
        if recipe == "svag.unscale_":
            svag.unscale_(scaler, optimizer)
        elif recipe == "scaler.unscale_":
            scaler.unscale_(optimizer)
        if recipe != "scaler.step alone":  # what is clipped has to be unscaled before
            svag.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf")
        if bad:
            assert_all_equal(held(optimizer), before)
            assert steps_in(optimizer.state) <= steps_in(state["state"]) | {0.0}
            continue
        unscaled.zero_grad()
        backward(reference, inputs(n))
        if recipe != "scaler.step alone":
            svag.clip_grad_norm_(reference.parameters(), 0.5)
        unscaled.step()
        assert_all_equal(held(optimizer), held(unscaled))
        assert_same_state(optimizer, unscaled)
    assert scaler.get_scale() == 2.0**12 / 2**3 * 2**2


@by_name(named("m-svag", "m-svag/batch"))
def test_a_scaler_that_is_off_is_no_scaler(case, engine):
    models = Line(), Line()
    one, other = (case.build(m.parameters(), **engine) for m in models)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for n in range(2):
        backward(models[0], inputs(n), scaler)
        backward(models[1], inputs(n))
        svag.unscale_(scaler, one)
        scaler.step(one)
        scaler.update()
        other.step()
        for optimizer in (one, other):
            optimizer.zero_grad()
    assert_all_equal(held(one), held(other))


def test_only_a_fused_optimizer_says_that_it_scales_by_itself(engine):
    optimizer = svag.MSVAG([parameter(3)], **engine)
    scales = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
    assert scales == ("fused" in engine)


@by_name(METHODS)
def test_a_scale_set_by_hand_is_divided_by_and_found_inf_skips(case, engine):
    """By the attributes that GradScaler sets for a fused step; in the kernel or before it.

    Unlike torch's, it leaves the scaled gradient as it is: see docs/recipes.md.
    """
    optimizer, reference = case.build(parameters(), **engine), FreshLoop(case, parameters())
    for n, skipped in enumerate((True, False, True, False)):
        gradients = drawn(held(optimizer), n)
        for p, gradient in zip(held(optimizer), gradients, strict=True):
            p.grad = gradient * 8
            if skipped and p.numel():
                p.grad.view(-1)[0] = math.inf
        given = [(p.grad.clone(), p.grad._version) for p in held(optimizer)]
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(float(skipped))
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
        for p, (gradient, version) in zip(held(optimizer), given, strict=True):
            assert torch.equal(p.grad, gradient)
            assert p.grad._version == version
        if not skipped:
            reference.step(gradients)
        assert_all_close(held(optimizer), reference.params)
    assert steps_in(optimizer.state) <= {2.0}


def test_torchs_fused_step_leaves_the_unscaled_gradient():
    """Else the sentence above, and that of the docs, would be out of date."""
    param = nn.Parameter(torch.zeros(2))
    optimizer: Any = torch.optim.Adam([param], fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    param.grad = torch.tensor([8.0, -16.0])
    optimizer.step()
    assert param.grad.tolist() == [1.0, -2.0]


@by_name(named("ssd", "m-svag", "adam"))
def test_a_parameter_without_gradient_stays_out_of_a_scaled_step(case, engine):
    model = Line()
    optimizer = case.build(model.parameters(), **engine)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((model.weight * inputs(0)[0, :4]).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(model.bias, Line().bias)
    assert not torch.equal(model.weight, Line().weight)
    assert not optimizer.state[model.bias]


@by_name(named("m-ssd", "m-svag", "adam", "m-ssd-erf"))
def test_the_step_may_stand_under_autocast_like_the_loss(case, engine):
    models = []
    for inside in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
        start = copies(model.parameters())
        optimizer = case.build(model.parameters(), lr=1e-2, **engine)
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                model(torch.randn(8, 6)).square().mean().backward()
                if inside:
                    optimizer.step()
            if not inside:
                optimizer.step()
        models.append(list(model.parameters()))
        assert {p.dtype for p in models[-1]} == {torch.float32}
        assert not any(map(torch.equal, start, models[-1]))
    assert_all_equal(*models)
