"""The cases that torch tests its own optimizers with, for every method or every engine.

torch's tables (``torch.testing._internal.common_optimizers``) are used as they are: each
configuration of Adam must take torch's for-loop steps, each input that torch refuses must be
refused with torch's exception and torch's words.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import svag

from .cases import METHODS, every_method
from .stepping import (
    assert_all_close,
    assert_all_equal,
    copies,
    drawn,
    give_gradients,
    held,
    parameter,
    parameters,
    step,
    train,
)


def torchs_tables() -> Any:
    """Import torch's tables; the import freezes ``torch.backends``, which is undone."""
    from torch.testing._internal import common_optimizers

    torch.backends.__allow_nonbracketed_mutation_flag = True
    return common_optimizers


TABLES = torchs_tables()

# ------------------------------------------------------------------------- torch's configurations

# For CUDA torch has the configurations of the CPU, and those with capturable and tensors.
CONFIGURATIONS = {case.desc: case.kwargs for case in TABLES.optim_inputs_func_adam("cuda")}
ADAMW = {"decoupled_weight_decay": True, "weight_decay": 1e-2}
BOUND = {torch.float64: 1e-12, torch.float32: 2e-5}


def plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same configuration in floats, as torch's for-loop on a CPU takes it."""
    kwargs = {key: value for key, value in kwargs.items() if key != "capturable"}
    if "lr" in kwargs:
        kwargs["lr"] = float(kwargs["lr"])
    if "betas" in kwargs:
        kwargs["betas"] = tuple(float(beta) for beta in kwargs["betas"])
    return kwargs


@pytest.mark.parametrize(
    ("theirs", "dtype"),
    [
        (torch.optim.Adam, torch.float64),
        (torch.optim.Adam, torch.float32),
        (torch.optim.AdamW, torch.float32),
    ],
    ids=["Adam in float64", "Adam in float32", "AdamW in float32"],
)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_adam_steps_as_torchs_for_loop_does(engine, configuration, theirs, dtype):
    kwargs = copy.deepcopy(CONFIGURATIONS[configuration])
    own = ADAMW if theirs is torch.optim.AdamW else {}
    if engine.get("foreach") and "lr" in kwargs and not kwargs.get("capturable"):
        kwargs["lr"] = float(kwargs["lr"])  # a tensor is refused, as torch does
    optimizer = svag.Adam(parameters(dtype), **{**own, **kwargs}, **engine)
    reference = theirs(parameters(dtype), foreach=False, **plain(kwargs))
    for n in range(6):
        for o in (optimizer, reference):
            give_gradients(held(o), n)
            if n in (0, 3):
                held(o)[3].grad = None  # comes late, and is missing again
            o.step()
    bound = BOUND[dtype]
    assert_all_close(held(optimizer), held(reference), rtol=bound, atol=bound)
    for p, q in zip(held(optimizer), held(reference), strict=True):
        assert optimizer.state[p].keys() == reference.state[q].keys()
        for name, value in reference.state[q].items():
            bounds = {"rtol": bound, "atol": bound, "check_dtype": name != "step"}
            torch.testing.assert_close(optimizer.state[p][name], value, **bounds)


# ------------------------------------------------------------------------- torch's error inputs

ERRORS = {
    f"{case.optimizer_error_input.desc} ({n})": case
    for n, case in enumerate(TABLES.optim_error_inputs_func_adam("cpu", torch.float32))
}
UNIVERSAL = {
    case.optimizer_error_input.desc: case
    for case in TABLES.get_error_inputs_for_all_optims("cpu", torch.float32)
}


def assert_refused(make: Any, case: Any) -> None:
    given = case.optimizer_error_input
    # a copy, since torch writes the defaults into the groups that it is given
    params = [parameter(2, 3)] if given.params is None else copy.deepcopy(given.params)
    kwargs = copy.deepcopy(given.kwargs)
    at_construction = TABLES.OptimizerErrorEnum.CONSTRUCTION_ERROR
    if issubclass(case.error_type, Warning):
        with pytest.warns(case.error_type, match=case.error_regex):
            make(params, **kwargs)
    elif case.error_on == at_construction:
        with pytest.raises(case.error_type, match=f"^{case.error_regex}"):
            make(params, **kwargs)
    else:
        optimizer = make(params, **kwargs)
        with pytest.raises(case.error_type, match=f"^{case.error_regex}"):
            optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.Adam, svag.Adam], ids=["torch", "svag"])
@pytest.mark.parametrize("error", ERRORS)
def test_what_torchs_adam_refuses_is_refused_in_its_words(make, error):
    assert_refused(make, ERRORS[error])


@pytest.mark.parametrize("error", UNIVERSAL)
@every_method
def test_what_every_torch_optimizer_refuses_is_refused(case, error):
    assert_refused(case.kind, UNIVERSAL[error])


def sparse_step(make: Any) -> None:
    p = parameter(4)
    p.grad = torch.sparse_coo_tensor([[0]], [1.0], (4,), check_invariants=True)
    make([p]).step()


def step_on_meta(make: Any) -> None:
    p = nn.Parameter(torch.empty(3, device="meta"))
    p.grad = torch.empty(3, device="meta")
    make([p], fused=True).step()


def add_a_duplicate(make: Any) -> None:
    p = parameter(2)
    make([p]).add_param_group({"params": [p]})


# name: what is done with a class, and whether torch's words hold for Adam alone
MISUSES: dict[str, Callable[[Any], Any]] = {
    "no parameters": lambda make: make([]),
    "a set of parameters": lambda make: make([parameter(2)]).add_param_group({"params": {1}}),
    "not a tensor": lambda make: make([1.0]),
    "not a leaf": lambda make: make([parameter(2) * 2]),
    "a negative step size": lambda make: make([parameter(2)], lr=-0.1),
    "a group that is no dict": lambda make: make([parameter(2)]).add_param_group([parameter(2)]),
    "a parameter that is in another group": add_a_duplicate,
    "fused and foreach": lambda make: make([parameter(2)], fused=True, foreach=True),
    "fused and differentiable": lambda make: make([parameter(2)], fused=True, differentiable=True),
    "loading another number of groups": lambda make: make([parameter(2)]).load_state_dict(
        make([{"params": [parameter(2)]}, {"params": [parameter(2)]}]).state_dict()
    ),
    "loading a group of another size": lambda make: make([parameter(2)]).load_state_dict(
        make([parameter(2), parameter(3)]).state_dict()
    ),
    "a sparse gradient": sparse_step,
    "fused on a device that has no fused engine": step_on_meta,
}  # fmt: skip


@pytest.mark.parametrize("misuse", MISUSES)
@every_method
def test_misuse_is_refused_as_torchs_adam_refuses_it(case, misuse):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as theirs:
        MISUSES[misuse](torch.optim.Adam)
    with pytest.raises(type(theirs.value)) as ours:
        MISUSES[misuse](case.kind)
    words = str(theirs.value).rstrip(".").replace("Adam does", f"{case.kind.__name__} does")
    words = words.replace(f"{torch.optim.Adam}", f"{case.kind}")
    if misuse == "fused on a device that has no fused engine":
        words = words.split(": [")[0]  # torch's list of devices
    assert str(ours.value).startswith(words)


# ----------------------------------------------------------------------------------- schedulers

SCHEDULERS: dict[str, Callable[[Any], list[Any]]] = {
    "none": lambda o: [],
    "StepLR": lambda o: [lr_scheduler.StepLR(o, gamma=0.9, step_size=10)],
    "LinearLR": lambda o: [lr_scheduler.LinearLR(o, 0.4, total_iters=4)],
    "ExponentialLR and ConstantLR": lambda o: [
        lr_scheduler.ExponentialLR(o, gamma=0.97), lr_scheduler.ConstantLR(o, 0.5, total_iters=9)
    ],
    "StepLR and ReduceLROnPlateau": lambda o: [
        lr_scheduler.StepLR(o, gamma=0.9, step_size=10), lr_scheduler.ReduceLROnPlateau(o)
    ],
    "PolynomialLR": lambda o: [lr_scheduler.PolynomialLR(o, power=0.9, total_iters=40)],
    "warm restarts": lambda o: [lr_scheduler.CosineAnnealingWarmRestarts(o, 7)],
    "SequentialLR": lambda o: [
        lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(o, 30)],
            milestones=[5],
        )
    ],
    "SWALR": lambda o: [swa_utils.SWALR(o, swa_lr=5e-3, anneal_epochs=2)],
    "CyclicLR": lambda o: [lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 5, cycle_momentum=False)],
    "OneCycleLR": lambda o: [
        lr_scheduler.OneCycleLR(o, 1e-2, total_steps=40, cycle_momentum=False)
    ],
}  # fmt: skip


def fit(optimizer: torch.optim.Optimizer, schedulers: list[Any], sign: float, steps: int) -> float:
    """Descend (sign 1) or ascend (-1) on torch's own right-direction problem; the last loss."""
    weight, bias = held(optimizer)
    x = torch.linspace(-1, 1, 5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sign * ((weight @ x + bias) - 1).square().sum()
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        loss = optimizer.step(closure)
        assert loss is not None
        for scheduler in schedulers:
            is_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*((loss,) if is_plateau else ()))
    return float(loss)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("schedule", "case"),
    [(s, c) for s in SCHEDULERS for c in METHODS if s == "none" or c.name in ("m-svag", "ssd")],
    ids=str,
)  # a schedule sees a group, whatever the row
def test_it_goes_the_right_direction_under_any_schedule(case, maximize, schedule):
    params = [parameter(10, 5), parameter(10, seed=1)]
    optimizer = case.build(params, lr=1e-3 if case.anatomy.sign else 0.02)
    optimizer.param_groups[0]["maximize"] = maximize
    schedulers = SCHEDULERS[schedule](optimizer)
    sign = -1.0 if maximize else 1.0
    early = fit(optimizer, schedulers, sign, 1)
    late = fit(optimizer, schedulers, sign, 30)
    assert late > early if maximize else late < early


CYCLES: dict[str, Callable[[Any], Any]] = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=3),
}


@pytest.mark.parametrize("cycle", CYCLES)
def test_schedulers_that_cycle_betas_cycle_those_of_adam(engine, cycle):
    ours = svag.Adam(parameters(), **engine)
    theirs = torch.optim.Adam(parameters(), foreach=False)
    for o in (ours, theirs):
        scheduler = CYCLES[cycle](o)
        for n in range(10):
            train(o, steps=1, seed=n)
            scheduler.step()
    assert ours.param_groups[0]["betas"] == theirs.param_groups[0]["betas"] != (0.9, 0.999)
    assert_all_close(held(ours), held(theirs))


# ----------------------------------------------------------------------------------------- hooks


@every_method
def test_step_hooks_run_around_the_step_and_can_be_removed(case):
    optimizer = case.build([parameter(3)])
    before = held(optimizer)[0].detach().clone()
    seen: list[tuple[str, bool]] = []
    makers = {
        "all pre": register_optimizer_step_pre_hook,
        "all post": register_optimizer_step_post_hook,
        "pre": optimizer.register_step_pre_hook,
        "post": optimizer.register_step_post_hook,
    }

    def note(name: str, o: Any, args: Any, kwargs: Any) -> None:
        seen.append((name, torch.equal(held(o)[0], before)))

    handles = [register(functools.partial(note, name)) for name, register in makers.items()]
    step(optimizer, 1.0)
    assert seen == [("all pre", True), ("pre", True), ("post", False), ("all post", False)]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 4


def test_a_step_pre_hook_may_replace_the_arguments():
    optimizer = svag.MSVAG([parameter(3)])
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7.0), {}))
    assert optimizer.step() == 7.0


@every_method
def test_hooks_see_and_change_what_is_saved_and_loaded(case):
    optimizer = case.build([parameter(3)], lr=0.5)
    calls: list[str] = []

    def set_lr(described: Any, lr: float) -> Any:
        calls.append(f"lr={lr}")
        described["param_groups"][0]["lr"] = lr
        return described

    optimizer.register_state_dict_pre_hook(lambda o: set_lr(vars(o), 0.25) and None)
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "note": "kept"})
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("first"), prepend=True)
    saved = optimizer.state_dict()
    assert calls == ["first", "lr=0.25"]
    assert (saved["note"], saved["param_groups"][0]["lr"]) == ("kept", 0.25)

    calls.clear()
    optimizer.register_load_state_dict_pre_hook(lambda o, saved: set_lr(saved, 0.125))
    optimizer.register_load_state_dict_post_hook(
        lambda o: calls.append(f"loaded {o.param_groups[0]['lr']}")
    )
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("first"), prepend=True)
    given = case.build([parameter(3)], lr=0.75).state_dict()
    optimizer.load_state_dict(given)
    assert calls == ["first", "lr=0.125", "loaded 0.125"]
    assert given["param_groups"][0]["lr"] == 0.75  # hooks change a copy


def test_a_load_hook_may_rename_what_an_adam_checkpoint_calls_otherwise():
    """Pre-hooks must see the state before it is judged: this one repairs a foreign format."""
    theirs = torch.optim.Adam([parameter(3)])
    train(theirs, steps=2)
    given = copy.deepcopy(theirs.state_dict())
    given["state"][0]["momentum"] = given["state"][0].pop("exp_avg")

    def repair(o: Any, saved: dict[str, Any]) -> dict[str, Any]:
        state = {i: dict(entry) for i, entry in saved["state"].items()}
        for entry in state.values():
            entry["exp_avg"] = entry.pop("momentum")
        return {**saved, "state": state}

    ours = svag.Adam(copies(held(theirs)))
    ours.register_load_state_dict_pre_hook(repair)
    ours.load_state_dict(given)
    train(ours, theirs, steps=2, seed=2)
    assert_all_close(held(ours), held(theirs))


# ----------------------------------------------------------------------------- what torch's has


@every_method
def test_it_prints_as_torchs_do(case):
    text = repr(case.build([parameter(2)], lr=0.25))
    assert text.startswith(f"{case.kind.__name__} (\nParameter Group 0\n")
    assert "    lr: 0.25\n" in text
    assert text.endswith("\n)")


@every_method
def test_the_closure_runs_with_gradients_and_its_value_comes_back(case, engine):
    p = parameter(5)
    optimizer = case.build([p], **engine)
    returned = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        returned.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is returned[0]
        assert not torch.is_grad_enabled()
    assert optimizer.step(closure=closure) is returned[1]
    assert optimizer.step() is None
    assert returned[1] < returned[0]


def test_methods_and_subclasses_are_shown_under_their_own_names():
    class Clipped(svag.MSVAG):
        def step(self, closure: Any = None) -> Any:
            torch.nn.utils.clip_grad_value_(held(self), 0.1)
            return super().step(closure)

    optimizer, reference = Clipped([parameter(5)]), svag.MSVAG([parameter(5)])
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        train(optimizer, steps=3)
        for case in METHODS:
            train(case.build([parameter(3)]), steps=1)
        reference.zero_grad()
    for n in range(3):
        step(reference, drawn(held(reference), 100 + n)[0].clamp(-0.1, 0.1))
    assert torch.equal(held(optimizer)[0], held(reference)[0])
    names = ["Clipped", *(case.kind.__name__ for case in METHODS)]
    expected = {"Optimizer.zero_grad#MSVAG.zero_grad", *(f"Optimizer.step#{n}.step" for n in names)}
    assert expected <= {event.key for event in profile.key_averages()}


@every_method
def test_parameters_that_are_not_yet_initialized_wait(case):
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    optimizer = case.build(model.parameters())
    optimizer.step()
    model(torch.ones(6, 3))
    reference = case.build(copies(model.parameters()))
    train(optimizer, reference, steps=1)
    assert_all_equal(model.parameters(), held(reference))


def test_a_scheduler_sees_whether_a_step_has_been_taken():
    scheduler = lr_scheduler.StepLR(svag.MSVAG([parameter(2)]), 1)
    with pytest.warns(UserWarning, match=r"`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"):
        scheduler.step()
