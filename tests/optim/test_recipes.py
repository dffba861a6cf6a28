"""What training scripts do to an optimizer and its tensors, for every method and way to step.

The oracle is ``torch.optim.Adam``'s for-loop where the method is Adam, and where it is not, a
for-loop optimizer of the same method that is handed fresh tensors for every single step.
"""

import copy
import math
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svag
from svag import METHODS
from svag.errors import SvagError

from .test_torch_cases import (
    CLASSES,
    FUSED,
    WAYS,
    assert_all_close,
    assert_all_equal,
    every_method,
    every_stateful,
    every_way,
    give_gradients,
    held,
    parameter,
    parameters,
    train,
)

OLD_LOOP = {"foreach": False, "fused": False}


def anew(tensor: Tensor) -> Tensor:
    """The same values in new contiguous memory."""
    values = tensor.detach().resolve_conj().resolve_neg()
    return values.clone(memory_format=torch.contiguous_format)


few_methods = pytest.mark.parametrize("key", ["ssd", "m-ssd", "m-svag", "adam"])  # 0 to 2 buffers


class FreshLoop:
    """The same method in a for-loop that never sees the same tensor twice.

    Before each step it moves its own parameters, gradients and state into new contiguous
    tensors of a new optimizer, so whatever an engine remembers of addresses is of no use to it.
    """

    def __init__(self, key: str, params: list[Tensor], **options: Any) -> None:
        self.key, self.options = key, {**options, **OLD_LOOP}
        self.params = [anew(p) for p in params]
        self.states: list[dict[str, Tensor]] = [{} for _ in params]

    def step(self, gradients: list[Tensor | None]) -> None:
        leaves = [nn.Parameter(p.clone()) for p in self.params]
        optimizer = CLASSES[self.key](leaves, **self.options)
        for leaf, gradient, state in zip(leaves, gradients, self.states, strict=True):
            leaf.grad = None if gradient is None else anew(gradient)
            if state:
                optimizer.state[leaf] = {name: anew(value) for name, value in state.items()}
        optimizer.step()
        self.params = [leaf.detach() for leaf in leaves]
        self.states = [dict(optimizer.state[leaf]) for leaf in leaves]


def drawn(params: list[Any], n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def snapshot(optimizer: Any) -> Any:
    return copy.deepcopy((held(optimizer), optimizer.state_dict()["state"]))


def refused(optimizer: Any, way: str) -> bool:
    """Step; whether fused=True, and nothing else, has refused to, and then done nothing at all.

    What it cannot serve are layouts and views that autograd does not make by itself, and a
    parameter that no longer is as its averages are; torch's fused Adam reads them in the wrong
    order.
    """
    if way != "fused":
        optimizer.step()
        return False
    before = snapshot(optimizer)
    refusal = None
    try:
        optimizer.step()
    except SvagError as error:
        refusal = str(error)
    if refusal is None:
        return False
    assert re.match("`fused=True` requires .* fused=None", refusal)
    assert_all_equal(held(optimizer), before[0])
    after = optimizer.state_dict()["state"]
    for index, state in before[1].items():
        for name, value in state.items():
            assert torch.equal(after[index][name], value)
    return True


def follow(
    key: str,
    way: str,
    params: list[Any],
    change: Callable[[Any, int], Any],
    *,
    steps: int = 5,
    **options: Any,
) -> None:
    """Step while ``change(optimizer, n)`` is made before step n; the numbers must not notice."""
    optimizer = CLASSES[key](params, **options, **WAYS[way])
    reference = FreshLoop(key, params, **options)
    for n in range(steps):
        change(optimizer, n)
        gradients = drawn(held(optimizer), n)
        for p, gradient in zip(held(optimizer), gradients, strict=True):
            p.grad = gradient.clone()
        if refused(optimizer, way):
            return
        reference.step([gradient.clone() for gradient in gradients])
        assert_all_close(held(optimizer), reference.params, rtol=2e-5, atol=2e-5)


# ----------------------------------------------------------------------------- mixed precision


class Line(nn.Module):
    """A loss that is linear in its parameters: the gradient is whatever it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = parameter(4, 5), parameter(5, seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x[:4]).sum() + (self.bias * x[4]).sum()


def inputs(n: int, worst: float | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(5, 5, generator=generator)
    if worst is not None:
        x[0, 0] = worst
    return x


@pytest.mark.parametrize("worst", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@every_way
@every_method
def test_a_scaler_skips_steps_with_infinite_gradients_and_nothing_else(
    key: str, way: str, clip: bool, worst: float
) -> None:
    model, reference = Line(), Line()
    optimizer = CLASSES[key](model.parameters(), weight_decay=0.1, **WAYS[way])
    unscaled = CLASSES[key](reference.parameters(), weight_decay=0.1, **WAYS[way])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for n, bad in enumerate((True, False, False, True, True, False, False)):
        before = snapshot(optimizer)
        optimizer.zero_grad()
        scaler.scale(model(inputs(n, worst if bad else None))).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_value_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf")
        if bad:
            assert_all_equal(held(optimizer), before[0])
            counts = [
                {float(state["step"]) for state in states.values() if "step" in state}
                for states in (optimizer.state, before[1])
            ]
            assert counts[0] <= counts[1] | {0.0}
            continue
        unscaled.zero_grad()
        reference(inputs(n)).backward()
        if clip:
            nn.utils.clip_grad_value_(reference.parameters(), 0.5)
        unscaled.step()
        assert_all_equal(held(optimizer), held(unscaled))
        mine, theirs = (o.state_dict()["state"] for o in (optimizer, unscaled))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**12 / 2**3 * 2**2


def test_only_a_fused_optimizer_says_that_it_scales_by_itself() -> None:
    for way, flags in WAYS.items():
        optimizer = svag.MSVAG([parameter(3)], **flags)
        scales = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        assert scales == (way == "fused") or not flags


@pytest.mark.parametrize("way", [way for way in WAYS if FUSED and way in ("as is best", "fused")])
@every_method
def test_a_fused_step_unscales_and_skips_in_the_kernel(key: str, way: str) -> None:
    """By the attributes that GradScaler sets, found_inf first."""
    optimizer = CLASSES[key](parameters(), **WAYS[way])
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        assert way != "fused"
        return
    reference = FreshLoop(key, parameters())
    for n, skipped in enumerate((True, False, True, False)):
        gradients = drawn(held(optimizer), n)
        for p, gradient in zip(held(optimizer), gradients, strict=True):
            p.grad = gradient * 8
            if skipped and p.numel():
                p.grad.view(-1)[0] = math.inf
        optimizer.grad_scale = torch.tensor(8.0)
        optimizer.found_inf = torch.tensor(float(skipped))
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
        if not skipped:
            reference.step(gradients)
        assert_all_close(held(optimizer), reference.params, rtol=2e-5, atol=2e-5)
    counted = {float(state["step"]) for state in optimizer.state.values() if "step" in state}
    assert counted <= {2.0}


@every_way
@every_method
def test_a_parameter_without_gradient_stays_out_of_a_scaled_step(key: str, way: str) -> None:
    model = Line()
    optimizer = CLASSES[key](model.parameters(), **WAYS[way])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((model.weight * inputs(0)[:4]).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(model.bias, Line().bias)
    assert not torch.equal(model.weight, Line().weight)
    assert not optimizer.state[model.bias]


@every_way
def test_training_under_autocast_is_torchs(way: str) -> None:
    ends = []
    for make in (
        lambda ps: svag.Adam(ps, lr=1e-2, **WAYS[way]),
        lambda ps: torch.optim.Adam(ps, lr=1e-2, foreach=False),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
        optimizer = make(model.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(8, 6)).square().mean()
            loss.backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    # a difference of one rounding may flip a bfloat16 activation
    assert_all_close(*ends, rtol=1e-3, atol=1e-3)
    torch.manual_seed(0)
    start = nn.Linear(6, 16).weight.detach()
    assert (ends[0][0] - start).abs().max() > 1e-2


@every_way
@every_method
def test_the_step_itself_may_stand_under_autocast(key: str, way: str) -> None:
    with_, without = (CLASSES[key](parameters(), **WAYS[way]) for _ in range(2))
    train(without, 3)
    with torch.autocast("cpu", torch.bfloat16):
        train(with_, 3)
    assert_all_equal(held(with_), held(without))


# ------------------------------------------------------------------------------- ways to train


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def batches(steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        yield torch.randn(8, 6, generator=generator)


@every_way
@every_method
def test_stepping_inside_the_backward_pass_is_ordinary_training(key: str, way: str) -> None:
    ordinary, inside = small_model(), small_model()
    optimizer = CLASSES[key](ordinary.parameters(), **WAYS[way])
    optimizers = {p: CLASSES[key]([p], **WAYS[way]) for p in inside.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in inside.parameters():
        p.register_post_accumulate_grad_hook(step)
    for x in batches(5):
        optimizer.zero_grad()
        ordinary(x).square().mean().backward()
        optimizer.step()
        inside(x).square().mean().backward()
        assert all(p.grad is None for p in inside.parameters())
    assert_all_close(inside.parameters(), ordinary.parameters(), rtol=1e-6, atol=1e-6)


@every_way
@every_method
def test_accumulated_gradients_step_as_their_sum(key: str, way: str) -> None:
    whole, parts = small_model().double(), small_model().double()
    one, other = (CLASSES[key](m.parameters(), **WAYS[way]) for m in (whole, parts))
    for x in batches(5):
        x = x.double()
        for o in (one, other):
            o.zero_grad(set_to_none=False)
        whole(x).square().sum().backward()
        for part in x.split(2):
            parts(part).square().sum().backward()
        one.step()
        other.step()
    assert_all_close(parts.parameters(), whole.parameters(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("key", "scheduled"),
    [("m-svag", False), ("m-svag", True), ("adam", False)],
    ids=["m-svag", "m-svag, scheduled", "adam"],
)
@pytest.mark.parametrize("way", [way for way in WAYS if way in ("as is best", "fused")])
def test_a_compiled_step_takes_at_most_two_graphs(key: str, way: str, scheduled: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    shapes = ((12, 5), (5,), ())
    params, others = ([parameter(*shape) for shape in shapes] for _ in range(2))
    lr = 0.1 if not scheduled else torch.tensor(0.1)
    optimizer = CLASSES[key](params, lr=lr, **WAYS[way])
    reference = CLASSES[key](others, lr=0.1, **OLD_LOOP)
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for n in range(10):
        give_gradients(params, n)
        give_gradients(others, n)
        step()
        reference.step()
        if scheduled:
            lr.mul_(0.9)
            reference.param_groups[0]["lr"] *= 0.9
    assert_all_close(params, others, rtol=2e-5, atol=2e-5)
    assert counter.frame_count <= 2
    torch.compiler.reset()


# ------------------------------------------------------------------- tensors that move or change


def swap_data(optimizer: Any, n: int) -> None:
    for p in held(optimizer):
        p.data = p.data.clone()


def swap_tensors(optimizer: Any, n: int) -> None:
    for p in held(optimizer):
        p.grad = None
        torch.utils.swap_tensors(p, nn.Parameter(p.detach().clone()))


def share_memory(optimizer: Any, n: int) -> None:
    for p in held(optimizer):
        p.share_memory_()


def flatten(optimizer: Any, n: int) -> None:
    """All parameters become views of one vector, at addresses that no vector load likes."""
    flat = nn.utils.parameters_to_vector([p.detach() for p in held(optimizer)])
    nn.utils.vector_to_parameters(torch.cat([flat[:1], flat])[1:], held(optimizer))


def own_buffers(optimizer: Any, n: int) -> None:
    for p in held(optimizer):
        for name, value in optimizer.state[p].items():
            optimizer.state[p][name] = value.clone()


def own_buffers_data(optimizer: Any, n: int) -> None:
    for p in held(optimizer):
        for value in optimizer.state[p].values():
            value.data = value.data.clone()


def own_states(optimizer: Any, n: int) -> None:
    for p in held(optimizer):
        if p in optimizer.state:
            optimizer.state[p] = copy.deepcopy(optimizer.state[p])


def reload_(optimizer: Any, n: int) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def cross_layouts(optimizer: Any, n: int) -> None:
    """What ``module.to(memory_format=...)`` does, back and forth; state keeps the old strides."""
    for p in held(optimizer):
        if p.dim() == 4:
            layout = torch.channels_last if n % 2 == 0 else torch.contiguous_format
            p.data = p.data.contiguous(memory_format=layout)


def transpose_storage(optimizer: Any, n: int) -> None:
    for p in held(optimizer):
        if p.dim() >= 2:
            across = p.data.transpose(0, 1)
            p.data = across.clone(memory_format=torch.contiguous_format).transpose(0, 1)


def no_change(optimizer: Any, n: int) -> None:
    pass


CHANGES = {
    "nothing": no_change,
    ".data of parameters": swap_data,
    "swap_tensors": swap_tensors,
    "shared memory": share_memory,
    "views of a flat vector": flatten,
    "buffers replaced": own_buffers,
    ".data of buffers": own_buffers_data,
    "states replaced": own_states,
    "state_dict reloaded": reload_,
    "channels_last and back": cross_layouts,
    "transposed storage": transpose_storage,
}


@pytest.mark.parametrize("change", CHANGES)
@every_way
@few_methods
def test_tensors_may_move_between_steps(key: str, way: str, change: str) -> None:
    params = [*parameters(), parameter(4, 3, 5, 7, seed=9)]
    if change == "shared memory":
        params = [p for p in params if p.numel()]
    follow(key, way, params, CHANGES[change], weight_decay=0.1)


@every_way
@every_method
def test_parameters_may_be_freed_and_replaced_between_steps(key: str, way: str) -> None:
    """The new one often gets the old one's address and id: it must still begin afresh."""
    kept = parameter(33, seed=1)
    optimizer = CLASSES[key]([parameter(64), kept], **WAYS[way])
    reference = FreshLoop(key, [kept])
    for n in range(12):
        fresh = parameter(64, seed=n)
        expected = FreshLoop(key, [fresh])
        optimizer.state.pop(held(optimizer)[0], None)
        old = weakref.ref(held(optimizer)[0])
        optimizer.param_groups[0]["params"][0] = fresh
        for _ in range(2):
            gradients = drawn(held(optimizer), n)
            fresh.grad, kept.grad = (gradient.clone() for gradient in gradients)
            optimizer.step()
            assert old() is None  # the optimizer has not kept it alive
            expected.step(gradients[:1])
            reference.step(gradients[1:])
        assert_all_close([fresh, kept], expected.params + reference.params, rtol=2e-5, atol=2e-5)
        del fresh
    assert len(optimizer.state) <= 2


@every_way
@every_method
def test_groups_may_be_edited_in_place(key: str, way: str) -> None:
    params = [parameter(5 + n, seed=n) for n in range(5)]
    optimizer = CLASSES[key]([{"params": params[:4]}, {"params": params[4:]}], **WAYS[way])
    loops = [FreshLoop(key, [p]) for p in params]
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
        gradients = drawn(params, n)
        for p, gradient, loop in zip(params, gradients, loops, strict=True):
            p.grad = gradient.clone()
            if any(p is q for q in held(optimizer)):
                lr = {"lr": 0.02, "maximize": True} if n == 6 else {}
                loop.options.update(lr)
                loop.step([gradient])
        optimizer.step()
        ends = [loop.params[0] for loop in loops]
        assert_all_close(params, ends, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("one_only", [False, True], ids=["clear", "del"])
@every_way
@every_method
def test_state_that_is_dropped_begins_afresh(key: str, way: str, one_only: bool) -> None:
    params = parameters()
    optimizer = CLASSES[key](params, **WAYS[way])
    train(optimizer, 3)
    dropped = params if not one_only else params[3:4]
    for p in dropped:
        if one_only:
            optimizer.state.pop(p, None)
        else:
            optimizer.state.clear()
    loop = FreshLoop(key, dropped)
    for n in range(3):
        gradients = drawn(params, n)
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        loop.step(gradients if not one_only else gradients[3:4])
    assert_all_close(dropped, loop.params, rtol=2e-5, atol=2e-5)


@every_way
@every_stateful
def test_what_a_user_writes_into_the_state_counts(key: str, way: str) -> None:
    p = parameter(40)
    optimizer, loop = CLASSES[key]([p], **WAYS[way]), FreshLoop(key, [p])
    for n in range(6):
        gradients = drawn([p], n)
        p.grad = gradients[0].clone()
        for state in (optimizer.state.get(p, {}), loop.states[0]):
            if n == 2:
                state["step"].fill_(7)
            if n == 3:
                state["exp_avg"].mul_(0.5)
            if n == 4:
                state["step"] = torch.tensor(20.0)
        optimizer.step()
        loop.step(gradients)
        assert_all_close([p], loop.params, rtol=2e-5, atol=2e-5)
    assert float(optimizer.state[p]["step"]) == 22


@every_way
@every_method
def test_two_optimizers_may_share_their_parameters(key: str, way: str) -> None:
    params = parameters()
    pair = [CLASSES[key](params, **WAYS[way]), CLASSES[key](params, lr=0.02, **WAYS[way])]
    loops = [FreshLoop(key, params), FreshLoop(key, params, lr=0.02)]
    for n in range(6):
        optimizer, loop = pair[n % 2], loops[n % 2]
        gradients = drawn(params, n)
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        loop.params = [p.clone() for p in loops[(n + 1) % 2].params] if n else loop.params
        loop.step(gradients)
        assert_all_close(params, loop.params, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_way
@every_method
def test_a_changed_dtype_gives_the_right_step_or_an_error_and_no_damage(
    key: str, way: str, dtype: torch.dtype
) -> None:
    """``module.half()`` between steps: torch's Adam stops at its own operations' RuntimeError."""
    params = [parameter(40), parameter(7, seed=1)]
    optimizer, loop = CLASSES[key](params, **WAYS[way]), FreshLoop(key, params)
    gradients = drawn(params, 0)
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient.clone()
    optimizer.step()
    loop.step(gradients)
    for p in params:
        p.grad = None
        p.data = p.data.to(dtype)
        p.grad = torch.ones_like(p)
    before = snapshot(optimizer)
    refusal = None
    try:
        optimizer.step()
    except (RuntimeError, SvagError) as error:
        refusal = str(error)
    if refusal is not None:
        assert re.search("type|torch.float32, not", refusal)
        assert_all_equal(params, before[0])
        after = optimizer.state_dict()["state"]
        for index, state in before[1].items():
            for name in METHODS[key].anatomy.buffers:
                assert torch.equal(after[index][name], state[name])
        return
    loop.step([torch.ones(p.shape) for p in params])
    bound = {torch.float64: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for p, end in zip(params, loop.params, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.detach().float(), end, rtol=bound, atol=bound)


def test_module_conversion_that_swaps_tensors_keeps_the_state() -> None:
    model, reference = small_model(), small_model()
    ours, theirs = (
        svag.Adam(model.parameters()),
        torch.optim.Adam(reference.parameters(), foreach=False),
    )
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for x in batches(4):
            for m, o in ((model, ours), (reference, theirs)):
                o.zero_grad()
                m(x).square().mean().backward()
                o.step()
                o.zero_grad()
                m.to("cpu", torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_all_close(model.parameters(), reference.parameters(), rtol=2e-5, atol=2e-5)


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
}


def view(kind: str, gradient: Tensor) -> Tensor:
    made = VIEWS[kind](gradient)
    if kind == "negated view":
        assert made.is_neg()
    return made


@pytest.mark.parametrize("kind", VIEWS)
@every_way
@every_method
def test_gradients_may_be_views(key: str, way: str, kind: str) -> None:
    p = parameter(37, 23)
    optimizer, loop = CLASSES[key]([p], weight_decay=0.1, **WAYS[way]), None
    loop = FreshLoop(key, [p], weight_decay=0.1)
    for n in range(4):
        gradient = view(kind, drawn([p], n)[0])
        p.grad = gradient
        values = anew(gradient)
        if refused(optimizer, way):
            assert torch.equal(p.grad, values)
            return
        loop.step([values])
        assert torch.equal(p.grad, values)  # and it is left as it is
        assert_all_close([p], loop.params, rtol=2e-5, atol=2e-5)
    assert all(not value.requires_grad for value in optimizer.state[p].values())


@every_way
@every_method
def test_gradients_may_be_conjugate_views(key: str, way: str) -> None:
    p = parameter(12, 5, dtype=torch.complex64)
    optimizer, loop = CLASSES[key]([p], **WAYS[way]), FreshLoop(key, [p])
    for n in range(4):
        gradient = drawn([p], n)[0]
        p.grad = gradient.t().clone().t().conj()
        assert p.grad.is_conj()
        if refused(optimizer, way):
            return
        loop.step([torch.complex(gradient.real, -gradient.imag)])
        assert_all_close([p], loop.params, rtol=2e-5, atol=2e-5)


def turn_gradient_negative(optimizer: Any, p: Any) -> None:
    p.grad = torch._neg_view(p.grad.neg())


def turn_gradient_conjugate(optimizer: Any, p: Any) -> None:
    p.grad = p.grad.conj().resolve_conj().conj()


def transpose_gradient(optimizer: Any, p: Any) -> None:
    p.grad = p.grad.t()


def transpose_parameter(optimizer: Any, p: Any) -> None:
    p.data = p.data.t()


def transpose_state(optimizer: Any, p: Any) -> None:
    for name, value in optimizer.state[p].items():
        optimizer.state[p][name] = value.t()


def transpose_both(optimizer: Any, p: Any) -> None:
    transpose_parameter(optimizer, p)
    transpose_state(optimizer, p)


def turn_parameter_negative(optimizer: Any, p: Any) -> None:
    p.data = torch._neg_view(p.data)


def turn_state_negative(optimizer: Any, p: Any) -> None:
    if "exp_avg" in optimizer.state[p]:
        optimizer.state[p]["exp_avg"] = torch._neg_view(optimizer.state[p]["exp_avg"])


TURNS = {
    "a negated gradient": turn_gradient_negative,
    "a conjugate gradient": turn_gradient_conjugate,
    "a transposed gradient": transpose_gradient,
    "a transposed parameter": transpose_parameter,
    "transposed averages": transpose_state,
    "all transposed": transpose_both,
    "a negated parameter": turn_parameter_negative,
    "a negated average": turn_state_negative,
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "foreach"])
@few_methods
def test_what_turns_into_a_view_without_moving_is_noticed(key: str, way: str, turn: str) -> None:
    """Between two steps the address stays, and what is read there has to be read otherwise.

    Not with foreach=True: torch's list operations themselves refuse negated views.
    """
    p = parameter(8, 8, dtype=torch.complex64 if "conjugate" in turn else torch.float32)
    optimizer = CLASSES[key]([p], **WAYS[way])
    for n in range(5):
        (p.grad,) = drawn([p], n)
        if n >= 3:
            TURNS[turn](optimizer, p)
        loop = FreshLoop(key, [p])
        loop.states[0] = {name: anew(value) for name, value in optimizer.state[p].items()}
        gradient = anew(p.grad)
        if refused(optimizer, way):
            assert n >= 3
            return
        loop.step([gradient])
        assert_all_close([p.detach().resolve_neg()], loop.params, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@every_way
@every_method
def test_an_infinite_gradient_stays_with_its_coordinate(key: str, way: str, value: float) -> None:
    """Two finite steps, one with the value, two finite ones: as the for-loop in every place."""
    params = [parameter(5, 6), parameter(9000, seed=1)]
    optimizer = CLASSES[key](params, **WAYS[way])
    marred, clean = FreshLoop(key, params), FreshLoop(key, params)
    for n in range(5):
        gradients = drawn(params, n)
        clean.step([gradient.clone() for gradient in gradients])
        if n == 2:
            for gradient in gradients:
                gradient.view(-1)[3] = value
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        marred.step(gradients)
    for p, loop, other in zip(params, marred.params, clean.params, strict=True):
        torch.testing.assert_close(p.detach(), loop, rtol=2e-5, atol=2e-5, equal_nan=True)
        others = torch.arange(p.numel()) != 3
        torch.testing.assert_close(p.detach().view(-1)[others], other.view(-1)[others])
        assert p.isfinite().view(-1)[others].all()
        if math.isnan(value):
            assert p.view(-1)[3].isnan()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@every_way
def test_an_infinite_gradient_makes_of_adam_what_it_makes_of_torchs(way: str, value: float) -> None:
    ours = svag.Adam([parameter(30)], **WAYS[way])
    theirs = torch.optim.Adam([parameter(30)], foreach=False)
    for n in range(4):
        for o in (ours, theirs):
            give_gradients(held(o), n)
            if n == 1:
                held(o)[0].grad[4] = value
            o.step()
    assert held(theirs)[0].isnan().sum() == 1
    torch.testing.assert_close(*held(ours), *held(theirs), rtol=2e-5, atol=2e-5, equal_nan=True)


# ------------------------------------------------------------------------------ autograd's guard


@every_way
@every_method
def test_a_step_between_forward_and_backward_is_seen_by_autograd(key: str, way: str) -> None:
    for p in (parameter(50), parameter(3, 10_907), parameter(4, dtype=torch.bfloat16)):
        optimizer = CLASSES[key]([p], **WAYS[way])
        train(optimizer, 1)
        for _ in range(2):
            loss = (p * p).sum()
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@every_way
@every_method
def test_a_step_is_a_change_of_what_it_moves_and_of_nothing_else(key: str, way: str) -> None:
    """By the version counters; torch's own fused Adam (2.13, CPU) does not count its steps."""
    moved, still = parameter(50), parameter(50, seed=1)
    optimizer = CLASSES[key]([moved, still], **WAYS[way])
    train(optimizer, 1)
    still.grad = None
    watched = (moved, still, moved.grad)
    before = [tensor._version for tensor in watched]
    optimizer.step()
    after = [tensor._version for tensor in watched]
    assert [b > a for a, b in zip(before, after, strict=True)] == [True, False, False]
