"""Which engine updates which parameter, and whether that still holds at the next step.

Fused engines work on tables of addresses, and tensors move between steps: gradients are made
anew, ``.data`` is swapped, states are loaded. So every step looks where all of them are. A
gradient elsewhere is a number to write; anything else out of place makes a new plan.
"""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from svag.anatomy import Anatomy
from svag.errors import EngineUnavailable
from svag.optim.engines import serving
from svag.optim.engines.kernel import REAL, Kernel, kernel_for
from svag.optim.local import PLAIN, local, local_gradient
from svag.optim.rule import Rule
from svag.optim.watch import members, watch

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]

_DECISIVE = (
    "fused",
    "foreach",
    "capturable",
    "differentiable",
    "amsgrad",
    "state_dtype",
    "stochastic_rounding",
    "decoupled_weight_decay",
    "maximize",
)


class Entry(NamedTuple):
    """A parameter with a gradient: its place among all, its group and its state."""

    param: Tensor
    place: int
    group: int
    state: State


class Fused:
    """Parameters that one kernel updates, and where their tensors were last seen.

    Attributes:
        is_compiled: whether all of a step with them is in compiled code.
    """

    def __init__(self, kernel: Kernel, entries: Sequence[Entry]) -> None:
        self.params = [entry.param for entry in entries]
        shards = [local(param) for param in self.params]
        engine = serving.engine(shards[0].device.type)
        assert not isinstance(engine, str)
        self._table = engine.Table(
            kernel,
            shards[0].device,
            sizes=[shard.numel() * (2 if shard.is_complex() else 1) for shard in shards],
            groups=[entry.group for entry in entries],
            streams=[entry.place for entry in entries],
        )
        self._watch = watch(
            self.params,
            [entry.state for entry in entries],
            [name for name in kernel.columns if name != "grad_var"],
            within_batch=kernel.within_batch,
        )
        self.is_compiled = self._watch.is_compiled and shards[0].device.type == "cpu"
        self._place(self._watch.places)

    def follow(self) -> bool:
        """Find the gradients where they are now; False if anything else has changed."""
        moved = self._watch.look()
        if moved is None:
            return False
        self._place(moved)
        return True

    def _place(self, places: Mapping[str, Any]) -> None:
        for column, addresses in places.items():
            self._table.place(column, addresses)

    def launch(
        self, rules: Sequence[Rule], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Take the step, each parameter by its group's rule.

        Args:
            rules: of all groups.
            grad_scale: what the loss was multiplied by.
            found_inf: not 0 if the step is to be left out.
        """
        self._table.launch(rules, grad_scale, found_inf)
        self._watch.count_changes()


class Plan:
    """How one optimizer takes its next step.

    Args:
        anatomy: of the update.
        groups: parameter groups.
        states: of all parameters.
        entries: every parameter that has a gradient.

    Attributes:
        fused: what the fused engines take.
        rest: what is left to the eager engine.
        is_compiled: whether all of a step is in compiled code.
        rules: of all groups, kept by the optimizer; None once an option may be another.

    Raises:
        EngineUnavailable: a group asks for a fused engine, and one of its parameters has none.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        groups: Sequence[Group],
        states: dict[Tensor, State],
        entries: Sequence[Entry],
    ) -> None:
        self._anatomy = anatomy
        self._lists = [group["params"] for group in groups]
        self._named, self._options = _named(groups), _decisive(groups)
        self._constant = _are_constant(groups)
        self._settled = True
        self.rules: list[Rule] | None = None
        self.rest: list[Entry] = []
        tables: dict[tuple[int, torch.device, Kernel], list[tuple[Kernel, Entry]]] = {}
        turns = _turns(entries)
        for entry in entries:
            kernel = self._assign(anatomy, groups[entry.group], entry)
            if kernel is None:
                self.rest.append(entry)
            else:
                key = turns.get(entry.place, 0), local(entry.param).device, kernel.without_options()
                tables.setdefault(key, []).append((kernel, entry))
        self.fused = []
        for _, together in sorted(tables.items(), key=lambda item: item[0][0]):
            kernels, of_table = zip(*together, strict=True)
            self.fused.append(Fused(Kernel.united(kernels), of_table))
        self.is_compiled = not self.rest and all(fused.is_compiled for fused in self.fused)
        self._states = states
        self._members = members(self._lists, states, compiled=bool(self.fused))
        watched = {id(param) for fused in self.fused for param in fused.params}
        every = itertools.chain.from_iterable(self._lists)
        self._others = [param for param in every if id(param) not in watched]
        self._kinds = [_kind(param.grad) for param in self._others]
        self._kept = [tuple(entry.state) for entry in self.rest]

    def holds(self, anatomy: Anatomy, groups: Sequence[Group], states: dict[Tensor, State]) -> bool:
        """Whether everything is as it was, gradients being elsewhere aside."""
        return (
            self._settled
            and anatomy is self._anatomy
            and states is self._states
            and self._groups_hold(groups)
            and self._members.are_the_same()
            and [_kind(param.grad) for param in self._others] == self._kinds
            and [tuple(entry.state) for entry in self.rest] == self._kept
            and all(fused.follow() for fused in self.fused)
        )

    def _groups_hold(self, groups: Sequence[Group]) -> bool:
        """Whether every group's options let the plan stand; rules are dropped if any is new."""
        named = _named(groups)
        same = len(named) == len(self._named) and all(map(operator.is_, named, self._named))
        if same and self._constant:
            return True
        lists = [group["params"] for group in groups]
        if len(lists) != len(self._lists) or not all(map(operator.is_, lists, self._lists)):
            return False
        if _decisive(groups) != self._options:
            return False
        self._named, self._constant = named, _are_constant(groups)
        self.rules = None
        return True

    def _assign(self, anatomy: Anatomy, group: Group, entry: Entry) -> Kernel | None:
        """Choose the kernel that updates a parameter; None for the eager engine."""
        asked, param = group["fused"], local(entry.param)
        if not may_be_fused(group):
            return None
        kernel = None
        reason = serving.refusal(param)
        if reason is None:
            kernel, reason = self._fit(anatomy, group, entry, param)
            self._settled &= reason is None
        if reason is not None and asked:
            raise EngineUnavailable(
                "`fused=True` requires all the params to be floating point Tensors of supported "
                f"devices, laid out alike with their gradients: parameter {entry.place}, "
                f"{param.dtype} on {param.device} of shape {tuple(param.shape)}, is not: "
                f"{reason}; fused=None leaves such parameters to the eager engine"
            )
        return kernel

    def _fit(
        self, anatomy: Anatomy, group: Group, entry: Entry, param: Tensor
    ) -> tuple[Kernel | None, str | None]:
        """Return the kernel for a parameter's tensors as they are, or why there is none."""
        needed = kernel_for(
            anatomy,
            amsgrad=group.get("amsgrad", False),
            decays=_decays(group) and not group["decoupled_weight_decay"],
            alters=_decays(group) or group["maximize"],
            param=param.dtype,
            state=group["state_dtype"] or param.dtype,
            dither_param=group["stochastic_rounding"],
            dither_state=group["stochastic_rounding"] or group["state_dtype"] is not None,
        )
        names = [name for name in needed.columns if name not in ("step", "grad_var")]
        buffers = [local(entry.state[name]) for name in names]
        variance = local(cast(Any, entry.param).grad_var) if needed.within_batch else None
        grad = local_gradient(entry.param)
        if not all(map(serving.is_in_memory, (param, grad, *buffers))):
            raise EngineUnavailable(
                f"parameter {entry.place} of shape {tuple(param.shape)}, its gradient or its state "
                "has no memory: a storage was resized to less than its tensor; restore it before "
                "the step, or set p.grad to None to leave the parameter out"
            )
        reason = serving.mismatch(param, grad, variance, buffers)
        odd = [
            buffer.dtype
            for buffer in buffers
            if REAL.get(buffer.dtype, buffer.dtype) != needed.state
        ]
        if reason is None and odd:
            reason = f"its averages are {odd[0]}, not {needed.state}"
        if reason is not None:
            return None, reason
        _settle_step(entry.state, param)
        return needed, None


def may_be_fused(group: Group) -> bool:
    """Whether a group's options leave its parameters to a fused engine where there is one."""
    chosen = group["fused"] or (group["fused"] is None and group["foreach"] is None)
    return bool(chosen) and not group["differentiable"]


def _turns(entries: Iterable[Entry]) -> dict[int, int]:
    """Say, by place, when parameters that share memory take their turns: each after those before.

    Empty where no two do, which a look at their sorted spans tells.
    """
    spans = []
    for entry in entries:
        shard = local(entry.param)
        if type(shard) in PLAIN and not shard.is_meta and shard.numel():
            begin = shard.data_ptr()
            spans.append((begin, begin + shard.numel() * shard.itemsize, entry.place))
    spans.sort()
    if all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(spans)):
        return {}
    turns: dict[int, int] = {}
    passed: list[tuple[int, int, int]] = []
    for begin, end, place in sorted(spans, key=operator.itemgetter(2)):
        turns[place] = max((t + 1 for b, e, t in passed if b < end and begin < e), default=0)
        passed.append((begin, end, turns[place]))
    return turns


def _settle_step(state: State, param: Tensor) -> None:
    """Put the step where a fused engine counts it: on the parameter's device, in float32."""
    step = state.get("step")
    if step is not None and (step.device != param.device or step.dtype != torch.float32):
        state["step"] = step.to(param.device, torch.float32)


def _kind(grad: Tensor | None) -> torch.layout | None:
    """Return how a gradient is stored, None if there is none."""
    return None if grad is None else grad.layout


def _decays(group: Group) -> bool:
    """Whether there is weight decay; a tensor is not read, since it may be on a device."""
    return isinstance(group["weight_decay"], Tensor) or group["weight_decay"] != 0


def _named(groups: Iterable[Group]) -> list[Any]:
    """Return all options by name."""
    parts = [part for group in groups for part in (group, group.values())]
    return list(itertools.chain.from_iterable(parts))


def _decisive(groups: Iterable[Group]) -> list[tuple[Any, ...]]:
    """Return what a plan depends on of each group's options."""
    return [(_decays(group), *(group.get(option) for option in _DECISIVE)) for group in groups]


def _are_constant(groups: Iterable[Group]) -> bool:
    """Whether no group's option can become another while it stays the same object."""
    return all(
        _is_constant(value)
        for group in groups
        for name, value in group.items()
        if name not in ("params", "param_names")
    )


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))
