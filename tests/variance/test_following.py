"""Whose each row of a result is: believed from the rules, and seen by changing one example.

Every function of torch that has a rule or counts as working entry by entry is called on tensors
whose dimensions are all of the mini-batch's size, the examples along each dimension in turn. Where
a rule names the examples of a result, changing one example may change nothing but its own rows.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from svag.variance.per_example import context  # noqa: F401 - registers the rules
from svag.variance.per_example.owners.following import follow, is_elementwise, plain_name
from svag.variance.per_example.owners.marks import forget_marks, mark, mark_of
from svag.variance.per_example.owners.operation import RULES
from svag.variance.per_example.owners.owner_tensors import owners_of
from svag.variance.per_example.owners.placement import IS_PLACED, Layout, Placed, Scattered
from svag.variance.per_example.recording.functions import is_composite, unguarded
from svag.variance.per_example.structures import tensors_in

SIZE = 3
NAMESPACES = (torch, Tensor, functional, torch.special, torch.linalg, torch.fft, torch._C._nn)
SHAPES = ((SIZE,) * 2, (SIZE,) * 3)
NOT_CALLED = frozenset(
    {"backward", "set_", "resize_", "resize_as_", "share_memory_", "untyped_storage", "numpy"}
    | {"map_", "map2_", "apply_", "register_hook", "retain_grad", "record_stream", "requires_grad_"}
    | {"cuda", "xpu", "mtia", "ipu", "hpu", "to_mkldnn", "to_sparse", "pin_memory", "detach_"}
)


class Following(TorchFunctionMode):
    """Follows every operation, as the context does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return unguarded(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        outputs = list(tensors_in((out,)))
        if outputs:
            follow(func, args, kwargs, list(tensors_in((*args, *kwargs.values()))), outputs)
        return out


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    seen = set()
    for space in NAMESPACES:
        for name in sorted(dir(space)):
            func = getattr(space, name)
            if name.startswith("__") or name in NOT_CALLED or not callable(func):
                continue
            plain = plain_name(func)
            known = plain in RULES or is_elementwise(plain) or is_composite(func)
            if known and not inspect.isclass(func) and func not in seen:
                seen.add(func)
                yield f"{getattr(space, '__name__', space)}.{name}", func


def arguments(shape: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """What may stand behind the first tensor."""
    like = torch.rand(shape)
    whole = torch.randint(SIZE, shape)
    chosen = torch.tensor([2, 0, 1])
    return [
        (),
        *((dim,) for dim in range(-1, len(shape))),
        *((1, dim) for dim in range(len(shape))),
        *((2.0, dim) for dim in range(len(shape))),
        *((2.0, dim, 1.0) for dim in range(len(shape))),
        *((dim, chosen) for dim in range(len(shape))),
        *((dim, whole) for dim in range(len(shape))),
        *((dim, whole, like) for dim in range(len(shape))),
        *((dim, chosen, like) for dim in range(len(shape))),
        *((torch.rand(SIZE), dim) for dim in range(len(shape))),
        *((like, dim) for dim in range(len(shape))),
        *((like, like, dim) for dim in range(len(shape))),
        (0, 1),
        (like,),
        (like, like),
        (like, like, like),
        (like > 0.5,),
        (like > 0.5, like),
        (like > 0.5, 1.0),
        (whole,),
        (torch.rand(shape[-2:]),),
        (torch.rand(shape[-1:]),),
        (shape,),
        (list(range(len(shape)))[::-1],),
        ([1, 1],),
        ((SIZE,),),
        (2,),
        (2, 2),
        (SIZE, torch.rand(SIZE), torch.rand(SIZE)),
        (torch.rand(SIZE), torch.rand(SIZE), torch.rand(SIZE), torch.rand(SIZE)),
    ]


def called(func: Callable[..., Any], x: Tensor, rest: tuple[Any, ...]) -> list[Tensor] | None:
    """Return the results on copies of everything; None if torch refuses the arguments."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats stacks
    copies = [a.clone() if isinstance(a, Tensor) else a for a in rest]
    try:
        out = func(x, *copies)
    except Exception:  # most functions refuse most arguments
        return None
    return list(tensors_in((out,)))


def silently_wrong(name: str, func: Callable[..., Any], shape: tuple[int, ...]) -> Iterator[str]:
    """Yield calls of which a row changes with an example whose it is not."""
    generator = torch.Generator().manual_seed(1)
    base = torch.rand(shape, generator=generator)
    for rest in arguments(shape):
        plain = called(func, base.clone(), rest)
        if plain is None:
            continue
        for dim in range(len(shape)):
            forget_marks()
            x = base.clone()
            mark(x, Layout(dim, SIZE))
            with Following():
                found = called(func, x, rest)
            marks = [mark_of(t) for t in found or ()]
            if len(marks) != len(plain) or not any(isinstance(w, IS_PLACED) for w in marks):
                continue
            for example in range(SIZE):
                other = base.clone()
                other.select(dim, example).copy_(torch.rand(shape[1:], generator=generator) - 0.5)
                changed = called(func, other, rest)
                if changed is None or len(changed) != len(plain):
                    continue
                kinds = [tuple(r.shape) if isinstance(r, Tensor) else r for r in rest]
                for where, a, b in zip(marks, plain, changed, strict=True):
                    if isinstance(where, IS_PLACED) and is_wrong(where, a, b, example):
                        yield f"{name}(x{shape} along {dim}, {kinds}) is {where}"


def is_wrong(where: Placed, before: Tensor, after: Tensor, example: int) -> bool:
    """Whether a row moved that is not the example's, or a mark does not fit its tensor."""
    if before.shape != after.shape:
        return False
    if isinstance(where, Layout | Scattered):
        sizes = before.shape[where.dim : where.dim + 1]
        fits = (
            where.dim >= 0
            and sizes
            and (sizes[0] % SIZE == 0 if isinstance(where, Layout) else True)
        )
        if not fits or len(where.owners(sizes[0])) != sizes[0]:
            return True
    moved = ~torch.isclose(before, after, rtol=1e-4, atol=1e-6, equal_nan=True)
    return bool((moved & (owners_of(before, where) != example)).any())


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_no_row_changes_with_another_example(shape: tuple[int, ...]) -> None:
    wrong, tried = [], 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for name, func in functions():
            tried += 1
            wrong += list(dict.fromkeys(silently_wrong(name, func, shape)))
    assert tried > 800
    assert not wrong, "\n".join(wrong)
