"""Dtypes of parameters, of what is kept beside them, and what is kept: nothing but what is needed.

Rounding is in test_rounding.py.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import svag
from svag.errors import SvagError
from svag.variance.grad_var import attach, current

from .cases import CASES, EVERY_KIND, ROWS, WITHIN_BATCH, by_name, named
from .stepping import (
    SHAPES,
    FreshLoop,
    assert_all_close,
    assert_all_equal,
    assert_same_state,
    copies,
    give_gradients,
    held,
    parameter,
    parameters,
    step,
    train,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
every_kind = by_name(EVERY_KIND)


@by_name(CASES + WITHIN_BATCH)
def test_complex_parameters_step_as_pairs_of_reals(case, engine):
    """To the bit, as torch's ``test_complex_2d``; reals are held against the oracle elsewhere."""
    for dtype in (torch.float32, torch.float64):
        reals = [parameter(*shape, 2, seed=n, dtype=dtype) for n, shape in enumerate(SHAPES)]
        pairs = [nn.Parameter(torch.view_as_complex(p.detach().clone())) for p in reals]
        one, other = (case.build(params, **engine) for params in (reals, pairs))
        for n in range(4):
            give_gradients(reals, n, variances=case.within_batch)
            for p, q in zip(reals, pairs, strict=True):
                q.grad = torch.view_as_complex(p.grad.clone())
                if case.within_batch:
                    attach(q, torch.view_as_complex(current(p).clone()))
            one.step()
            other.step()
        assert_all_equal([torch.view_as_real(q.detach()) for q in pairs], reals)
        assert all(
            other.state[q][name].is_complex() for q in pairs for name in case.anatomy.buffers
        )


@every_kind
def test_mixed_dtypes_in_one_optimizer(case, engine):
    # eps: what torch's own table takes for float16, whose v can be zero
    own = {"eps": 0.1} if case.raw else {}
    params = [
        parameter(*shape, seed=n, dtype=dtype)
        for n, shape in enumerate(((3, 5), (), (0,), (4, 1, 33)))
        for dtype in DTYPES
    ]
    optimizer, twins = case.build(params, **own, **engine), copies(params)
    alone = [
        case.build([q for q in twins if q.dtype == dtype], **own, foreach=False) for dtype in DTYPES
    ]
    for n in range(4):
        for each in (params, twins):
            give_gradients(each, n)
        for o in (optimizer, *alone):
            o.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach(), q.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@by_name(named("ssd", "m-ssd", "m-svag", "adam"))  # 0 to 2 averages
def test_a_changed_dtype_gives_the_right_step_or_an_error_and_no_damage(case, flags, dtype):
    """``module.half()`` between steps: torch's Adam stops at its own operations' RuntimeError."""
    params = [parameter(40), parameter(7, seed=1)]
    optimizer, loop = case.build(params, **flags), FreshLoop(case, params)
    train(optimizer, steps=1)
    loop.step([p.grad for p in params])
    for p in params:
        p.grad = None
        p.data = p.data.to(dtype)
    before = copies(params)
    averages = [optimizer.state[p][name] for p in params for name in case.anatomy.buffers]
    kept, refusal = copy.deepcopy(averages), ""
    try:
        step(optimizer, 1.0)
    except (RuntimeError, SvagError) as error:
        refusal = str(error)
    if refusal:
        assert re.search("type|torch.float32, not", refusal)
        assert_all_equal([*params, *averages], [*before, *kept])
        return
    loop.step([torch.ones(p.shape) for p in params])
    bound = {torch.float64: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert {p.dtype for p in params} == {dtype}
    assert_all_close([p.float() for p in params], loop.params, rtol=bound, atol=bound)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


@every_kind
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.device("meta")], ids=str)
def test_the_default_dtype_and_device_change_nothing(case, engine, default):
    """With a bfloat16 step the count would stop at 256, and so would the debiasing."""
    plainly, under = (case.build(parameters()[:4], **engine) for _ in range(2))
    for optimizer in (plainly, under):
        give_gradients(held(optimizer), 1)

    with default if isinstance(default, torch.device) else default_dtype(default):
        for _ in range(258):
            under.step()
    for _ in range(258):
        plainly.step()
    assert_all_equal(held(under), held(plainly))
    kept = [under.state[p] for p in held(under) if case.averages]
    assert {float(state["step"]) for state in kept} <= {258.0}
    assert {value.device.type for state in kept for value in state.values()} <= {"cpu"}


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_the_step_has_torchs_dtype(default, engine):
    """torch's: that of a fused step is always float32."""
    makes = (svag.MSVAG, torch.optim.Adam)
    ours, theirs = (make([parameter(4)], **engine) for make in makes)
    with default_dtype(default):
        train(ours, theirs, steps=2)
    one, other = (o.state[held(o)[0]]["step"] for o in (ours, theirs))
    assert one.dtype == other.dtype
    assert float(one) == 2


# ------------------------------------------------------------------------------------------ state


AVERAGES = {
    "sgd": 0, "ssd": 0, "ssd-erf/batch": 0, "m-sgd": 1, "m-ssd": 1, "svag": 2, "m-svag": 2,
    "m-svag/batch": 2, "adam": 2, "adam-star": 2, "adam-amsgrad": 3,
}  # fmt: skip


@pytest.mark.parametrize("half", ["state", "parameters"])
@by_name([*ROWS, *named("adam-amsgrad")])
def test_state_is_what_the_row_needs(case, half, engine):
    """One number an element for each average, in memory of its own, and a step if there is one."""
    dtypes = {"state": (torch.float32, torch.bfloat16), "parameters": (torch.bfloat16, None)}
    dtype, state_dtype = dtypes[half]
    optimizer = case.build(parameters(dtype), state_dtype=state_dtype, **engine)
    train(optimizer, steps=2)
    buffers = [*case.anatomy.buffers, *["max_exp_avg_sq"] * case.amsgrad]
    assert len(buffers) == AVERAGES[str(case)]
    addresses = []
    for p in held(optimizer):
        state = optimizer.state.get(p, {})
        assert set(state) == ({"step", *buffers} if buffers else set())
        for name in buffers:
            assert state[name].dtype == torch.bfloat16
            assert state[name].shape == p.shape
        tensors = [p, p.grad, *state.values()]
        addresses += [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
        assert all(not t.requires_grad and t.is_leaf for t in state.values())
        assert p.is_leaf
        assert p.requires_grad
    assert len(addresses) == len(set(addresses))
    # torch leaves none either; a lookahead wrapper walks through what there is
    assert bool(optimizer.state_dict()["state"]) == bool(buffers)


@every_kind
def test_a_step_without_gradients_does_nothing(case, engine):
    optimizer = case.build(parameters(), weight_decay=0.1, **engine)
    optimizer.step()
    assert_all_equal(held(optimizer), parameters())
    assert all(not optimizer.state[p] for p in held(optimizer))
    train(optimizer, steps=2)
    after, state = copies(held(optimizer)), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    optimizer.step()
    assert_all_equal(held(optimizer), after)
    assert_same_state(optimizer, state)
