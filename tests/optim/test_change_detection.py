"""What a fused step notices of its tensors, groups and states, and that it keeps none alive."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import svag
from svag.optim.change_detection import Sight
from svag.optim.engines.kernel_spec import EMPTY

from .stepping import step

NAMES = ["exp_avg", "exp_avg_sq", "step"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


def tensors(dtype: torch.dtype = torch.float32) -> tuple[list[Any], list[dict[str, Any]]]:
    """A vector within a larger memory, a transposed matrix, nothing, a scalar, images."""
    values = [
        torch.zeros(9, dtype=dtype)[2:7],
        torch.zeros(3, 4, dtype=dtype).t(),
        torch.zeros(0, 3, dtype=dtype),
        torch.zeros((), dtype=dtype),
        torch.zeros(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last),
    ]
    params = [value.requires_grad_() for value in values]
    for param in params:
        param.grad = torch.zeros_like(param)
    states = [
        {"step": torch.zeros(()), **{name: torch.zeros_like(param) for name in NAMES[:2]}}
        for param in params
    ]
    return params, states


def addresses(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def sight(params: Any, **options: bool) -> Sight:
    every = range(len(params))
    return Sight(every, every, NAMES, **{"within_batch": False, "distributed": False, **options})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_found_where_they_are(dtype):
    params, states = tensors(dtype)
    seen = sight(params)
    assert seen.look(params, states)
    columns = {"param": params, **{name: [state[name] for state in states] for name in NAMES}}
    assert seen.moved == [*columns, "grad"]
    for name, column in columns.items():
        assert seen.addresses[name] == addresses(column)
    gradients = addresses([param.grad for param in params])
    assert seen.addresses["grad"] == [place or EMPTY for place in gradients]
    assert seen.look(params, states)
    assert seen.moved == []


def test_gradients_are_found_anew():
    params, states = tensors()
    seen = sight(params)
    seen.look(params, states)
    held = []
    for _ in range(3):
        held += [param.grad for param in params]
        for param in params:
            param.grad = torch.ones_like(param)
        assert seen.look(params, states)
        assert seen.moved == ["grad"]
        assert seen.addresses["grad"][:2] == addresses([param.grad for param in params[:2]])


def test_gradients_may_come_and_go():
    params, states = tensors()
    params[1].grad = None
    seen = sight(params)
    for gone in (1, 3, 0, 4, 2):
        for param in params:
            param.grad = torch.ones_like(param)
        params[gone].grad = None
        assert seen.look(params, states)
        assert [place for place, at in enumerate(seen.addresses["grad"]) if at == 0] == [gone]


def replace(state: dict[str, Any], name: str) -> None:
    state[name] = state[name].clone()


def exchange_names(state: dict[str, Any]) -> None:
    """Give two averages each other's name, in each other's place."""
    step, mean, square = state.values()
    state.clear()
    state.update(step=step, exp_avg_sq=mean, exp_avg=square)


def recast(average: Tensor) -> None:
    """Read the same memory as halves, as an allocator may give it out again."""
    average.data = average.data.view(torch.bfloat16)[: len(average)]


def reread(step: Tensor) -> None:
    """Read the memory of a step as an integer, as an allocator may give it out again."""
    step.data = step.data.view(torch.int32)


def shorten(average: Tensor) -> None:
    average.data = average.data[:3]


CHANGES: dict[str, Callable[[list[Any], list[dict[str, Any]]], object]] = {
    "parameter elsewhere": lambda p, s: setattr(p[0], "data", p[0].data.clone()),
    "parameter of another dtype": lambda p, s: setattr(p[1], "data", p[1].data.double()),
    "shorter, in the same place": lambda p, s: setattr(p[0], "data", p[0].data[:3]),
    "parameter turned where it is": lambda p, s: torch.no_grad()(p[1].t_)(),
    "as others' data": lambda p, s: setattr(p[1], "data", p[1].data.reshape(3, 4)),
    "average replaced": lambda p, s: replace(s[1], "exp_avg"),
    "two averages renamed": lambda p, s: exchange_names(s[0]),
    "step of another dtype in its place": lambda p, s: reread(s[1]["step"]),
    "step replaced": lambda p, s: replace(s[4], "step"),
    "average elsewhere": lambda p, s: setattr(s[0]["exp_avg"], "data", torch.zeros(5)),
    "average turned where it is": lambda p, s: s[1]["exp_avg_sq"].t_(),
    "vector of another dtype in its place": lambda p, s: recast(s[0]["exp_avg"]),
    "shorter average in its place": lambda p, s: shorten(s[0]["exp_avg_sq"]),
    "average gone": lambda p, s: s[3].pop("exp_avg_sq"),
    "state empty": lambda p, s: s[4].clear(),
    "gradient turned": lambda p, s: setattr(p[1], "grad", torch.zeros(4, 3)),
    "gradient laid out anew": lambda p, s: setattr(p[4], "grad", p[4].grad.contiguous()),
    "gradient with gaps": lambda p, s: setattr(p[0], "grad", torch.zeros(10)[::2]),
    "gradient of its conjugate": lambda p, s: setattr(p[0], "grad", p[0].grad.conj()),
    "gradient of its negative": lambda p, s: setattr(p[0], "grad", torch._neg_view(p[0].grad)),
    "parameter of its negative": lambda p, s: setattr(p[0], "data", torch._neg_view(p[0].data)),
    "average of its negative": lambda p, s: s[0].update(exp_avg=torch._neg_view(s[0]["exp_avg"])),
    "all turned": lambda p, s: (p[1].data.t_(), s[1]["exp_avg"].t_(), p[1].grad.t_()),
    "sparse gradient": lambda p, s: setattr(p[1], "grad", torch.zeros(4, 3).to_sparse()),
    "gradient that lies nowhere": lambda p, s: setattr(p[0], "grad", Nowhere(5)),
}


class Nowhere(Tensor):
    """A tensor without memory, as the wrappers of other libraries are."""

    @staticmethod
    def __new__(cls, size: int) -> "Nowhere":
        return Tensor._make_wrapper_subclass(cls, (size,))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Nowhere(5) if func is torch.ops.aten.detach.default else NotImplemented


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change, capfd):
    params, states = tensors(torch.complex64 if "conjugate" in change else torch.float32)
    seen = sight(params)
    assert seen.look(params, states)
    assert seen.look(params, states)
    CHANGES[change](params, states)
    assert not seen.look(params, states)
    assert capfd.readouterr() == ("", "")


def test_a_parameter_can_be_swapped_and_that_is_noticed():
    """torch.utils.swap_tensors refuses where anything refers to the tensor in C++."""
    params, states = tensors()
    seen = sight(params)
    assert seen.look(params, states)
    seen.count_changes()
    other = torch.zeros(5)
    params[0].grad = None
    torch.utils.swap_tensors(params[0], other)
    del other
    params[0].requires_grad_().grad = torch.zeros(5)
    assert not seen.look(params, states)


def test_autograd_hears_of_what_was_updated_and_of_nothing_else():
    params, states = tensors()
    params[1].grad = None
    seen = sight(params)
    assert seen.look(params, states)
    before = [param._version for param in params]
    seen.count_changes()
    versions = [version + (place != 1) for place, version in enumerate(before)]
    assert [param._version for param in params] == versions
    assert [state["exp_avg"]._version for state in states] == [1, 0, 1, 1, 1]


def test_a_refused_step_leaves_no_address_behind(capfd):
    """What a look has seen before another gradient is refused must not count as known.

    Before torch 2.13 asking a sparse tensor for its strides printed a C++ stack.
    """
    params = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    optimizer = svag.SGD(params, lr=1.0)
    step(optimizer, 1.0)
    capfd.readouterr()  # that a loop is compiled
    params[0].grad = later = torch.full((4,), 5.0)
    params[1].grad = torch.ones(4).to_sparse()
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*sparse=False"):
        optimizer.step()
    assert capfd.readouterr() == ("", "")
    params[1].grad = torch.ones(4)
    optimizer.step()
    assert params[0].grad is later
    assert params[0].tolist() == [-6.0] * 4
    assert params[1].tolist() == [-2.0] * 4


def test_an_interrupted_step_leaves_no_address_behind(monkeypatch):
    """Ctrl-C between the look at a gradient and the note of where it is."""
    cpu = pytest.importorskip("svag.optim.engines.cpu")
    param = nn.Parameter(torch.zeros(4))
    optimizer = svag.SGD([param], lr=1.0)
    step(optimizer, 1.0)
    first, param.grad = param.grad, torch.full((4,), 5.0)
    with monkeypatch.context() as patch:
        patch.setattr(cpu.Table, "place", interrupt)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    optimizer.step()
    assert first.tolist() == [1.0] * 4  # still there, where a step must not look
    assert param.tolist() == [-6.0] * 4


def test_a_step_that_is_interrupted_while_it_compiles_does_not_count(monkeypatch):
    cpu = pytest.importorskip("svag.optim.engines.cpu")
    param = nn.Parameter(torch.zeros(4))
    optimizer = svag.MSVAG([param], lr=1.0)
    monkeypatch.setattr(cpu, "_loop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        step(optimizer, 1.0)
    assert optimizer.state[param]["step"] == 0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


PUT_AWAY: dict[str, Callable[[Any, dict[str, Any]], object]] = {
    "memory given back": lambda p, s: p.untyped_storage().resize_(0),
    "other data": lambda p, s: setattr(p, "data", torch.empty(0)),
    "another dtype": lambda p, s: setattr(p, "data", p.data.half()),
    "averages elsewhere": lambda p, s: s.update(exp_avg=s["exp_avg"].to("meta")),
    "averages given back": lambda p, s: s["exp_avg"].untyped_storage().resize_(0),
    "averages gone": lambda p, s: s.pop("exp_avg_sq"),
    "no step": lambda p, s: s.update(step=None),
}


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("change", PUT_AWAY)
def test_what_takes_no_step_may_be_put_away(change, fused):
    """A frozen layer that is moved, cast or freed, until it has a gradient again."""
    pytest.importorskip("numba")
    params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = svag.MSVAG(params, lr=1.0, fused=fused)
    step(optimizer, 1.0)
    frozen = params[1]
    frozen.grad = None
    PUT_AWAY[change](frozen, optimizer.state[frozen])
    names = set(optimizer.state[frozen])
    for _ in range(2):
        step(optimizer, 1.0, None)
    assert params[0].tolist() == [-3.0] * 3
    assert set(optimizer.state[frozen]) == names
    assert holds(optimizer)
    frozen.data, frozen.grad = torch.zeros(3), torch.ones(3)
    optimizer.state[frozen].clear()
    optimizer.step()
    assert frozen.tolist() == [-1.0] * 3


@pytest.mark.parametrize("steps", [0, 1])
def test_a_gradient_of_zeros_without_memory_is_one_of_zeros(steps):
    ends = []
    for make in (torch._efficientzerotensor, torch.zeros):
        param = nn.Parameter(torch.ones(5))
        optimizer = svag.MSVAG([param])
        for _ in range(steps):
            step(optimizer, 1.0)
        param.grad = make(5)
        optimizer.step()
        ends.append(param.detach().clone())
    torch.testing.assert_close(*ends)


def exchange(lists: Any, states: Any) -> None:
    lists[0][0], lists[1][0] = lists[1][0], lists[0][0]


def exchange_states(lists: Any, states: Any) -> None:
    """Keep the states in their order, under each other's parameters."""
    first, second, *others = states.items()
    states.clear()
    states.update(dict([(second[0], first[1]), (first[0], second[1]), *others]))


MEMBERS: dict[str, Callable[[Any, Any], object]] = {
    "a parameter more": lambda lists, states: lists[1].append(nn.Parameter(torch.zeros(2))),
    "a parameter less": lambda lists, states: lists[1].pop(),
    "another of the same value": lambda lists, states: lists[0].__setitem__(
        1, nn.Parameter(lists[0][1].detach().clone())
    ),
    "two exchanged": exchange,
    "one in the next group": lambda lists, states: lists[1].insert(0, lists[0].pop()),
    "a state more": lambda lists, states: states.update({nn.Parameter(torch.zeros(2)): {}}),
    "a state less": lambda lists, states: states.popitem(),
    "no state": lambda lists, states: states.clear(),
    "states of each other": exchange_states,
}


def optimizer_of_groups() -> svag.MSVAG:
    groups = [{"params": [nn.Parameter(torch.zeros(2)) for _ in range(n)]} for n in (3, 2)]
    optimizer = svag.MSVAG(groups)
    step(optimizer, 1.0)
    return optimizer


def holds(optimizer: svag.MSVAG) -> bool:
    assert optimizer._plan is not None
    return optimizer._plan.holds(optimizer.anatomy, optimizer.param_groups, optimizer.state)


@pytest.mark.parametrize("change", MEMBERS)
def test_any_other_member_of_groups_and_states_is_noticed(change):
    pytest.importorskip("numba")
    optimizer = optimizer_of_groups()
    assert holds(optimizer)
    MEMBERS[change]([group["params"] for group in optimizer.param_groups], optimizer.state)
    assert not holds(optimizer)
    step(optimizer, 1.0)
    assert holds(optimizer)


class Wrapped(Tensor):
    """A gradient whose sizes Python is asked for."""

    plain: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapped":
        self = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, dispatch_sizes_strides_policy="sizes"
        )
        self.plain = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = torch.utils._pytree.tree_map(lambda x: getattr(x, "plain", x), args)
        return func(*args, **(kwargs or {}))


def test_gradients_that_python_answers_for_are_left_to_eager():
    params = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    optimizer = svag.SGD(params, lr=1.0)
    for wrap in (Tensor.clone, Tensor.clone, Wrapped, Wrapped, Tensor.clone):
        for param in params:
            param.grad = wrap(torch.ones(4))
        optimizer.step()
    assert all(param.tolist() == [-5.0] * 4 for param in params)


FORK = """
import os, torch, svag
params = [torch.nn.Parameter(torch.zeros(4)) for _ in range(200)]
optimizers = [svag.SGD(params, lr=1.0)]
def step():
    for param in params:
        param.grad = torch.ones(4)
    optimizers[-1].step()
torch.zeros(1 << 20).add_(1)  # starts the threads
step()
step()
child = os.fork()
if child == 0:
    step()
    optimizers.append(svag.SGD(params, lr=1.0))
    step()
    step()
    print(params[-1].tolist(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_small_parameters_step_in_a_forked_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[-5.0, -5.0, -5.0, -5.0]\n", done.stderr


@pytest.mark.parametrize("fused", [None, False])
def test_groups_may_hold_their_parameters_in_a_tuple(fused):
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = svag.SGD(params, lr=1.0, fused=fused)
    optimizer.param_groups[0]["params"] = tuple(params)
    for _ in range(3):
        step(optimizer, 1.0)
    assert all(param.tolist() == [-3.0] * 2 for param in params)


def test_a_parameter_that_becomes_one_of_inference_mode_is_noticed():
    memory = np.zeros(3, np.float32)
    param = nn.Parameter(torch.from_numpy(memory))
    optimizer = svag.MSVAG([param], lr=1.0)
    for _ in range(2):
        step(optimizer, 1.0)
    with torch.inference_mode():
        other = nn.Parameter(torch.from_numpy(memory))
    torch.utils.swap_tensors(param, other)
    with pytest.raises(RuntimeError, match="inference tensor"):
        step(optimizer, 1.0)


def exchange_options(optimizer: Any) -> None:
    names = {"maximize": "decoupled_weight_decay", "decoupled_weight_decay": "maximize"}
    (group,) = optimizer.param_groups
    optimizer.param_groups[0] = {names.get(name, name): value for name, value in group.items()}


def take_another_anatomy(optimizer: Any) -> None:
    optimizer.anatomy = svag.METHODS["m-svag"].anatomy
    optimizer.param_groups[0]["beta"] = 0.5


@pytest.mark.parametrize("change", [exchange_options, take_another_anatomy])
def test_what_is_set_by_hand_counts_at_the_next_step(change):
    ends = []
    for fused in (None, False):
        param = nn.Parameter(torch.ones(3, dtype=torch.float64))
        decay = {"weight_decay": 0.1, "decoupled_weight_decay": True}
        optimizer = svag.SGD([param], lr=0.5, **decay, fused=fused)
        for n in range(4):
            if n == 2:
                change(optimizer)
            step(optimizer, param.detach().cos())
        ends.append(param.tolist())
    assert ends[0] == pytest.approx(ends[1], rel=1e-14)
