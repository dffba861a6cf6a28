"""States and gradients that users, wrappers and torch's own tools set, read and replace."""

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp_state

import svag
from svag.errors import MissingVariance
from svag.variance.grad_var import attach

from .cases import METHODS, ROWS, by_name, named
from .stepping import assert_all_close, assert_all_equal, copies, step


def stepped(optimizer: torch.optim.Optimizer, param: nn.Parameter, times: int = 1) -> None:
    for _ in range(times):
        step(optimizer, torch.linspace(-1.0, 2.0, param.numel()))


# ---------------------------------------------------------------------- an empty state, and steps


@by_name([case for case in METHODS if not case.averages])
def test_a_users_own_note_in_a_state_that_is_not_needed_stays(case):
    param = nn.Parameter(torch.zeros(4))
    optimizer = case.build([param])
    stepped(optimizer, param)
    optimizer.state[param]["slow"] = param.detach().clone()
    stepped(optimizer, param)
    assert list(optimizer.state[param]) == ["slow"]


@pytest.mark.parametrize("number", [0, 3, 7.0, np.float32(2)], ids=str)
def test_a_step_that_is_set_by_hand_counts(number, engine):
    """A number becomes a tensor; from there on the averages are debiased as after so many."""
    set_, filled = params = [nn.Parameter(torch.zeros(5)) for _ in range(2)]
    optimizer = svag.MSVAG(params, **engine)
    for n in range(3):
        if n == 2:
            optimizer.state[set_]["step"] = number
            optimizer.state[filled]["step"].fill_(float(number))
        step(optimizer, torch.linspace(-1.0, 2.0, 5))
    assert isinstance(optimizer.state[set_]["step"], Tensor)
    assert float(optimizer.state[set_]["step"]) == float(number) + 1
    assert torch.equal(*params)


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf"), "3", None, True, [1]], ids=str)
def test_a_step_that_is_no_number_is_refused(number, engine):
    param = nn.Parameter(torch.zeros(5))
    optimizer = svag.MSVAG([param], **engine)
    stepped(optimizer, param)
    optimizer.state[param]["step"] = number
    before = param.detach().clone()
    with pytest.raises(ValueError, match=r"state\['step'\]=.*a number >= 0"):
        stepped(optimizer, param)
    assert torch.equal(param, before)


def test_averages_without_a_step_are_refused_and_notes_are_not_averages(engine):
    param = nn.Parameter(torch.zeros(5))
    optimizer = svag.MSVAG([param], **engine)
    optimizer.state[param]["note"] = "first"
    stepped(optimizer, param)
    assert float(optimizer.state[param]["step"]) == 1
    del optimizer.state[param]["step"]
    with pytest.raises(ValueError, match="exp_avg and exp_avg_sq and no 'step'"):
        stepped(optimizer, param)


# ------------------------------------------------------------------ gradients that are parameters


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("size", [5, 70_000])
@by_name(named("sgd", "m-svag", "adam"))
def test_a_gradient_that_is_the_parameter_is_what_it_was_before_the_step(
    case, size, decoupled, decay, engine
):
    """As of |p|^2/2: every engine steps along the value that the step began with."""
    values = torch.linspace(-1.0, 2.0, size)
    own, apart = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    options = {"weight_decay": decay, "decoupled_weight_decay": decoupled, **engine}
    one, other = case.build([own], **options), case.build([apart], **options)
    for _ in range(3):
        own.grad = own.detach()
        apart.grad = apart.detach().clone()
        one.step()
        other.step()
    assert torch.equal(own, apart)
    assert not torch.equal(own.detach(), values)


@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}], ids=str)
def test_a_gradient_that_overlaps_its_parameter_is_read_before_the_step(flags):
    memory = torch.linspace(-1.0, 2.0, 6)
    kept = memory.clone()
    own, apart = nn.Parameter(memory[:5]), nn.Parameter(kept[:5].clone())
    own.grad, apart.grad = memory[1:], kept[1:].clone()
    for param in (own, apart):
        svag.MSVAG([param], lr=0.5, **flags).step()
    assert torch.equal(own, apart)


# ---------------------------------------------------------------- what torch's own tools do to it


def regression() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 3)


@by_name(ROWS)
def test_a_state_dict_of_a_fresh_optimizer_can_be_asked_for_and_set(case):
    """torch.distributed.checkpoint primes it by a step with gradients of zero and lr = 0."""
    model, _ = regression()
    optimizer = case.build(model.parameters(), lr=0.25)
    before = copies(model.parameters())
    saved = dcp_state.get_optimizer_state_dict(model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert all(param.grad is None for param in model.parameters())
    assert not any(hasattr(param, "grad_var") for param in model.parameters())
    assert_all_equal(model.parameters(), before)
    step(optimizer, 1.0, variance=1.0)
    trained = dcp_state.get_optimizer_state_dict(model, optimizer)
    fresh_model, _ = regression()
    fresh = case.build(fresh_model.parameters(), lr=0.5)
    dcp_state.set_optimizer_state_dict(fresh_model, fresh, copy.deepcopy(trained))
    assert fresh.param_groups[0]["lr"] == 0.25
    names = {name for name, _ in model.named_parameters()}
    assert set(saved["state"]) <= names
    ours, theirs = (list(o.state_dict()["state"].values()) for o in (fresh, optimizer))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_only_gradients_of_zero_pass_without_a_variance(engine):
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = svag.MSVAG(params, variance="within-batch", **engine)
    params[0].grad, params[1].grad = torch.zeros(3), torch.tensor([0.0, 1e-30, 0.0])
    with pytest.raises(MissingVariance, match=r"svag\.within_batch_variance"):
        optimizer.step()
    step(optimizer, 0.0)
    assert all(torch.equal(param.detach(), torch.ones(3)) for param in params)
    attach(params[0], torch.ones(3))
    params[1].grad = torch.zeros(3)
    with pytest.raises(MissingVariance):  # one has a variance, so the other's is missing
        optimizer.step()


Optimizers = dict[nn.Parameter, torch.optim.Optimizer]


def in_backward(optimizers: Optimizers) -> list[Any]:
    """The recipe: one optimizer a parameter, which steps as soon as its gradient is there."""

    def step(param: Any) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    return [param.register_post_accumulate_grad_hook(step) for param in optimizers]


def test_an_optimizer_in_backward_says_why_there_is_no_variance_yet():
    model, inputs = regression()
    in_backward({p: svag.MSVAG([p], variance="within-batch") for p in model.parameters()})
    with (
        pytest.raises(MissingVariance, match=r"backward pass is running.*after it was opened"),
        svag.within_batch_variance(model),
    ):
        model(inputs).square().mean().backward()


@pytest.mark.parametrize("check", [None, False])
@by_name(named("m-ssd", "m-svag", "m-svag/batch"))
def test_an_optimizer_in_backward_trains_as_one_that_steps_behind_it(case, check, engine):
    """In every pass: only the first is verified, and none with check=False."""
    (inside, _), (behind, inputs) = regression(), regression()
    optimizers = {p: case.build([p], **engine) for p in inside.parameters()}
    optimizer = case.build(behind.parameters(), **engine)
    for n in range(3):
        for model in (inside, behind):
            wanted = case.within_batch
            context = svag.within_batch_variance(model, check=check) if wanted else nullcontext()
            with context:
                hooks = in_backward(optimizers) if model is inside else []
                (model(inputs) - n).square().mean().backward()
            for hook in hooks:
                hook.remove()
        assert all(p.grad is None for p in inside.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert_all_close(inside.parameters(), behind.parameters())


# --------------------------------------------------------------- memory, and what autograd sees


def average_replaced(optimizer: Any, param: Any) -> None:
    optimizer.state[param]["exp_avg"] = torch.zeros(4)


TAKEN_OUT: dict[str, Callable[[Any, Any], object]] = {
    "replaced": lambda o, p: o.state.update({p: copy.deepcopy(o.state[p])}),
    "cleared": lambda o, p: o.state.clear(),
    "deleted": lambda o, p: o.state.pop(p),
    "average replaced": average_replaced,
}


def test_what_is_taken_out_of_the_state_is_freed_at_once(engine):
    kept, optimizers = {}, []
    for way, take_out in TAKEN_OUT.items():
        param = nn.Parameter(torch.zeros(4))
        optimizer = svag.MSVAG([param], **engine)
        stepped(optimizer, param, 2)
        kept[way] = weakref.ref(optimizer.state[param]["exp_avg"])
        take_out(optimizer, param)
        optimizers.append(optimizer)
    del optimizer.state[param]
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.zeros(4))]
    kept["parameter out of its group"] = weakref.ref(param)
    del param
    gc.collect()
    assert [way for way, tensor in kept.items() if tensor() is not None] == []


@pytest.mark.parametrize("what", ["parameter", "gradient", "average"])
@pytest.mark.parametrize("flags", [{"fused": True}, {}], ids=str)
@by_name(named("sgd", "m-svag", "adam"))
def test_a_storage_that_was_resized_is_an_error(case, flags, what):
    """Its memory is freed to be gathered again later; reading it would end the process."""
    pytest.importorskip("numba")
    param = nn.Parameter(torch.zeros(1000))
    optimizer = case.build([param], **flags)
    stepped(optimizer, param, 2)
    param.grad = torch.ones(1000)
    if what == "average" and not case.averages:
        pytest.skip("there is none")
    tensor = {"parameter": param, "gradient": param.grad}.get(what)
    tensor = optimizer.state[param]["exp_avg"] if tensor is None else tensor
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage was resized"):
        optimizer.step()


def test_a_gradient_that_comes_and_goes_leaves_the_other_tables_as_they_are(monkeypatch):
    """Of experts and frozen layers; a rebuilt table costs as much as many steps."""
    pytest.importorskip("numba")
    from svag.optim.engines import cpu

    made: list[int] = []
    original = cpu.Table.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(len(kwargs["sizes"]))
        original(self, *args, **kwargs)

    optimizer = svag.MSVAG([nn.Parameter(torch.zeros(4)) for _ in range(50)])
    for n in range(8):
        if n == 2:
            monkeypatch.setattr(cpu.Table, "__init__", counted)
        step(optimizer, None if n % 2 else 1.0, *[1.0] * 49)
    assert sum(made) < 50
