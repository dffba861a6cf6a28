"""See every operation of a forward pass, and put a tap behind those that use parameters."""

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from svag.errors import PerExampleError
from svag.variance.layout import (
    CONSTANT,
    LOST,
    Layout,
    Packed,
    depends_on_batch,
    hand_on,
    mark,
    mark_of,
)
from svag.variance.recorder import Factory, Link, Recorder, Site, Source, Tap

T = TypeVar("T")
Call: TypeAlias = Callable[..., Any]
Rule: TypeAlias = Callable[["Interception", Call, Sequence[Any], dict[str, Any]], Any]


class Tape(Protocol):
    """Something that wants to know every operation."""

    def record(self, func: Call, args: Any, kwargs: Any, out: Any) -> None:
        """Note one operation."""


class Interception(TorchFunctionMode):
    """Every torch operation goes through here while the context is open.

    Args:
        recorder: that takes the contributions.
        rules: what to do with an operation that takes a parameter, by function.
        otherwise: the rule for the rest.
        always: what runs before some operations, whether they take a parameter or not.
        tape: records the operations, where that is wanted.
    """

    def __init__(
        self,
        recorder: Recorder,
        rules: Mapping[Call, Rule],
        otherwise: Rule,
        always: Mapping[Call, Rule],
        tape: "Tape | None" = None,
    ) -> None:
        super().__init__()
        self.recorder, self.rules = recorder, rules
        self.otherwise, self.always, self.tape = otherwise, always, tape

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if func in self.always:
            self.always[func](self, func, args, kwargs)
        out = self._run(func, args, kwargs)
        if self.tape is not None:
            self.tape.record(func, args, kwargs, out)
        return out

    def _run(self, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensors = list(tensors_in((*args, *kwargs.values())))
        followed = [t for t in tensors if self.recorder.source_of(t) is not None]
        if not followed or not torch.is_grad_enabled() or _handles(func):
            return self._plain(func, args, kwargs, tensors)
        if _in_place(func):
            if any(t is args[0] for t in followed):
                raise PerExampleError(
                    f"{name_of(func)} changes {self.recorder.label(args[0])} in place, and svag "
                    "cannot follow that; write it out of place, or use svag.micro_batch_variance"
                )
            if not any(map(depends_on_batch, tensors)):
                return self._plain(func, args, kwargs, tensors)
        if not any(map(depends_on_batch, tensors)):
            return self._derive(func, args, kwargs, followed)
        if func in self.rules:
            return self.rules[func](self, func, args, kwargs)
        if is_composite(func):
            return self.inside(func, args, kwargs)
        return self.otherwise(self, func, args, kwargs)

    def _plain(
        self, func: Call, args: Sequence[Any], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:
        out = func(*args, **kwargs)
        outputs = list(tensors_in((out,)))
        if outputs:
            hand_on(func, args, kwargs, tensors, outputs)
        elif tensors and any(map(depends_on_batch, tensors[1:])) and out is None:
            self._mark_changed(tensors[0], tensors[1:])
        return out

    def _mark_changed(self, changed: Tensor, by: list[Tensor]) -> None:
        """Mark a tensor that was written into, as ``x[:, 0] = y`` does."""
        if not depends_on_batch(changed):
            marks = [mark_of(t) for t in by if depends_on_batch(t)]
            mark(changed, marks[0] or LOST)

    def inside(self, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a function of torch.nn.functional so that the operations in it are seen."""
        with self:
            return unguarded(func)(*args, **kwargs)

    def _derive(
        self, func: Call, args: Sequence[Any], kwargs: dict[str, Any], followed: list[Tensor]
    ) -> Any:
        """Run an operation on parameters alone, on stand-ins, and link its results to them."""
        sources = {id(t): self.recorder.source_of(t) for t in followed}
        stand_ins = {key: source.computed for key, source in sources.items() if source}
        out = func(*replaced(args, stand_ins), **replaced(kwargs, stand_ins))
        bases = {
            id(p): (p, leaf)
            for source in sources.values()
            if source
            for p, leaf in zip(source.params, source.leaves, strict=True)
        }
        params, leaves = zip(*bases.values(), strict=True)
        return rebuilt(out, lambda t: self._linked(t, Source(params, leaves, t)))

    def _linked(self, computed: Tensor, source: Source) -> Tensor:
        if not computed.requires_grad:
            mark(computed, CONSTANT)
            return computed
        linked: Tensor = Link.apply(source, *source.params)  # type: ignore[no-untyped-call]
        self.recorder.derive(linked, source)
        return linked

    def layout_of(self, tensor: Tensor, func: Call) -> Layout:
        """Return where the examples are, or say that nobody knows."""
        where = mark_of(tensor)
        if isinstance(where, Layout):
            return where
        if isinstance(where, Packed):
            raise PerExampleError(
                f"{name_of(func)} was given the steps of packed sequences, which svag follows "
                "through recurrent and dense layers and operations without parameters only; apply "
                "it before packing or after pad_packed_sequence, or use svag.micro_batch_variance"
            )
        raise PerExampleError(
            f"{name_of(func)} was given a tensor of shape {tuple(tensor.shape)}, and which "
            f"dimension holds the examples is not clear ({where}): an operation before it mixed "
            "or reordered them, or two dimensions have the batch's size. Use a batch of another "
            "size, pass batch_dim, or use svag.micro_batch_variance"
        )

    def tap(
        self,
        output: Tensor,
        data: Tensor,
        uses: Sequence[tuple[Tensor | None, Factory]],
        where: Layout | Packed,
    ) -> Tensor:
        """Put a tap behind ``output``.

        Args:
            output: of the operation, run with its parameters detached.
            data: what the factories need besides the gradient of the output.
            uses: pairs of a parameter and its factory; those that are not followed are dropped.
            where: mark of the output.

        Returns:
            The output.
        """
        pairs = [(self.recorder.source_of(t), make) for t, make in uses]
        kept = [(source, make) for source, make in pairs if source is not None]
        if kept:
            sources, factories = zip(*kept, strict=True)
            site = Site(self.recorder, sources, factories, where=where)
            if output._is_view():
                output = output.clone()
            output = Tap.apply(site, output, data, *site.params)  # type: ignore[no-untyped-call]
        mark(output, where)
        return output

    def attributed(self, tensor: Tensor, where: Layout, factory: Factory, shape: Any) -> Tensor:
        """Return a parameter, broadcast to ``shape``, as a tensor that depends on the examples."""
        output = detached(tensor).expand(shape).clone()
        return self.tap(output, output.new_empty(0), [(tensor, factory)], where)


_VIEW_GETTERS = tuple(
    getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag")
)
_HANDLING = frozenset(
    {"__set__", "__delete__", "requires_grad_", "retain_grad", "backward", "detach", "detach_"}
    | {"register_hook", "register_post_accumulate_grad_hook", "share_memory_", "untyped_storage"}
)


def _in_place(func: Call) -> bool:
    """Whether the operation changes its first argument, which keeps its name."""
    name = name_of(func)
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _handles(func: Call) -> bool:
    """Whether this deals with the tensor as an object, as reading ``p.grad`` does."""
    name = name_of(func)
    if str(getattr(func, "__module__", "")).startswith("torch.autograd"):
        return True
    return name in _HANDLING or (name == "__get__" and func not in _VIEW_GETTERS)


def found_in(values: Any, kind: type[T]) -> Iterator[T]:
    """Yield what is of a kind among values and in lists, tuples and dicts among them."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, list | tuple):
            yield from found_in(value, kind)
        elif isinstance(value, dict):
            yield from found_in(value.values(), kind)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among values, likewise."""
    return found_in(values, Tensor)


def replaced(values: Any, by_id: Mapping[int, Tensor]) -> Any:
    """Return the structure with some tensors replaced."""
    return rebuilt(values, lambda t: by_id.get(id(t), t))


def rebuilt(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the structure with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {key: rebuilt(value, change) for key, value in values.items()}
    if isinstance(values, list | tuple) and not isinstance(values, torch.Size):
        parts = [rebuilt(value, change) for value in values]
        return tuple(parts) if isinstance(values, tuple) else parts
    return values


def detached(tensor: Any) -> Any:
    """Detach a tensor; let None and the rest pass."""
    return tensor.detach() if isinstance(tensor, Tensor) else tensor


def is_composite(func: Call) -> bool:
    """Whether the function is one of torch.nn.functional written in Python."""
    return isinstance(func, types.FunctionType) and func.__module__ == functional.__name__


@functools.cache
def unguarded(func: types.FunctionType) -> Call:
    """Return the function without the test that hands it to the mode as a whole."""
    never = {name: lambda *_: False for name in func.__globals__ if name in _GUARDS}
    code, names = func.__code__, {**func.__globals__, **never}
    copy = types.FunctionType(code, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def name_of(func: Call) -> str:
    """Return the name for messages."""
    return getattr(func, "__name__", repr(func))
