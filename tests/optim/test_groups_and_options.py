"""What can be set, for all parameters or for a group: defaults, values, notes and refusals."""

import inspect
import math
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import svag
from svag import METHODS as TABLE
from svag import Anatomy, Dissected
from svag.errors import InvalidOption, SvagError

from .cases import ROWS, by_name, every_method, one_by_one
from .stepping import (
    assert_all_close,
    assert_all_equal,
    drawn,
    give_gradients,
    held,
    parameter,
    parameters,
    step,
    train,
)
from .test_torch_cases import plain

BF16 = torch.bfloat16
# ------------------------------------------------------------------------------------- defaults


@every_method
def test_defaults_are_those_of_the_table_and_torchs(case):
    optimizer, theirs = case.build([parameter(2)]), torch.optim.Adam([parameter(2)]).defaults
    group, row = optimizer.param_groups[0], TABLE[case.name]
    assert group["lr"] == row.lr
    betas = tuple(group.get("betas", ())) or ((group["beta"],) if "beta" in group else ())
    assert betas == row.betas
    adam = case.name == "adam"
    assert theirs.keys() - optimizer.defaults.keys() == (
        set() if adam else {"betas", "eps", "amsgrad"}
    )
    assert not adam or {name: optimizer.defaults[name] for name in theirs} == theirs


def test_adam_has_torchs_signature_in_torchs_order():
    ours = inspect.signature(svag.Adam.__init__).parameters
    theirs = inspect.signature(torch.optim.Adam.__init__).parameters
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(positional)] == positional
    assert set(ours) == {*theirs, "state_dtype", "stochastic_rounding", "seed"}
    assert {n: ours[n].default for n in theirs} == {n: p.default for n, p in theirs.items()}


# ------------------------------------------------------------------------------- one for all


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"lr": torch.tensor(0.01)}], ids=str)
@every_method
def test_capturable_steps_are_those_of_a_float64_loop(case, engine, options):
    """By a row's flags, not its table: conformance has each factor, and each option by itself."""
    optimizer = case.build(parameters(), **options, capturable=True, **engine)
    doubles = [nn.Parameter(p.detach().double()) for p in parameters()]
    reference = case.build(doubles, **plain(options), foreach=False)
    train(optimizer, reference, steps=5)
    assert_all_close([p.double() for p in held(optimizer)], held(reference))


@one_by_one
@every_method
def test_a_tensor_step_size_may_change_in_place_and_by_a_scheduler(case, flags):
    for shape in ((), (1,), (1, 1)):
        lr = torch.full(shape, 0.25)
        one, other = case.build(parameters(), lr=lr, **flags), case.build(parameters(), lr=0.25)
        schedulers = [lr_scheduler.ExponentialLR(o, 0.5) for o in (one, other)]
        for n in range(4):
            train(one, other, steps=1, seed=n)
            if shape == ():
                schedulers[0].step()
            else:
                lr.mul_(0.5)
            schedulers[1].step()
        assert one.param_groups[0]["lr"] is lr
        assert lr.item() == pytest.approx(0.25 * 0.5**4)
        assert_all_close(held(one), held(other))


# --------------------------------------------------------------------------------------- groups


@by_name(ROWS)
def test_groups_with_their_own_options_step_as_optimizers_of_their_own(case, engine):
    """One decays, one ascends; 0 times the infinite entry of one that does neither is not added."""
    decay = {"weight_decay": 0.1}
    shrink = {**decay, "decoupled_weight_decay": True, "maximize": True}
    settings: tuple[dict[str, Any], ...] = ({}, {"lr": 0.01}, decay, shrink)

    def start(n: int) -> list[nn.Parameter]:
        params = parameters()
        if n == 0:
            params[3].data[0, 0] = -math.inf
        return params

    groups = [{"params": start(n), **options} for n, options in enumerate(settings)]
    together = case.build(iter(groups), lr=0.05, **engine)
    apart = [case.build(start(n), **{"lr": 0.05, **o}, **engine) for n, o in enumerate(settings)]
    for n in range(4):
        for group, single in zip(together.param_groups, apart, strict=True):
            train(single, steps=1, seed=n)
            give_gradients(group["params"], 100 * n, variances=case.within_batch)
        together.step()
    assert_all_equal(held(together), [p for single in apart for p in held(single)])


@every_method
def test_a_group_added_between_steps_begins_at_its_own_first_step(case, engine):
    optimizer = case.build([parameter(7)], **engine)
    train(optimizer, steps=3)
    optimizer.add_param_group({"params": parameter(9, seed=1), "lr": 0.02})
    fresh = case.build([parameter(9, seed=1)], lr=0.02, **engine)
    for n in range(3):
        gradients = drawn(held(optimizer), n)
        step(optimizer, *gradients)
        step(fresh, gradients[1])
    assert torch.equal(held(optimizer)[1], held(fresh)[0])


@every_method
def test_groups_that_served_one_optimizer_may_serve_another(case):
    """torch writes its defaults into the caller's groups, so they come back with them."""
    groups = [{"params": [parameter(3)], "lr": 0.25}, {"params": [parameter(4)]}]
    case.build(groups, weight_decay=0.1)
    again = case.build(groups)
    rebuilt = case.build(again.param_groups)
    for optimizer in (again, rebuilt):
        assert [group["lr"] for group in optimizer.param_groups] == [0.25, case.lr]
    train(rebuilt, steps=2)


# What public training scripts put into groups.
NOTES = {
    "no_weight_decay": True, "weight_decay_end": 0.4, "seeds": (0, 1), "lr_scale": 0.5,
    "lr_mult": 2.0, "lr_max": 0.3, "min_lr": 1e-6, "max_lr": 1.0, "base_lr": 0.1,
    "initial_lr": 0.1, "weight_decay_mult": 0.0, "apply_weight_decay": False, "is_fused": False,
    "wd_multiplier": 1.0, "name": "head", "group_name": "decay", "names": ["a"], "layer_id": 3,
    "layer_decay": 0.65, "param_group_no": 1, "warmup_steps": 10, "betas_schedule": None,
    "use_muon": False, "rank": 8, "update_proj_gap": 200, "swag": 1,
}  # fmt: skip


def test_notes_are_kept_as_in_torch():
    for key, note in NOTES.items():
        param = nn.Parameter(torch.ones(2))
        optimizer = svag.MSVAG([{"params": [param], key: note}])
        other = torch.optim.Adam([{"params": [param], key: note}])
        train(optimizer, steps=1)
        again = svag.MSVAG([param])
        again.load_state_dict(optimizer.state_dict())
        assert [o.param_groups[0][key] for o in (optimizer, other, again)] == [note] * 3


MISSPELT = {
    "weight_decay": (
        "weigth_decay",
        "wieght_decay",
        "weight_deccay",
        "weightdecay",
        "weight-decay",
    ),
    "maximize": ("maximise",),
    "capturable": ("capturabel",),
    "state_dtype": ("state_dtyp",),
    "stochastic_rounding": ("stochastic_roundin",),
    "decoupled_weight_decay": ("decoupled_weigth_decay",),
}


@pytest.mark.parametrize("meant", MISSPELT)
def test_a_misspelt_option_is_still_refused(meant):
    for key in MISSPELT[meant]:
        with pytest.raises(TypeError, match=f"{key}.*Did you mean '{meant}'"):
            svag.MSVAG([{"params": [parameter(2)], key: 0.1}])


@pytest.mark.parametrize(
    ("make", "name"),
    [*((svag.MSVAG, name) for name in ("betas", "eps", "amsgrad", "anatomy")), (svag.Adam, "beta")],
)
def test_an_option_of_another_row_is_no_note(make, name):
    with pytest.raises(TypeError, match=f"{name!r}, which {make.__name__} does not take"):
        make([{"params": [parameter(2)], name: 0.5}])


# -------------------------------------------------------------------------------------- refusals

RAW_BATCH = {"factor": "sqrt", "relative_variance": "raw", "variance": "within-batch"}
ADAM, MSVAG = TABLE["adam"].anatomy, TABLE["m-svag"].anatomy
ERRORS: tuple[tuple[Any, dict[str, Any], type[Exception], str], ...] = (
    (svag.MSVAG, {"lr": -1}, ValueError, "Invalid learning rate: -1"),
    (svag.MSVAG, {"lr": math.nan}, ValueError, "Invalid learning rate: nan"),
    (svag.Adam, {"lr": "0.1"}, ValueError, "Invalid learning rate: '0.1'"),
    (svag.MSVAG, {"lr": torch.ones(2)}, ValueError, "1-element"),
    (svag.MSVAG, {"beta": 1.0}, ValueError, "Invalid beta parameter at index 0: 1.0"),
    (svag.Adam, {"betas": (0.9, 1.5)}, ValueError, "Invalid beta parameter at index 1: 1.5"),
    (svag.Adam, {"betas": ("0.9", 0.9)}, ValueError, "beta parameter at index 0: '0.9'"),
    (svag.Adam, {"betas": 0.9}, ValueError, "Invalid betas: 0.9"),
    (svag.Adam, {"betas": (0.9,)}, ValueError, "give two decays"),
    (svag.Adam, {"eps": -1}, ValueError, "Invalid epsilon value: -1"),
    (svag.SSD, {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    (svag.MSVAG, {"wieght_decay": 0.1}, TypeError, "Did you mean 'weight_decay'"),
    (svag.SGD, {"beta": 0.9}, TypeError, "'beta'"),
    (svag.MSVAG, {"foreach": True, "differentiable": True}, ValueError, "foreach=None"),
    (svag.MSVAG, {"fused": True, "differentiable": True}, RuntimeError, "fused=None"),
    (svag.MSVAG, {"fused": True, "foreach": True}, RuntimeError, "choose one"),
    (svag.MSVAG, {"state_dtype": torch.float16}, ValueError, "torch.float16.*torch.bfloat16"),
    (svag.MSVAG, {"state_dtype": "bfloat16"}, ValueError, "'bfloat16'.*torch.bfloat16"),
    (svag.MSVAG, {"state_dtype": BF16, "differentiable": True}, ValueError, "no derivative"),
    (svag.MSVAG, {"stochastic_rounding": True, "differentiable": True}, RuntimeError,
     "differentiable.*no derivative"),
    (svag.MSVAG, {"seed": -1}, ValueError, r"\[0, 2\^32\)"),
    (svag.MSVAG, {"seed": 2**32}, ValueError, r"4294967296.*\[0, 2\^32\)"),
    (Dissected, {"anatomy": ADAM, "beta": 0.9}, TypeError, "betas"),
    (Dissected, {"anatomy": MSVAG, "betas": (0.9, 0.9)}, TypeError, "it takes lr, beta"),
    (Dissected, {"anatomy": MSVAG, "betas": (0.9, 0.9)}, TypeError, "share one decay: beta=0.9"),
    (Dissected, {"anatomy": MSVAG, "eps": 1e-8}, TypeError, "No eps is needed"),
    (svag.MSGD, {"momentum": 0.9}, TypeError, r"momentum is beta.*lr / \(1 - momentum\)"),
    (svag.SGD, {"momentum": 0.9}, TypeError, "it takes lr, weight_decay.*svag.MSGD"),
    (Dissected, {"anatomy": "adam"}, ValueError, r"svag\.Anatomy"),
    (Anatomy, {"factor": "cube"}, ValueError, "'none', 'svag', 'sqrt', 'erf'"),
    (Anatomy, {"direction": "nesterov"}, ValueError, "'gradient', 'momentum'"),
    (Anatomy, {"sign": "yes"}, ValueError, "True, False"),
    (Anatomy, RAW_BATCH, ValueError, "relative_variance='corrected'"),
)  # fmt: skip


@pytest.mark.parametrize(("make", "options", "kind", "words"), ERRORS)
def test_errors_quote_the_value_and_the_remedy(make, options, kind, words):
    with pytest.raises(kind) as caught:
        make(**({} if make is Anatomy else {"params": [parameter(2)]}), **options)
    assert isinstance(caught.value, SvagError)
    assert re.search(words, str(caught.value), re.DOTALL)


@pytest.mark.parametrize(
    ("option", "words"), [({"beta": 2}, "index 0: 2"), ({"state_dtype": torch.int8}, "torch.int8")]
)
def test_the_options_of_a_group_are_looked_at_likewise(option, words):
    with pytest.raises(ValueError, match=words):
        svag.MSVAG([{"params": [parameter(2)], **option}])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_float64_averages_are_not_kept_in_another_dtype(dtype, engine):
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = svag.MSVAG([p], state_dtype=BF16, **engine)
    with pytest.raises(InvalidOption, match=r"state_dtype=torch.bfloat16.*a group of their own"):
        step(optimizer, 1.0)
    assert torch.equal(p.detach(), torch.ones(3, dtype=dtype))
