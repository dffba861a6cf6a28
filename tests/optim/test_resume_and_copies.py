"""A run that is saved and goes on, in another process or as a copy, goes on as if it had not been.

States of other optimizers are in test_foreign_states.py.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import svag

from .cases import ENGINES, METHODS, ROWS, by_name, every_method, named
from .stepping import (
    assert_all_close,
    assert_all_equal,
    assert_same_state,
    copies,
    drawn,
    held,
    parameter,
    parameters,
    step,
    train,
)

BF16, F32 = torch.bfloat16, torch.float32
STATEFUL = [case for case in METHODS if case.averages]
every_stateful = by_name(STATEFUL)

SAVED: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "plain": (F32, {}),
    "float64": (torch.float64, {}),
    "tensor step size": (F32, {"lr": torch.tensor(0.1), "capturable": True}),
    "complex": (torch.complex64, {}),
    "bfloat16 state": (F32, {"state_dtype": BF16}),
    "float32 state of bfloat16 parameters": (BF16, {"state_dtype": F32}),
    "all in bfloat16": (BF16, {"stochastic_rounding": True}),
    "float32 state of stochastic parameters": (
        BF16, {"state_dtype": F32, "stochastic_rounding": True}
    ),
}  # fmt: skip
# How averages are stored does not depend on what is made of them: two, one, a mini-batch's.
KINDS = [
    (kind, case)
    for kind in SAVED
    for case in (ROWS if kind == "plain" else named("m-ssd", "m-svag", "m-svag/batch"))
]


@pytest.mark.parametrize(("kind", "case"), KINDS, ids=str)
def test_resuming_is_exact_to_the_bit(case, kind, engine):
    dtype, options = SAVED[kind]
    options = {**options, "weight_decay": 0.1, "seed": 11}
    straight = case.build(parameters(dtype), **options, **engine)
    before = case.build(parameters(dtype), **{**options, "lr": 0.7}, **engine)
    before.param_groups[0]["lr"] = straight.param_groups[0]["lr"]
    train(straight, before, steps=4)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    for weights_only in (True, False):
        file.seek(0)
        saved = torch.load(file, weights_only=weights_only)
        after = case.build(copies(held(before)), lr=0.3, **engine)
        after.load_state_dict(saved)
        assert_same_state(after, before)
        assert str(after.state_dict()["param_groups"]) == str(before.state_dict()["param_groups"])
        for o in (straight, after) if weights_only else (after,):
            train(o, steps=3, seed=2)
        assert_all_equal(held(after), held(straight))
        assert_same_state(after, straight)


@by_name(ROWS)
def test_copies_share_nothing_and_go_on_alike(case, engine):
    optimizer = case.build(parameters(), **engine)
    train(optimizer, steps=2)
    for clone in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        twin = clone(optimizer)
        public = {name for name in vars(optimizer) if not name.startswith("_")}
        assert public == {name for name in vars(twin) if not name.startswith("_")}
        assert twin.anatomy == optimizer.anatomy
        theirs = copies(held(twin))
        train(optimizer, steps=2, seed=2)
        assert_all_equal(held(twin), theirs)
        train(twin, steps=2, seed=2)
        assert_all_equal(held(twin), held(optimizer))


@pytest.mark.parametrize("saver", ENGINES)
@pytest.mark.parametrize("loader", ENGINES)
@by_name(named("m-ssd", "m-svag", "adam-amsgrad", "m-svag/batch"))  # the sets of averages
def test_a_state_saved_by_one_engine_serves_another(case, saver, loader):
    optimizer = case.build(parameters(), **ENGINES[saver])
    train(optimizer, steps=3)
    other = case.build(copies(held(optimizer)), **ENGINES[loader])
    saved = copy.deepcopy(optimizer.state_dict())
    for flag in ("foreach", "fused"):  # a saved flag would be taken over, as in torch
        saved["param_groups"][0][flag] = other.param_groups[0][flag]
    other.load_state_dict(saved)
    train(optimizer, other, steps=3, seed=2)
    assert_all_close(held(other), held(optimizer))


@every_method
def test_a_state_follows_the_order_of_the_parameters_not_their_identity(case):
    first, second = parameter(5), parameter(5, seed=1)
    optimizer = case.build([first, second])
    train(optimizer, steps=3)
    a, b = copies([first, second])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["params"].reverse()
    shuffled = case.build([b, a])
    shuffled.load_state_dict(saved)
    for n in range(3):
        one, other = drawn([first, second], n)
        step(optimizer, one, other)
        step(shuffled, other, one)
    assert_all_equal([a, b], [first, second])


@every_method
def test_an_older_state_loads(case, engine):
    """Without today's flags, and with steps that are no tensors.

    torch's ``test_can_load_older_state_dict`` and ``test_load_nontensor_step``.
    """
    optimizer = case.build(parameters(), weight_decay=0.1, **engine)
    train(optimizer, steps=3)
    saved = copy.deepcopy(optimizer.state_dict())
    flags = ("foreach", "differentiable", "maximize", "capturable", "fused")
    for flag in (*flags, "decoupled_weight_decay"):
        del saved["param_groups"][0][flag]
    for entry in saved["state"].values():
        entry["step"] = entry["step"].item()
    other = case.build(copies(held(optimizer)), **engine)
    other.load_state_dict(saved)
    train(optimizer, other, steps=2, seed=2)
    assert_all_equal(held(other), held(optimizer))
    assert {float(state["step"]) for state in other.state.values()} <= {5.0}


@every_stateful
def test_a_loaded_state_takes_the_dtype_of_its_parameter_but_the_step_does_not(case):
    optimizer = case.build([parameter(6)], foreach=False)
    train(optimizer, steps=300)  # a bfloat16 step would stop at 256
    for dtype in (torch.float64, BF16):
        p = nn.Parameter(held(optimizer)[0].detach().to(dtype))
        other = case.build([p])
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert {other.state[p][name].dtype for name in case.anatomy.buffers} == {dtype}
        assert other.state[p]["step"].dtype == F32
        train(other, steps=1)
        assert float(other.state[p]["step"]) == 301


def test_a_checkpoint_brings_the_dtype_of_its_state_along(engine):
    """It is an option, and this method's own checkpoint brings its options back, as in torch."""
    for saver, loader in ((None, BF16), (BF16, None), (F32, BF16)):
        donor = svag.MSVAG([parameter(300)], state_dtype=saver)
        train(donor, steps=3)
        (p,) = held(donor)
        optimizer = svag.MSVAG([p], state_dtype=loader, **engine)
        optimizer.load_state_dict(donor.state_dict())
        assert optimizer.param_groups[0]["state_dtype"] == saver
        assert optimizer.state[p]["exp_avg"].dtype == (saver or F32)
        assert torch.equal(optimizer.state[p]["exp_avg"], donor.state[p]["exp_avg"])
        train(optimizer, steps=1)
        assert optimizer.state[p]["exp_avg"].dtype == (saver or F32)


@every_stateful
def test_loading_leaves_the_given_state_as_it_was(case):
    donor = case.build([parameter(6)])
    train(donor, steps=2)
    given = donor.state_dict()
    kept = copy.deepcopy(given)
    taker = case.build([parameter(6, dtype=torch.float64)], lr=0.3)
    taker.load_state_dict(given)
    taker.param_groups[0]["lr"] = 0.4
    taker.add_param_group({"params": parameter(2)})
    assert given["param_groups"] == kept["param_groups"]
    torch.testing.assert_close(given["state"], kept["state"], rtol=0, atol=0)


@every_method
def test_names_of_parameters_are_kept_and_cross_between_named_and_unnamed(case):
    """torch's ``test_can_load_from_to_named_state_dict``."""
    model = nn.Linear(4, 3)
    named_ = case.build(model.named_parameters())
    train(named_, steps=2)
    saved = named_.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
    unnamed = case.build(copy.deepcopy(model).parameters())
    unnamed.load_state_dict(copy.deepcopy(saved))
    back = case.build(copy.deepcopy(model).named_parameters())
    bare = copy.deepcopy(saved)
    del bare["param_groups"][0]["param_names"]
    back.load_state_dict(bare)
    assert back.param_groups[0]["param_names"] == ["weight", "bias"]
    train(named_, unnamed, back, steps=2, seed=2)
    assert_all_equal(held(unnamed), held(named_))
    assert_all_equal(held(back), held(named_))
