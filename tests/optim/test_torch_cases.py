"""The cases that torch tests its own optimizers with, for every method and every way to step.

torch's tables (``torch.testing._internal.common_optimizers``) are used as they are: each
configuration of Adam must take torch's for-loop steps, each input that torch refuses must be
refused with torch's exception and torch's words.
"""

import copy
import importlib.util
import io
import pickle
import warnings
from collections.abc import Callable, Iterable
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
from svag import METHODS, Dissected
from svag.errors import InvalidOption


def torchs_tables() -> Any:
    """Import torch's tables; the import freezes ``torch.backends``, which is undone."""
    from torch.testing._internal import common_optimizers

    torch.backends.__allow_nonbracketed_mutation_flag = True
    return common_optimizers


def fused_is_served() -> bool:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    try:
        svag.Adam([p], fused=True).step()
    except InvalidOption:
        return False
    return True


TABLES = torchs_tables()
CLASSES: dict[str, Any] = {key: getattr(svag, row.optimizer) for key, row in METHODS.items()}
FUSED = fused_is_served()
WAYS: dict[str, dict[str, Any]] = {
    "as is best": {},
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    **({"fused": {"fused": True}} if FUSED else {}),
}

every_method = pytest.mark.parametrize("key", CLASSES)
every_way = pytest.mark.parametrize("way", WAYS)
every_stateful = pytest.mark.parametrize(
    "key", [key for key in CLASSES if METHODS[key].anatomy.buffers]
)

# 0-dimensional, empty, no multiple of a vector, one element more than a chunk of 8192
SHAPES = ((), (0,), (1,), (3, 4), (2, 0, 3), (5, 6, 7), (3, 2731))


def test_the_fused_engine_is_among_the_cases_where_numba_is_installed() -> None:
    assert (importlib.util.find_spec("numba") is not None) == FUSED


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [parameter(*shape, seed=n, dtype=dtype) for n, shape in enumerate(SHAPES)]


def give_gradients(params: Iterable[Tensor], seed: int) -> None:
    """A gradient in each tensor's dtype, the same whatever the dtype."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        drawn = torch.randn(p.shape, generator=generator, dtype=torch.float32)
        p.grad = drawn.to(p.dtype)


def held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer: torch.optim.Optimizer, steps: int = 4, seed: int = 1) -> None:
    for n in range(steps):
        give_gradients(held(optimizer), 100 * seed + n)
        optimizer.step()


def assert_all_close(ours: Iterable[Tensor], theirs: Iterable[Tensor], **bounds: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), **bounds)


def assert_all_equal(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


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
@every_way
def test_adam_steps_as_torchs_for_loop_does(
    way: str, configuration: str, theirs: Any, dtype: torch.dtype
) -> None:
    kwargs = copy.deepcopy(CONFIGURATIONS[configuration])
    own = ADAMW if theirs is torch.optim.AdamW else {}
    if way == "foreach" and isinstance(kwargs.get("lr"), Tensor) and not kwargs.get("capturable"):
        kwargs["lr"] = float(kwargs["lr"])  # refused, as torch does
    optimizer = svag.Adam(parameters(dtype), **{**own, **kwargs}, **WAYS[way])
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


COMMON: dict[str, dict[str, Any]] = {
    "default": {},
    "another step size": {"lr": 0.01},
    "weight decay": {"weight_decay": 0.1},
    "decoupled weight decay, maximize": {
        "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True
    },
    "weight decay, maximize": {"weight_decay": 0.1, "maximize": True},
    "capturable": {"capturable": True, "weight_decay": 0.1},
    "tensor step size, capturable": {"lr": torch.tensor(0.01), "capturable": True},
}  # fmt: skip


@pytest.mark.parametrize("options", COMMON)
@every_way
@every_method
def test_every_way_takes_the_steps_of_a_float64_loop(key: str, way: str, options: str) -> None:
    kwargs = copy.deepcopy(COMMON[options])
    optimizer = CLASSES[key](parameters(), **kwargs, **WAYS[way])
    reference = CLASSES[key](
        [nn.Parameter(p.detach().double()) for p in parameters()],
        **{**plain(kwargs), **WAYS["for-loop"]},
    )
    for o in (optimizer, reference):
        train(o, steps=5)
    ours = [p.double() for p in held(optimizer)]
    assert_all_close(ours, held(reference), rtol=2e-5, atol=2e-5)


@every_way
@every_method
def test_mixed_dtypes_in_one_optimizer(key: str, way: str) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
    # eps: what torch's own table takes for float16, whose v can be zero
    own = {"eps": 0.1} if key == "adam" else {}
    params = [
        parameter(*shape, seed=n, dtype=dtype)
        for n, shape in enumerate(((3, 5), (), (0,), (4, 1, 33)))
        for dtype in dtypes
    ]
    optimizer = CLASSES[key](params, **own, **WAYS[way])
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    alone = [
        CLASSES[key]([q for q in twins if q.dtype == dtype], **own, **WAYS["for-loop"])
        for dtype in dtypes
    ]
    for n in range(4):
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            p.grad = parameter(*p.shape, seed=10 * n + i, dtype=p.dtype).detach()
            q.grad = p.grad.clone()
        for o in (optimizer, *alone):
            o.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach(), q.detach())


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
def test_what_torchs_adam_refuses_is_refused_in_its_words(make: Any, error: str) -> None:
    assert_refused(make, ERRORS[error])


@pytest.mark.parametrize("error", UNIVERSAL)
@every_method
def test_what_every_torch_optimizer_refuses_is_refused(key: str, error: str) -> None:
    assert_refused(CLASSES[key], UNIVERSAL[error])


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
def test_misuse_is_refused_as_torchs_adam_refuses_it(key: str, misuse: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as theirs:
        MISUSES[misuse](torch.optim.Adam)
    with pytest.raises(type(theirs.value)) as ours:
        MISUSES[misuse](CLASSES[key])
    words = str(theirs.value).rstrip(".").replace("Adam does", f"{CLASSES[key].__name__} does")
    words = words.replace(f"{torch.optim.Adam}", f"{CLASSES[key]}")
    if misuse == "fused on a device that has no fused engine":
        words = words.split(": [")[0]  # torch's list of devices
    assert str(ours.value).startswith(words)


# ------------------------------------------------------------------------------ groups, step size


@every_way
@every_method
def test_groups_with_their_own_options_step_as_optimizers_of_their_own(key: str, way: str) -> None:
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    )
    groups = [{"params": parameters(), **options} for options in settings]
    together = CLASSES[key](iter(groups), lr=0.05, **WAYS[way])
    apart = [CLASSES[key](parameters(), **{"lr": 0.05, **o}, **WAYS[way]) for o in settings]
    for n in range(4):
        for group, single in zip(together.param_groups, apart, strict=True):
            give_gradients(group["params"], n)
            give_gradients(held(single), n)
            single.step()
        together.step()
    assert_all_equal(held(together), [p for single in apart for p in held(single)])


@every_way
@every_method
def test_a_group_added_between_steps_begins_at_its_own_first_step(key: str, way: str) -> None:
    optimizer = CLASSES[key]([parameter(7)], **WAYS[way])
    train(optimizer, 3)
    optimizer.add_param_group({"params": parameter(9, seed=1), "lr": 0.02})
    fresh = CLASSES[key]([parameter(9, seed=1)], lr=0.02, **WAYS[way])
    for n in range(3):
        give_gradients(held(optimizer), n)
        held(fresh)[0].grad = held(optimizer)[1].grad.clone()
        optimizer.step()
        fresh.step()
    assert torch.equal(held(optimizer)[1], held(fresh)[0])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "foreach"])
@every_method
def test_a_tensor_step_size_of_any_shape_may_change_in_place(
    key: str, way: str, shape: tuple[int, ...]
) -> None:
    lr = torch.full(shape, 0.25)
    optimizer = CLASSES[key](parameters(), lr=lr, **WAYS[way])
    reference = CLASSES[key](parameters(), lr=0.25, **WAYS["for-loop"])
    for n in range(4):
        train(optimizer, 1, seed=n)
        train(reference, 1, seed=n)
        lr.mul_(0.5)
        reference.param_groups[0]["lr"] *= 0.5
    assert optimizer.param_groups[0]["lr"] is lr
    assert_all_close(held(optimizer), held(reference), rtol=2e-5, atol=2e-5)


@every_method
def test_groups_that_served_one_optimizer_may_serve_another(key: str) -> None:
    """torch writes its defaults into the caller's groups, so they come back with them."""
    groups = [{"params": [parameter(3)], "lr": 0.25}, {"params": [parameter(4)]}]
    CLASSES[key](groups, weight_decay=0.1)
    again = CLASSES[key](groups)
    assert [group["lr"] for group in again.param_groups] == [0.25, METHODS[key].lr]
    rebuilt = CLASSES[key](again.param_groups)
    assert [group["lr"] for group in rebuilt.param_groups] == [0.25, METHODS[key].lr]
    train(rebuilt, 2)


@every_way
@every_method
def test_maximize_is_descent_on_the_negated_gradient(key: str, way: str) -> None:
    up = CLASSES[key](parameters(), maximize=True, **WAYS[way])
    down = CLASSES[key](parameters(), **WAYS[way])
    for n in range(4):
        for o in (up, down):
            give_gradients(held(o), n)
        for p in held(up):
            p.grad.neg_()
        up.step()
        down.step()
    assert_all_equal(held(up), held(down))


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


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("maximize", [False, True])
@every_method
def test_it_goes_the_right_direction_under_any_schedule(
    key: str, maximize: bool, schedule: str
) -> None:
    params = [parameter(10, 5), parameter(10, seed=1)]
    optimizer = CLASSES[key](params, lr=1e-3 if METHODS[key].anatomy.sign else 0.02)
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
@every_way
def test_schedulers_that_cycle_betas_cycle_those_of_adam(way: str, cycle: str) -> None:
    ours = svag.Adam(parameters(), **WAYS[way])
    theirs = torch.optim.Adam(parameters(), foreach=False)
    for o in (ours, theirs):
        scheduler = CYCLES[cycle](o)
        for n in range(10):
            train(o, 1, seed=n)
            scheduler.step()
    assert ours.param_groups[0]["betas"] == theirs.param_groups[0]["betas"] != (0.9, 0.999)
    assert_all_close(held(ours), held(theirs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "foreach"])
@every_method
def test_schedulers_write_into_a_tensor_step_size(key: str, way: str) -> None:
    lr = torch.tensor(0.2)
    one = CLASSES[key](parameters(), lr=lr, **WAYS[way])
    other = CLASSES[key](parameters(), lr=0.2, **WAYS[way])
    for o in (one, other):
        scheduler = lr_scheduler.ExponentialLR(o, 0.5)
        for n in range(4):
            train(o, 1, seed=n)
            scheduler.step()
    assert one.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.2 * 0.5**4)
    assert_all_close(held(one), held(other), rtol=2e-5, atol=2e-5)


@every_method
def test_averaged_models_and_their_scheduler(key: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    data = [torch.randn(8, 4) for _ in range(4)]
    optimizer = CLASSES[key](model.parameters(), lr=1e-2)
    averaged = swa_utils.AveragedModel(model)
    scheduler = swa_utils.SWALR(optimizer, swa_lr=5e-3, anneal_epochs=2)
    seen = []
    for x in data:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
        scheduler.step()
        seen.append(model[0].weight.detach().clone())
    swa_utils.update_bn(data, averaged)
    torch.testing.assert_close(averaged.module[0].weight.detach(), torch.stack(seen).mean(0))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


# ------------------------------------------------------------------------------------ state_dict


@every_way
@every_method
def test_a_loaded_state_goes_on_as_the_one_that_was_saved(key: str, way: str) -> None:
    """torch's ``test_state_dict_deterministic``."""
    optimizer = CLASSES[key](parameters(), weight_decay=0.1, **WAYS[way])
    train(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    clones = [nn.Parameter(p.detach().clone()) for p in held(optimizer)]
    other = CLASSES[key](clones, lr=0.7)
    other.load_state_dict(copy.deepcopy(saved))
    for o in (optimizer, other):
        train(o, 3, seed=2)
    assert_all_equal(held(other), held(optimizer))
    assert str(saved["param_groups"]) == str(other.state_dict()["param_groups"])
    again = CLASSES[key]([nn.Parameter(p.detach().clone()) for p in clones])
    again.load_state_dict(copy.deepcopy(other.state_dict()))
    for o in (other, again):
        train(o, 3, seed=3)
    assert_all_equal(held(other), held(again))


@pytest.mark.parametrize("saver", WAYS)
@pytest.mark.parametrize("loader", WAYS)
@every_stateful
def test_a_state_saved_by_one_way_serves_another(key: str, saver: str, loader: str) -> None:
    optimizer = CLASSES[key](parameters(), **WAYS[saver])
    train(optimizer, 3)
    clones = [nn.Parameter(p.detach().clone()) for p in held(optimizer)]
    other = CLASSES[key](clones, **WAYS[loader])
    saved = copy.deepcopy(optimizer.state_dict())
    for flag in ("foreach", "fused"):  # a saved flag would be taken over, as in torch
        saved["param_groups"][0][flag] = other.param_groups[0][flag]
    other.load_state_dict(saved)
    for o in (optimizer, other):
        train(o, 3, seed=2)
    assert_all_close(held(other), held(optimizer), rtol=2e-5, atol=2e-5)


@every_method
def test_a_state_follows_the_order_of_the_parameters_not_their_identity(key: str) -> None:
    first, second = parameter(5), parameter(5, seed=1)
    optimizer = CLASSES[key]([first, second])
    train(optimizer, 3)
    a, b = (nn.Parameter(p.detach().clone()) for p in (first, second))
    saved = copy.deepcopy(optimizer.state_dict())
    group = saved["param_groups"][0]
    group["params"].reverse()
    shuffled = CLASSES[key]([b, a])
    shuffled.load_state_dict(saved)
    for n in range(3):
        give_gradients([first, second], n)
        a.grad, b.grad = first.grad.clone(), second.grad.clone()
        optimizer.step()
        shuffled.step()
    assert_all_equal([a, b], [first, second])


@every_way
@every_method
def test_a_state_without_todays_flags_loads(key: str, way: str) -> None:
    """torch's ``test_can_load_older_state_dict``."""
    optimizer = CLASSES[key](parameters(), weight_decay=0.1, **WAYS[way])
    train(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    flags = ("foreach", "differentiable", "maximize", "capturable", "fused")
    for flag in (*flags, "decoupled_weight_decay"):
        del saved["param_groups"][0][flag]
    clones = [nn.Parameter(p.detach().clone()) for p in held(optimizer)]
    other = CLASSES[key](clones, **WAYS[way])
    other.load_state_dict(saved)
    for o in (optimizer, other):
        train(o, 2, seed=2)
    assert_all_equal(clones, held(optimizer))


@every_way
@every_stateful
def test_a_step_that_is_no_tensor_loads(key: str, way: str) -> None:
    """torch's ``test_load_nontensor_step``."""
    optimizer = CLASSES[key](parameters(), **WAYS[way])
    train(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = entry["step"].item()
    clones = [nn.Parameter(p.detach().clone()) for p in held(optimizer)]
    other = CLASSES[key](clones, **WAYS[way])
    other.load_state_dict(saved)
    for o in (optimizer, other):
        train(o, 2, seed=2)
    assert_all_equal(clones, held(optimizer))
    assert {float(other.state[p]["step"]) for p in clones} == {5.0}


@every_way
@every_method
def test_weights_only_loads_what_was_saved(key: str, way: str) -> None:
    """torch's ``test_save_load_equality_with_weights_only``."""
    optimizer = CLASSES[key](parameters(), lr=torch.tensor(0.1), **{**WAYS[way], "foreach": None})
    train(optimizer, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    loaded = [
        torch.load(io.BytesIO(file.getvalue()), weights_only=weights_only)
        for weights_only in (True, False)
    ]
    for state in loaded:
        torch.testing.assert_close(state["state"], optimizer.state_dict()["state"], rtol=0, atol=0)
        assert state["param_groups"] == optimizer.state_dict()["param_groups"]


@every_stateful
def test_a_loaded_state_takes_the_dtype_of_its_parameter_but_the_step_does_not(key: str) -> None:
    optimizer = CLASSES[key]([parameter(6)])
    for _ in range(300):  # a bfloat16 step would stop at 256
        give_gradients(held(optimizer), 0)
        optimizer.step()
    for dtype in (torch.float64, torch.bfloat16):
        p = nn.Parameter(held(optimizer)[0].detach().to(dtype))
        other = CLASSES[key]([p])
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert {other.state[p][name].dtype for name in METHODS[key].anatomy.buffers} == {dtype}
        assert other.state[p]["step"].dtype == torch.float32
        train(other, 1)
        assert float(other.state[p]["step"]) == 301


@every_stateful
def test_loading_leaves_the_given_state_as_it_was(key: str) -> None:
    donor = CLASSES[key]([parameter(6)])
    train(donor, 2)
    given = donor.state_dict()
    kept = copy.deepcopy(given)
    taker = CLASSES[key]([parameter(6, dtype=torch.float64)], lr=0.3)
    taker.load_state_dict(given)
    taker.param_groups[0]["lr"] = 0.4
    taker.add_param_group({"params": parameter(2)})
    assert given["param_groups"] == kept["param_groups"]
    torch.testing.assert_close(given["state"], kept["state"], rtol=0, atol=0)


@every_method
def test_names_of_parameters_are_kept_and_cross_between_named_and_unnamed(key: str) -> None:
    """torch's ``test_can_load_from_to_named_state_dict``."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    named = CLASSES[key](model.named_parameters())
    train(named, 2)
    saved = named.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
    unnamed = CLASSES[key](copy.deepcopy(model).parameters())
    unnamed.load_state_dict(copy.deepcopy(saved))
    back = CLASSES[key](copy.deepcopy(model).named_parameters())
    bare = copy.deepcopy(saved)
    del bare["param_groups"][0]["param_names"]
    back.load_state_dict(bare)
    assert back.param_groups[0]["param_names"] == ["weight", "bias"]
    for o in (named, unnamed, back):
        train(o, 2, seed=2)
    assert_all_equal(held(unnamed), held(named))
    assert_all_equal(held(back), held(named))


# ----------------------------------------------------------------------------------------- hooks


@every_method
def test_step_hooks_run_around_the_step_and_can_be_removed(key: str) -> None:
    optimizer = CLASSES[key]([parameter(3)])
    before = held(optimizer)[0].detach().clone()
    seen: list[tuple[str, bool]] = []

    def hook(name: str) -> Callable[..., None]:
        def note(o: Any, args: Any, kwargs: Any) -> None:
            seen.append((name, torch.equal(held(o)[0], before)))

        return note

    handles = [
        register_optimizer_step_pre_hook(hook("all pre")),
        register_optimizer_step_post_hook(hook("all post")),
        optimizer.register_step_pre_hook(hook("pre")),
        optimizer.register_step_post_hook(hook("post")),
    ]
    give_gradients(held(optimizer), 1)
    optimizer.step()
    assert seen == [("all pre", True), ("pre", True), ("post", False), ("all post", False)]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 4


def test_a_step_pre_hook_may_replace_the_arguments() -> None:
    optimizer = svag.MSVAG([parameter(3)])
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7.0), {}))
    assert optimizer.step() == 7.0


@every_method
def test_state_dict_hooks_see_and_change_what_is_saved(key: str) -> None:
    optimizer = CLASSES[key]([parameter(3)], lr=0.5)
    calls: list[str] = []

    def before(o: Any) -> None:
        calls.append("pre")
        o.param_groups[0]["lr"] = 0.25

    def after(o: Any, saved: dict[str, Any]) -> dict[str, Any]:
        calls.append("post")
        return {**saved, "note": "kept"}

    optimizer.register_state_dict_pre_hook(before)
    optimizer.register_state_dict_post_hook(after)
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("first"), prepend=True)
    saved = optimizer.state_dict()
    assert calls == ["first", "pre", "post"]
    assert (saved["note"], saved["param_groups"][0]["lr"]) == ("kept", 0.25)


@every_method
def test_load_state_dict_hooks_see_and_change_what_is_loaded(key: str) -> None:
    optimizer = CLASSES[key]([parameter(3)], lr=0.5)
    calls: list[str] = []

    def before(o: Any, saved: dict[str, Any]) -> dict[str, Any]:
        calls.append("pre")
        saved["param_groups"][0]["lr"] = 0.125
        return saved

    def after(o: Any) -> None:
        calls.append("post")
        assert o.param_groups[0]["lr"] == 0.125

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("first"), prepend=True)
    given = CLASSES[key]([parameter(3)], lr=0.75).state_dict()
    optimizer.load_state_dict(given)
    assert calls == ["first", "pre", "post"]
    assert given["param_groups"][0]["lr"] == 0.75  # hooks change a copy


def test_a_load_hook_may_rename_what_an_adam_checkpoint_calls_otherwise() -> None:
    """Pre-hooks must see the state before it is judged: this one repairs a foreign format."""
    theirs = torch.optim.Adam([parameter(3)])
    train(theirs, 2)
    given = copy.deepcopy(theirs.state_dict())
    given["state"][0]["momentum"] = given["state"][0].pop("exp_avg")

    def repair(o: Any, saved: dict[str, Any]) -> dict[str, Any]:
        state = {i: dict(entry) for i, entry in saved["state"].items()}
        for entry in state.values():
            entry["exp_avg"] = entry.pop("momentum")
        return {**saved, "state": state}

    ours = svag.Adam([nn.Parameter(held(theirs)[0].detach().clone())])
    ours.register_load_state_dict_pre_hook(repair)
    ours.load_state_dict(given)
    for o in (ours, theirs):
        train(o, 2, seed=2)
    assert_all_close(held(ours), held(theirs), rtol=2e-5, atol=2e-5)


# ------------------------------------------------------------------------------------ no movement


@every_way
@every_method
def test_a_step_without_gradients_does_nothing(key: str, way: str) -> None:
    optimizer = CLASSES[key](parameters(), weight_decay=0.1, **WAYS[way])
    optimizer.step()
    assert_all_equal(held(optimizer), parameters())
    assert all(not optimizer.state[p] for p in held(optimizer))
    train(optimizer, 2)
    after, state = copy.deepcopy(held(optimizer)), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    optimizer.step()
    assert_all_equal(held(optimizer), after)
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


@every_way
@every_method
def test_zero_gradients_move_nothing_without_weight_decay(key: str, way: str) -> None:
    for maximize in (False, True):
        optimizer = CLASSES[key](parameters(), maximize=maximize, **WAYS[way])
        for _ in range(3):
            for p in held(optimizer):
                p.grad = torch.zeros_like(p)
            optimizer.step()
        assert_all_equal(held(optimizer), parameters())


@every_way
@every_stateful
def test_state_shares_no_memory_with_parameters_or_gradients(key: str, way: str) -> None:
    optimizer = CLASSES[key](parameters(), **WAYS[way])
    train(optimizer, 1)
    addresses = []
    for p in held(optimizer):
        tensors = [p, p.grad, *optimizer.state[p].values()]
        addresses += [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
    assert len(addresses) == len(set(addresses))
    for p in held(optimizer):
        assert all(not t.requires_grad and t.is_leaf for t in optimizer.state[p].values())
        assert p.is_leaf
        assert p.requires_grad


# ----------------------------------------------------------------------------- what torch's has


@every_method
def test_defaults_hold_torchs_options(key: str) -> None:
    theirs = torch.optim.Adam([parameter(2)]).defaults
    ours = CLASSES[key]([parameter(2)]).defaults
    own = {"betas", "eps", "amsgrad"} if key != "adam" else set()
    assert theirs.keys() - ours.keys() == own
    if key == "adam":
        assert {name: ours[name] for name in theirs} == theirs


@every_method
def test_it_prints_as_torchs_do(key: str) -> None:
    text = repr(CLASSES[key]([parameter(2)], lr=0.25))
    assert text.startswith(f"{CLASSES[key].__name__} (\nParameter Group 0\n")
    assert "    lr: 0.25\n" in text
    assert text.endswith("\n)")


@every_way
@every_method
def test_copies_share_nothing_and_keep_every_public_attribute(key: str, way: str) -> None:
    optimizer = CLASSES[key](parameters(), **WAYS[way])
    train(optimizer, 2)
    for clone in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        twin = clone(optimizer)
        public = {name for name in vars(optimizer) if not name.startswith("_")}
        assert public == {name for name in vars(twin) if not name.startswith("_")}
        theirs = copy.deepcopy(held(twin))
        train(optimizer, 2, seed=2)
        assert_all_equal(held(twin), theirs)
        train(twin, 2, seed=2)
        assert_all_equal(held(twin), held(optimizer))


@every_way
@every_method
def test_the_closure_runs_with_gradients_and_its_value_comes_back(key: str, way: str) -> None:
    p = parameter(5)
    optimizer = CLASSES[key]([p], **WAYS[way])
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


@every_method
def test_the_profiler_shows_the_methods_name(key: str) -> None:
    optimizer = CLASSES[key]([parameter(3)])
    give_gradients(held(optimizer), 1)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        optimizer.step()
        optimizer.zero_grad()
    name = CLASSES[key].__name__
    shown = {event.key for event in profile.key_averages()}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= shown


def test_a_subclass_steps_and_is_shown_under_its_own_name() -> None:
    class Clipped(svag.MSVAG):
        def step(self, closure: Any = None) -> Any:
            torch.nn.utils.clip_grad_value_(held(self), 0.1)
            return super().step(closure)

    optimizer, reference = Clipped([parameter(5)]), svag.MSVAG([parameter(5)])
    with torch.profiler.profile(acc_events=True) as profile:
        train(optimizer, 3)
    for n in range(3):
        give_gradients(held(reference), 100 + n)
        held(reference)[0].grad.clamp_(-0.1, 0.1)
        reference.step()
    assert torch.equal(held(optimizer)[0], held(reference)[0])
    assert "Optimizer.step#Clipped.step" in {event.key for event in profile.key_averages()}


@every_way
@every_stateful
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_the_default_dtype_changes_nothing(key: str, way: str, default: torch.dtype) -> None:
    """With a bfloat16 step the count would stop at 256, and so would the debiasing."""
    plainly, under = (CLASSES[key]([parameter(3)], **WAYS[way]) for _ in range(2))
    give_gradients(held(plainly), 1)
    held(under)[0].grad = held(plainly)[0].grad.clone()
    for _ in range(258):
        plainly.step()
    torch.set_default_dtype(default)
    try:
        for _ in range(258):
            under.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(under.state[held(under)[0]]["step"]) == 258
    assert torch.equal(held(under)[0], held(plainly)[0])


@every_way
@every_method
def test_the_default_device_changes_nothing(key: str, way: str) -> None:
    """State is where its parameter is, and the step on the CPU."""
    plainly, under = (CLASSES[key](parameters(), **WAYS[way]) for _ in range(2))
    train(plainly, 3)
    for n in range(3):
        give_gradients(held(under), 100 + n)
        with torch.device("meta"):
            under.step()
    assert_all_equal(held(under), held(plainly))
    assert {t.device.type for p in held(under) for t in under.state[p].values()} <= {"cpu"}


@every_way
@every_method
def test_complex_parameters_step_as_pairs_of_reals(key: str, way: str) -> None:
    """torch's ``test_complex_2d``, for both complex dtypes."""
    for real_dtype in (torch.float32, torch.float64):
        reals = [parameter(*shape, 2, seed=n, dtype=real_dtype) for n, shape in enumerate(SHAPES)]
        pairs = [nn.Parameter(torch.view_as_complex(p.detach().clone())) for p in reals]
        one, other = (CLASSES[key](ps, weight_decay=0.1, **WAYS[way]) for ps in (reals, pairs))
        for n in range(4):
            give_gradients(reals, n)
            for p, q in zip(reals, pairs, strict=True):
                q.grad = torch.view_as_complex(p.grad.clone())
            one.step()
            other.step()
        assert_all_equal([torch.view_as_real(q.detach()) for q in pairs], reals)
        for q in pairs:
            for name in METHODS[key].anatomy.buffers:
                assert other.state[q][name].is_complex()


@every_method
def test_parameters_that_are_not_yet_initialized_wait(key: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    optimizer = CLASSES[key](model.parameters())
    optimizer.step()
    x = torch.randn(6, 3)
    model(x).square().mean().backward()
    reference = CLASSES[key](copy.deepcopy(model).parameters())
    for p, q in zip(model.parameters(), held(reference), strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    reference.step()
    assert_all_equal(model.parameters(), held(reference))


@every_method
def test_wrapper_subclasses_step_by_their_own_operations(key: str) -> None:
    """A tensor without memory of its own, as quantized ones are: a pointer to it is no use."""
    from torch.testing._internal.two_tensor import TwoTensor

    a, b = parameter(5).detach(), parameter(5, seed=1).detach()
    wrapped, plain_ = nn.Parameter(TwoTensor(a.clone(), b.clone())), parameter(3, seed=2)
    ours = CLASSES[key]([wrapped, plain_])
    apart = CLASSES[key]([nn.Parameter(a), nn.Parameter(b), parameter(3, seed=2)])
    for n in range(3):
        give_gradients(held(apart), n)
        one, other, third = (p.grad.clone() for p in held(apart))
        wrapped.grad, plain_.grad = TwoTensor(one, other), third
        ours.step()
        apart.step()
    assert_all_close([wrapped.a, wrapped.b, plain_], held(apart), rtol=2e-5, atol=2e-5)


def test_every_class_is_an_optimizer_of_torch_with_its_own_step() -> None:
    for make in CLASSES.values():
        assert issubclass(make, Dissected)
        assert issubclass(make, torch.optim.Optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = svag.MSVAG([parameter(2)])
        scheduler = lr_scheduler.StepLR(optimizer, 1)
        words = r"`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"
        with pytest.raises(UserWarning, match=words):
            scheduler.step()  # torch sees whether our step has been called
