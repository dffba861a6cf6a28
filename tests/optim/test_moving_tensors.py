"""Tensors that move, change or are replaced between steps: the numbers must not notice.

The reference is a for-loop that is handed fresh tensors for every single step (FreshLoop). What a
fused step looks at is in test_change_detection.py.
"""

import copy
import math
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svag
from svag.errors import SvagError

from .cases import EVERY_KIND, Case, by_name, named
from .stepping import (
    CLOSE,
    FreshLoop,
    anew,
    assert_all_close,
    assert_all_equal,
    assert_same_state,
    copies,
    drawn,
    give_gradients,
    held,
    parameter,
    parameters,
    step,
)

# Where tensors are is a matter of which averages there are, not of what is made of them: 0 to 2.
few = by_name(named("ssd", "m-ssd", "m-svag"))


def refused(optimizer: Any) -> bool:
    """Step; whether fused=True, and nothing else, has refused to, and then done nothing at all.

    What it cannot serve are layouts and views that autograd does not make by itself, and a
    parameter that no longer is as its averages are; torch's fused Adam reads them in the wrong
    order.
    """
    if not optimizer.param_groups[0]["fused"]:
        optimizer.step()
        return False
    before, state = copies(held(optimizer)), copy.deepcopy(optimizer.state_dict())
    try:
        optimizer.step()
    except SvagError as error:
        refusal = str(error)
    else:
        return False
    assert re.match("`fused=True` requires .* fused=None", refusal)
    assert_all_equal(held(optimizer), before)
    if state["state"]:  # what a first step makes is made
        assert_same_state(optimizer, state)
    return True


def follow(case: Case, params: list[Any], change: Any, flags: Any, **options: Any) -> None:
    """Step while ``change(optimizer, n)`` is made before step n."""
    optimizer = case.build(params, **options, **flags)
    reference = FreshLoop(case, params, **options)
    for n in range(5):
        change(optimizer, n, *([reference] if change in WRITTEN.values() else []))
        gradients = give_gradients(held(optimizer), n)
        if refused(optimizer):
            return
        reference.step(gradients)
        assert_all_close(held(optimizer), reference.params)


def of_each(change: Callable[[Any, dict[str, Any]], Any]) -> Callable[[Any, int], None]:
    """Make a change of a parameter and its state one of all."""

    def all_of_them(optimizer: Any, n: int) -> None:
        for p in held(optimizer):
            change(p, optimizer.state.get(p, {}))

    return all_of_them


def set_data(tensor: Tensor, data: Tensor) -> None:
    tensor.data = data


def swap(p: Any, state: Any) -> None:
    """To float64 and back, as ``module.to`` does where it is asked to swap."""
    p.grad = None
    for dtype in (torch.float64, p.dtype):
        torch.utils.swap_tensors(p, nn.Parameter(p.detach().to(dtype, copy=True)))


def flatten(optimizer: Any, n: int) -> None:
    """All parameters become views of one vector, at addresses that no vector load likes."""
    flat = nn.utils.parameters_to_vector([p.detach() for p in held(optimizer)])
    nn.utils.vector_to_parameters(torch.cat([flat[:1], flat])[1:], held(optimizer))


def replace_states(optimizer: Any, n: int) -> None:
    for p in set(optimizer.state):
        optimizer.state[p] = copy.deepcopy(optimizer.state[p])


def reload_(optimizer: Any, n: int) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def cross_layouts(optimizer: Any, n: int) -> None:
    """What ``module.to(memory_format=...)`` does, back and forth; state keeps the old strides."""
    layout = torch.channels_last if n % 2 == 0 else torch.contiguous_format
    for p in held(optimizer):
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=layout)


def across(tensor: Tensor) -> Tensor:
    """Stored the other way round."""
    if tensor.dim() < 2:
        return tensor
    return tensor.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def written(name: str, write: Callable[[dict[str, Any]], Any]) -> Callable[..., None]:
    """What a user writes into the states, and the reference's with them, before the third step."""

    def change(optimizer: Any, n: int, reference: FreshLoop) -> None:
        states = [*(optimizer.state[p] for p in held(optimizer)), *reference.states]
        for state in states if n == 2 else ():
            if name in state:
                write(state)

    return change


def dropped(one_only: bool) -> Callable[..., None]:
    """What is dropped begins afresh."""

    def change(optimizer: Any, n: int, reference: FreshLoop) -> None:
        if n == 3 and one_only:
            optimizer.state.pop(held(optimizer)[3], None)
            reference.states[3] = {}
        elif n == 3:
            optimizer.state.clear()
            reference.states = [{} for _ in reference.states]

    return change


WRITTEN: dict[str, Callable[..., Any]] = {
    "states cleared": dropped(one_only=False),
    "a state deleted": dropped(one_only=True),
    "step filled": written("step", lambda state: state["step"].fill_(7)),
    "step replaced": written("step", lambda state: state.update(step=torch.tensor(20.0))),
    "average halved": written("exp_avg", lambda state: state["exp_avg"].mul_(0.5)),
}
CHANGES: dict[str, Callable[..., Any]] = {
    "nothing": lambda optimizer, n: None,
    ".data of parameters": of_each(lambda p, state: set_data(p, p.data.clone())),
    "swap_tensors": of_each(swap),
    "shared memory": of_each(lambda p, state: p.share_memory_()),
    "views of a flat vector": flatten,
    "buffers replaced": of_each(lambda p, s: s.update({n: x.clone() for n, x in s.items()})),
    ".data of buffers": of_each(lambda p, s: [set_data(x, x.data.clone()) for x in s.values()]),
    "states replaced": replace_states,
    "state_dict reloaded": reload_,
    "channels_last and back": cross_layouts,
    **WRITTEN,
    "transposed storage": of_each(lambda p, state: set_data(p, across(p.data))),
}


@pytest.mark.parametrize("change", CHANGES)
@few
def test_tensors_may_move_between_steps(case, flags, change):
    params = [*parameters(), parameter(4, 3, 5, 7, seed=9)]
    if change == "shared memory":
        params = [p for p in params if p.numel()]
    follow(case, params, CHANGES[change], flags, weight_decay=0.1)


@few
def test_parameters_may_be_freed_and_replaced_between_steps(case, flags):
    """The new one often gets the old one's address and id: it must still begin afresh."""
    kept = parameter(33, seed=1)
    optimizer = case.build([parameter(64), kept], **flags)
    reference = FreshLoop(case, [kept])
    for n in range(12):
        fresh = parameter(64, seed=n)
        expected = FreshLoop(case, [fresh])
        optimizer.state.pop(held(optimizer)[0], None)
        old = weakref.ref(held(optimizer)[0])
        optimizer.param_groups[0]["params"][0] = fresh
        for _ in range(2):
            gradients = give_gradients(held(optimizer), n)
            optimizer.step()
            assert old() is None  # the optimizer has not kept it alive
            expected.step(gradients[:1])
            reference.step(gradients[1:])
        assert_all_close([fresh, kept], expected.params + reference.params)
        del fresh
    assert len(optimizer.state) <= 2


@few
def test_groups_may_be_edited_in_place(case, flags):
    params = [parameter(5 + n, seed=n) for n in range(5)]
    optimizer = case.build([{"params": params[:4]}, {"params": params[4:]}], **flags)
    loops = [FreshLoop(case, [p]) for p in params]
    edits: tuple[Callable[[list[dict[str, Any]]], Any], ...] = (
        lambda groups: None,
        lambda groups: groups[0]["params"].reverse(),
        lambda groups: groups[0]["params"].pop(1),
        lambda groups: groups[1]["params"].append(groups[0]["params"].pop(0)),
        lambda groups: groups[0].update(params=groups[0]["params"][1:]),
        lambda groups: groups.pop(0),
        lambda groups: groups[0].update(lr=0.02, maximize=True),
    )
    for n, edit in enumerate(edits):
        edit(optimizer.param_groups)
        gradients = give_gradients(params, n)
        for p, gradient, loop in zip(params, gradients, loops, strict=True):
            if any(p is q for q in held(optimizer)):
                loop.options.update({"lr": 0.02, "maximize": True} if n == 6 else {})
                loop.step([gradient])
        optimizer.step()
        assert_all_close(params, [loop.params[0] for loop in loops])


@few
def test_two_optimizers_may_share_their_parameters(case, flags):
    params = parameters()
    pair = [case.build(params, **flags), case.build(params, lr=0.02, **flags)]
    loops = [FreshLoop(case, params), FreshLoop(case, params, lr=0.02)]
    for n in range(6):
        optimizer, loop = pair[n % 2], loops[n % 2]
        gradients = give_gradients(params, n)
        optimizer.step()
        loop.params = [p.clone() for p in loops[(n + 1) % 2].params] if n else loop.params
        loop.step(gradients)
        assert_all_close(params, loop.params)


# ------------------------------------------------------------------------- unusual gradients

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda g: g.clone().transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda g: torch.stack([g, torch.full_like(g, 9)], -1)[..., 0],
    "expanded": lambda g: g.flatten()[:1].clone().expand(g.shape),
    "expanded along a row": lambda g: g[:, :1].clone().expand(g.shape),
    "negated view": torch._neg_view,
    "reversed negated view": lambda g: torch._neg_view(g.transpose(0, 1).clone()).transpose(0, 1),
    "at an odd address": lambda g: torch.cat([g.flatten()[:1], g.flatten()])[1:].view(g.shape),
    "of a graph": lambda g: g.clone().requires_grad_() * 1,
    "conjugate": lambda g: g.t().clone().t().conj(),
}


@pytest.mark.parametrize("since", [0, 2])
@pytest.mark.parametrize("kind", VIEWS)
@by_name(named("ssd", "m-svag"))
def test_gradients_may_be_views(case, flags, kind, since):
    """From the first step on, or after two with gradients of their own."""
    p = parameter(37, 23, dtype=torch.complex64 if "conjugate" in kind else torch.float32)
    optimizer = case.build([p], weight_decay=0.1, **flags)
    loop = FreshLoop(case, [p], weight_decay=0.1)
    for n in range(4):
        (gradient,) = drawn([p], n)
        if n >= since:
            gradient = VIEWS[kind](gradient)
            assert (gradient.is_neg(), gradient.is_conj()) == ("neg" in kind, "conj" in kind)
        p.grad, values = gradient, anew(gradient)
        is_refused = refused(optimizer)
        assert torch.equal(p.grad, values)  # it is left as it is
        if is_refused:
            return
        loop.step([values])
        assert_all_close([p], loop.params)
    assert all(not value.requires_grad for value in optimizer.state[p].values())


not_finite = pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])


@not_finite
@by_name(EVERY_KIND)
def test_an_infinite_gradient_stays_with_its_coordinate(case, engine, value):
    """Two finite steps, one with the value, two finite ones: as the for-loop in every place."""
    params = [parameter(5, 6), parameter(9000, seed=1)]
    optimizer = case.build(params, **engine)
    marred, clean = FreshLoop(case, params), FreshLoop(case, params)
    for n in range(5):
        gradients = drawn(params, n)
        clean.step([gradient.clone() for gradient in gradients])
        if n == 2:
            for gradient in gradients:
                gradient.view(-1)[3] = value
        step(optimizer, *gradients)
        marred.step(gradients)
    for p, loop, other in zip(params, marred.params, clean.params, strict=True):
        torch.testing.assert_close(p.detach(), loop, rtol=2e-5, atol=2e-5, equal_nan=True)
        others = torch.arange(p.numel()) != 3
        torch.testing.assert_close(p.detach().view(-1)[others], other.view(-1)[others])
        assert p.isfinite().view(-1)[others].all()
        if math.isnan(value):
            assert p.view(-1)[3].isnan()


@not_finite
def test_an_infinite_gradient_makes_of_adam_what_it_makes_of_torchs(engine, value):
    ours = svag.Adam([parameter(30)], **engine)
    theirs = torch.optim.Adam([parameter(30)], foreach=False)
    for n in range(4):
        (gradient,) = drawn(held(ours), n)
        if n == 1:
            gradient[4] = value
        for o in (ours, theirs):
            step(o, gradient)
    assert held(theirs)[0].isnan().sum() == 1
    assert_all_close(held(ours), held(theirs), **CLOSE, equal_nan=True)
