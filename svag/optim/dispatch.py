"""Which engine updates which parameter, and whether that still holds at the next step.

Fused engines work on tables of addresses, and tensors move between steps: gradients are made
anew, ``.data`` is swapped, states are loaded. So every step looks where all of them are
(:mod:`svag.optim.change_detection`). A gradient elsewhere is a number to write, one that is gone
leaves its parameter out; anything else out of place makes a new plan.
"""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from svag.anatomy import Anatomy
from svag.errors import EngineUnavailable
from svag.optim import options
from svag.optim.change_detection import Sight
from svag.optim.dtensor import PLAIN, is_distributed, local, local_gradient
from svag.optim.engines import support
from svag.optim.engines.kernel_spec import REAL, Kernel
from svag.optim.rule import Settings

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]

_DECISIVE = (
    *("fused", "foreach", "capturable", "differentiable"),
    *("state_dtype", "stochastic_rounding"),
)


class Entry(NamedTuple):
    """A parameter that takes steps: its place among all, its group and its state."""

    param: Tensor
    place: int
    group: int
    state: State


class Fused:
    """Parameters that one kernel updates in one call.

    Args:
        kernel: what their update is made of.
        entries: the parameters.
        state_places: where their states stand among all, by place of the parameter.

    Attributes:
        places: of the parameters among all of the optimizer's.
    """

    def __init__(
        self, kernel: Kernel, entries: Sequence[Entry], state_places: Mapping[int, int]
    ) -> None:
        shards = [local(entry.param) for entry in entries]
        engine = support.engine(shards[0].device.type)
        assert not isinstance(engine, str)
        self._table = engine.Table(
            kernel,
            shards[0].device,
            sizes=[shard.numel() * (2 if shard.is_complex() else 1) for shard in shards],
            groups=[entry.group for entry in entries],
            streams=[entry.place for entry in entries],
        )
        names = [name for name in kernel.columns if name != "grad_var"]
        self.places = [entry.place for entry in entries]
        self._sight = Sight(
            self.places,
            [state_places[place] for place in self.places] if names else [],
            names,
            within_batch=kernel.switches.within_batch,
            distributed=any(is_distributed(entry.param) for entry in entries),
        )

    def follow(self, params: Sequence[Tensor], states: Sequence[State]) -> bool:
        """Find the tensors where they are now; False if more has changed than gradients' places."""
        if not self._sight.look(params, states):
            return False
        for column in self._sight.moved:
            self._table.place(column, self._sight.addresses[column])
        return True

    def launch(
        self,
        settings: Sequence[Settings],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Take the step, each parameter by its group's settings.

        Args:
            settings: of all groups.
            grad_scale: what the loss was multiplied by.
            found_inf: not 0 if the step is to be left out.
        """
        self._table.launch(settings, grad_scale, found_inf)
        self._sight.count_changes()


class Plan:
    """How one optimizer takes its steps, as long as nothing but gradients is replaced.

    It holds numbers and no tensor: what has been let go of is freed.

    Args:
        anatomy: of the update.
        groups: parameter groups.
        states: of all parameters.
        entries: every parameter that has a gradient, or has had one and has a state. One without
            a gradient is left out if it would not fit now; it need not until it takes a step.

    Attributes:
        fused: what the fused engines update.
        rest: places of the parameters that are left to the eager engine.
        settings: of all groups, kept by the optimizer; None once an option may be another.

    Raises:
        EngineUnavailable: a group asks for a fused engine, and one of its parameters has none.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        groups: Sequence[Group],
        states: Mapping[Tensor, State],
        entries: Sequence[Entry],
    ) -> None:
        self._anatomy = anatomy
        self._remember(groups)
        self._settled = True
        self.rest: dict[int, torch.layout | None] = {}
        tables: dict[tuple[int, torch.device, Kernel], list[tuple[Kernel, Entry]]] = {}
        turns = _turns(entries)
        taken = set()
        for entry in entries:
            kernel = self._assign(anatomy, groups[entry.group], entry)
            if kernel is None and entry.param.grad is None:
                continue
            taken.add(entry.place)
            if kernel is None:
                self.rest[entry.place] = _kind(entry.param.grad)
            else:
                device = local(entry.param).device
                key = (
                    turns.get(entry.place, 0),
                    device,
                    kernel.with_options(decays=False, alters=False),
                )
                tables.setdefault(key, []).append((kernel, entry))
        params = _params(groups)
        self._params, self._states = list(map(id, params)), list(map(id, states))
        self._lengths = [len(group["params"]) for group in groups]
        place_of_state = {key: place for place, key in enumerate(self._states)}
        state_places = {
            place: place_of_state[key]
            for place, key in enumerate(self._params)
            if key in place_of_state
        }
        self.fused = []
        for _, together in sorted(tables.items(), key=lambda item: item[0][0]):
            kernels, of_table = zip(*together, strict=True)
            self.fused.append(Fused(Kernel.united(kernels), of_table, state_places))
        self._waiting = [place for place in range(len(params)) if place not in taken]
        if not self._follow(params, list(states.values())):
            raise AssertionError("a tensor has no address, though an engine was chosen for it")

    def holds(
        self, anatomy: Anatomy, groups: Sequence[Group], states: Mapping[Tensor, State]
    ) -> bool:
        """Whether everything is as it was, gradients' places aside."""
        if not (self._settled and anatomy is self._anatomy and self._groups_hold(groups)):
            return False
        params = _params(groups)
        if list(map(id, params)) != self._params or list(map(id, states)) != self._states:
            return False
        if [len(group["params"]) for group in groups] != self._lengths:
            return False
        return (
            all(params[place].grad is None for place in self._waiting)
            and all(_kind(params[i].grad) in (kind, None) for i, kind in self.rest.items())
            and self._follow(params, list(states.values()))
        )

    def launch(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Take a step with what the fused engines update, by the settings set before."""
        for fused in self.fused:
            assert self.settings is not None
            fused.launch(self.settings, grad_scale, found_inf)

    def _follow(self, params: Sequence[Tensor], states: Sequence[State]) -> bool:
        return all(fused.follow(params, states) for fused in self.fused)

    def _groups_hold(self, groups: Sequence[Group]) -> bool:
        """Whether all options let the plan stand; the settings are dropped if one is another."""
        if len(groups) != len(self._options):
            return False
        held = zip(self._options, groups, strict=True)
        if self._constant and all(options.are_the_same(group) for options, group in held):
            return True
        before = self._decisive
        self._remember(groups)
        return self._decisive == before

    def _remember(self, groups: Sequence[Group]) -> None:
        self._options = [_Options(group) for group in groups]
        self._decisive = [_decisive(self._anatomy, group) for group in groups]
        self._constant = all(options.are_constant() for options in self._options)
        self.settings: list[Settings] | None = None

    def _assign(self, anatomy: Anatomy, group: Group, entry: Entry) -> Kernel | None:
        """Choose the kernel that updates a parameter; None for the eager engine."""
        asked, param = group["fused"], local(entry.param)
        if not may_be_fused(group):
            return None
        kernel = None
        reason = support.refusal(param)
        if reason is None:
            kernel, reason = self._fit(anatomy, group, entry, param)
            self._settled &= reason is None or entry.param.grad is None
        if reason is not None and asked and entry.param.grad is not None:
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
        needed = Kernel.of(anatomy, group, param.dtype)
        names = [name for name in needed.columns if name not in ("step", "grad_var")]
        if not all(isinstance(entry.state.get(name), Tensor) for name in names):
            return None, "its state is not whole"
        buffers = [local(entry.state[name]) for name in names]
        beside = {}
        if entry.param.grad is not None:
            beside["gradient"] = local_gradient(entry.param)
            if anatomy.within_batch:
                beside["gradient variance"] = local(cast(Any, entry.param).grad_var)
        if not all(map(support.is_in_memory, (param, *beside.values(), *buffers))):
            if not beside:
                return None, "it has no memory"
            raise EngineUnavailable(
                f"parameter {entry.place} of shape {tuple(param.shape)}, its gradient or its state "
                "has no memory: a storage was resized to less than its tensor; restore it before "
                "the step, or set p.grad to None to leave the parameter out"
            )
        reason = support.mismatch(param, beside, buffers)
        for dtype in (buffer.dtype for buffer in buffers):
            if reason is None and REAL.get(dtype, dtype) != needed.state:
                reason = f"its averages are {dtype}, not {needed.state}"
        if reason is not None:
            return None, reason
        _settle_step(entry.state, param)
        return needed, None


def may_be_fused(group: Group) -> bool:
    """Whether a group's options leave its parameters to a fused engine where there is one."""
    chosen = group["fused"] or (group["fused"] is None and group["foreach"] is None)
    return bool(chosen) and not group["differentiable"]


def in_turns(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Part parameters so that those that share memory are updated one after the other."""
    turns = _turns(entries)
    if not turns:
        return [list(entries)]
    rounds: dict[int, list[Entry]] = {}
    for entry in entries:
        rounds.setdefault(turns.get(entry.place, 0), []).append(entry)
    return [rounds[turn] for turn in sorted(rounds)]


def _turns(entries: Iterable[Entry]) -> dict[int, int]:
    """Say, by place, when parameters that share memory take their turns: each after those before.

    Empty where no two do, which a look at their sorted spans tells.
    """
    spans = []
    for entry in entries:
        shard = local(entry.param)
        if type(shard) in PLAIN and not shard.is_meta and shard.numel():
            begin = shard.data_ptr()
            spans.append((begin, begin + support.reach(shard), entry.place))
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


def _params(groups: Sequence[Group]) -> list[Tensor]:
    """Return all parameters."""
    return list(itertools.chain.from_iterable(group["params"] for group in groups))


def _kind(grad: Tensor | None) -> torch.layout | None:
    """Return how a gradient is stored, None if there is none."""
    return None if grad is None else grad.layout


def _decisive(anatomy: Anatomy, group: Group) -> tuple[Any, ...]:
    """Return what a plan depends on of a group's options."""
    return options.switches_of(anatomy, group), *(group[option] for option in _DECISIVE)


class _Options:
    """The options of a group as objects: while they are the same, nothing has to be compared."""

    def __init__(self, group: Group) -> None:
        names = [name for name in group if name not in ("params", "param_names")]
        self._get, self._count = operator.itemgetter(*names), len(group)
        self._values = self._get(group)

    def are_the_same(self, group: Group) -> bool:
        """Whether a group has these objects under these names, and no other option."""
        if len(group) != self._count:
            return False
        try:
            return all(map(operator.is_, self._get(group), self._values))
        except KeyError:
            return False

    def are_constant(self) -> bool:
        """Whether no option can become another while it stays the same object."""
        return all(map(_is_constant, self._values))


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))
