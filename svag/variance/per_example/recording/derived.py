"""Operations on parameters alone: masks, reshapes and norms of weights, tables filled in place.

Such an operation runs twice, on the parameters and on copies of them. The first result is the
user's. The graph of the second gives the parameters' contributions from those of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.contributions.base import Contributions, Direct, PlacedRows
from svag.variance.per_example.owners.following import follow
from svag.variance.per_example.owners.marks import mark, mark_of
from svag.variance.per_example.owners.operation_names import plain_name
from svag.variance.per_example.owners.placement import CONSTANT, IS_PLACED, Single
from svag.variance.per_example.recording.recorder import Recorder
from svag.variance.per_example.recording.sources import Source
from svag.variance.per_example.recording.taps import Site, Tap, Use
from svag.variance.per_example.structures import called_with, tensors_in

Call = Callable[..., Any]

_RANDOM = frozenset({"dropout", "alpha_dropout", "feature_dropout", "bernoulli", "rand_like"})


def derive(
    recorder: Recorder, func: Call, args: Sequence[Any], kwargs: dict[str, Any], used: list[Tensor]
) -> Any:
    """Run an operation on parameters alone, and record how its results were computed.

    Args:
        recorder: the open context's recorder.
        func: the operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        used: the parameters, and tensors computed from parameters, among the arguments.

    Returns:
        The result of the operation.
    """
    stand_ins = _stand_ins(recorder, used)
    out = _run_first(func, args, kwargs)
    if recorder.verification is not None:
        recorder.verification.note_precision(list(tensors_in((out,))))
    params, leaves = _origin(recorder, used)
    norm = _weight_norm_of(func, args, kwargs, leaves, stand_ins)
    if norm is not None:
        mark(out, CONSTANT)
        recorder.derive(out, Source(params, leaves, lambda: _normed(leaves, norm), norm))
        return out
    again = run_again(func, args, kwargs, stand_ins)
    for ours, computed in zip(tensors_in((out,)), tensors_in((again,)), strict=True):
        mark(ours, CONSTANT)
        if computed.requires_grad:
            recorder.derive(ours, Source(params, leaves, _held(computed)))
    return out


def derive_in_place(
    recorder: Recorder, func: Call, args: Sequence[Any], kwargs: dict[str, Any], used: list[Tensor]
) -> Any:
    """Run an operation that writes parameters into a constant, or changes what was computed.

    If the target is a view, what it is a view of changes, too.

    Args:
        recorder: the open context's recorder.
        func: the operation, which changes its first argument in place.
        args: its positional arguments.
        kwargs: its keyword arguments.
        used: the parameters, and tensors computed from parameters, among the arguments.

    Returns:
        The result of the operation.
    """
    target = args[0]
    base = target._base if target._is_view() and target._base is not None else target
    source = recorder.source_of(base)
    if source is not None and source.is_parameter:
        raise PerExampleError(_unclear(recorder, func, base))
    every = used if source is None else [*used, base]
    stand_ins = _stand_ins(recorder, every)
    whole = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=base.device)
    whole = whole.copy_(stand_ins.get(id(base), base.detach()))
    offset = target.storage_offset() - base.storage_offset()
    stand_ins[id(base)] = whole
    if target is not base:
        stand_ins[id(target)] = whole.as_strided(target.shape, target.stride(), offset)
    params, leaves = _origin(recorder, every)
    out = _run_first(func, args, kwargs)
    run_again(func, args, kwargs, stand_ins)
    for ours in (base, target):
        mark(ours, CONSTANT)
        recorder.derive(ours, Source(params, leaves, _held(stand_ins[id(ours)])))
    return out


def fill_in_place(
    recorder: Recorder, func: Call, args: Sequence[Any], kwargs: dict[str, Any], used: list[Tensor]
) -> Any:
    """Run an operation that writes rows of the mini-batch into a tensor computed from parameters.

    As ``h = token.expand(B, T, D).clone(); h[mask] = x[mask]``. The written rows say which example
    each row of the tensor belongs to. The entries that are left there come from the parameters, and
    belong to the same example.

    Args:
        recorder: the open context's recorder.
        func: the operation, which changes its first argument in place.
        args: its positional arguments.
        kwargs: its keyword arguments.
        used: the parameters, and tensors computed from parameters, among the arguments.

    Returns:
        The result of the operation.

    Raises:
        PerExampleError: there is another parameter among the arguments, the target is a parameter
            or a view, or it is not clear which rows belong to which example.
    """
    target = args[0]
    source, unclear = recorder.source_of(target), _unclear(recorder, func, target)
    if source is None or source.is_parameter or len(used) > 1 or target._is_view():
        raise PerExampleError(unclear)
    site = Site(recorder, [Use(source, _rows_left, replaces=False)], Single(0, recorder.examples))
    before = Tap.apply(site, 0, target)  # type: ignore[no-untyped-call]
    assert before is target
    recorder.forget(target)
    tensors = list(tensors_in((*args, *kwargs.values())))
    out = func(*args, **kwargs)
    follow(func, args, kwargs, tensors, [target])
    where = mark_of(target)
    if not isinstance(where, IS_PLACED):
        raise PerExampleError(unclear)
    site.uses = [Use(source, _rows_of(where), replaces=False)]
    site.where = where
    return out


def _rows_left(_: Tensor) -> Contributions:
    raise PerExampleError("the operation that changed a parameter in place did not finish")


def _rows_of(where: Any) -> Callable[[Tensor], Contributions]:
    def rows(delta: Tensor) -> Contributions:
        if isinstance(where, Single):
            return Direct(where.examples_first(delta).sum(1))
        return PlacedRows(delta, where)

    return rows


def _run_first(func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation so that running it again draws the same random numbers."""
    state = torch.random.get_rng_state() if plain_name(func) in _RANDOM else None
    out = func(*args, **kwargs)
    if state is not None:
        torch.random.set_rng_state(state)
    return out


def _stand_ins(recorder: Recorder, used: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return what stands for each tensor in the graph that starts at copies of the parameters."""
    sources = {id(t): recorder.source_of(t) for t in used}
    return {key: source.computed for key, source in sources.items() if source}


def _origin(
    recorder: Recorder, used: Sequence[Tensor]
) -> tuple[tuple[torch.nn.Parameter, ...], tuple[Tensor, ...]]:
    """Return all parameters that some tensors were computed from, and their copies."""
    sources = [source for t in used if (source := recorder.source_of(t)) is not None]
    pairs = [pair for s in sources for pair in zip(s.params, s.leaves, strict=True)]
    params, leaves = zip(*{id(p): (p, leaf) for p, leaf in pairs}.values(), strict=True)
    return params, leaves


def run_again(func: Call, args: Any, kwargs: Any, by_id: Mapping[int, Tensor]) -> Any:
    """Run an operation a second time on other tensors, to get the graph from those to its result.

    Args:
        func: the operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        by_id: the tensors to use, by id of the argument that each replaces.
    """
    # A checkpoint around it must not take what is saved here for its own, and recompute it.
    with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved):
        return called_with(func, args, kwargs, by_id)


def _unclear(recorder: Recorder, func: Call, target: Tensor) -> str:
    return (
        f"{getattr(func, '__name__', func)} changes {recorder.label(target)} in place, and svag "
        "cannot follow that; write it out of place, or use svag.micro_batch_variance"
    )


def _held(computed: Tensor) -> Callable[[], Tensor]:
    return lambda: computed


def _normed(leaves: Sequence[Tensor], dim: int) -> Tensor:
    """Return the weight norm of two leaves, for operations on it."""
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        return run_again(torch._weight_norm, (*leaves, dim), {}, {})  # type: ignore[no-any-return]


def _weight_norm_of(
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    leaves: Sequence[Tensor],
    stand_ins: Mapping[int, Tensor],
) -> int | None:
    """Return ``dim`` if this is the weight norm of two parameters."""
    if func is not torch._weight_norm or len(args) < 2 or len(leaves) != 2:
        return None
    direct = all(stand_ins.get(id(t)) is leaf for t, leaf in zip(args, leaves, strict=False))
    return int(args[2] if len(args) > 2 else kwargs.get("dim", 0)) if direct else None
