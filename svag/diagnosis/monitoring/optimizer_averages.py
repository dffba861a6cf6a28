"""Reads an optimizer's moving averages at a fixed sample of each tensor's coordinates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from svag.anatomy import METHODS, Anatomy
from svag.diagnosis.monitoring.noise_figures import Sample
from svag.errors import InvalidOption, NoStepYet
from svag.optim import Dissected
from svag.optim.adaptation import averages_gradient, factor_of, moments_of, step_count, tensors_of

NamedParameters = Iterable[tuple[str, Tensor]]


class _Found(NamedTuple):
    """A tensor's averages at its sampled coordinates."""

    name: str
    group: Mapping[str, Any]
    entries: int
    step: float
    tensors: dict[str, Tensor]


class Averages:
    """The averages of an optimizer, to be read again and again.

    Args:
        optimizer: of svag, in a row with a factor, or ``torch.optim.Adam`` or ``AdamW``; an
            optimizer that wraps one of them as ``.optimizer`` will do.
        names: names of the parameters; without them, those that the optimizer was given, else
            ``param0``, ``param1``, ...
        coordinates: most coordinates to read of a tensor; None for all.
        seed: of the choice of coordinates, which is the same at each reading.

    Attributes:
        optimizer: the one that is read.
        anatomy: its row of the table.

    Raises:
        InvalidOption: the optimizer keeps no averages from which a variance follows.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        names: NamedParameters | None = None,
        *,
        coordinates: int | None = None,
        seed: int = 0,
    ) -> None:
        if coordinates is not None and not (_is_whole(coordinates) and coordinates >= 1):
            raise InvalidOption(f"coordinates={coordinates!r} is not an integer >= 1, or None")
        if not _is_whole(seed) or not -(2**62) <= seed < 2**62:
            raise InvalidOption(f"seed={seed!r} is not an integer from -2^62 to 2^62")
        self.optimizer = _unwrapped(optimizer)
        self.anatomy = _anatomy_of(self.optimizer)
        self._names = {id(param): name for name, param in names or ()}
        self._coordinates = None if coordinates is None else int(coordinates)
        self._seed = int(seed)
        self._chosen: dict[int, tuple[int, Tensor]] = {}

    @property
    def step(self) -> float:
        """The largest number of steps in a tensor's averages; 0 where nothing is averaged."""
        states = self.optimizer.state.values()
        return max((float(state["step"]) for state in states if "step" in state), default=0.0)

    @torch.no_grad()
    def read(self) -> list[Sample]:
        """Return estimates for each tensor that has had a step and has entries in this process."""
        found = list(self._found())
        flat = [tensor for one in found for tensor in one.tensors.values()]
        moved = iter(_on_cpu(flat))
        samples = []
        for name, group, entries, step, tensors in found:
            moments = moments_of(self.anatomy, group, step, {role: next(moved) for role in tensors})
            gamma = factor_of(self.anatomy, moments)
            seen = self.anatomy.within_batch or moments.rho < 1
            samples.append(Sample(name, entries, moments, gamma, seen))
        return samples

    def _found(self) -> Iterator[_Found]:
        place = 0
        averaged = averages_gradient(self.anatomy)
        for group in self.optimizer.param_groups:
            given = group.get("param_names", ())
            for number, param in enumerate(group["params"]):
                place += 1
                state = self.optimizer.state.get(param, {})
                if not averaged and param.grad is None:
                    continue
                try:
                    tensors = tensors_of(self.anatomy, group, param, state)
                except NoStepYet:
                    continue
                entries = tensors["mean"].numel()
                if not entries:
                    continue
                name = self._names.get(id(param)) or (
                    given[number] if given else f"param{place - 1}"
                )
                step = step_count(state, param) if averaged else 0.0
                chosen = {
                    role: self._at_the_sample(place, tensor) for role, tensor in tensors.items()
                }
                yield _Found(name, group, entries, step, chosen)

    def _at_the_sample(self, place: int, tensor: Tensor) -> Tensor:
        tensor, count = tensor.detach(), tensor.numel()
        if self._coordinates is None or count <= self._coordinates:
            return tensor.reshape(-1)
        known, index = self._chosen.get(place, (0, None))
        if index is None or known != count:
            generator = torch.Generator().manual_seed(self._seed + place)
            index = torch.randint(count, (self._coordinates,), generator=generator).sort().values
        index = index.to(tensor.device)
        self._chosen[place] = count, index
        return torch.take(tensor, index)


def names_of(model: nn.Module | None, named: NamedParameters | None) -> NamedParameters | None:
    """Return names of parameters, from a model or as given.

    Raises:
        InvalidOption: both are given, or one has the wrong type.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise InvalidOption(f"model={model!r:.60} is no torch.nn.Module; give the module itself")
    if model is not None and named is not None:
        raise InvalidOption("give model= or named_parameters=, not both: each names the parameters")
    if model is not None:
        return model.named_parameters()
    pairs = None if named is None else list(named)
    for pair in pairs or ():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidOption(
                f"named_parameters has {pair!r:.60}, not a pair (name, parameter); give "
                "model.named_parameters()"
            )
    return pairs


def _is_whole(value: object) -> bool:
    """Whether a value is an integer, of Python or NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


_ADAM: Final = METHODS["adam"].anatomy


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside wrappers such as accelerate's."""
    while not isinstance(optimizer, Dissected | Adam | AdamW):
        inside = getattr(optimizer, "optimizer", None)
        if not isinstance(inside, Optimizer):
            break
        optimizer = inside
    return optimizer


def _anatomy_of(optimizer: Optimizer) -> Anatomy:
    remedy = (
        "use an optimizer of svag with a factor (SVAG, MSVAG, Adam, AdamStar, or Dissected), or "
        "torch.optim.Adam or AdamW"
    )
    if isinstance(optimizer, Dissected):
        if not optimizer.anatomy.adapted:
            raise InvalidOption(
                f"{type(optimizer).__name__}, {optimizer.anatomy}, keeps no average of squared "
                f"gradients, so it knows no variance; {remedy}"
            )
        return optimizer.anatomy
    if isinstance(optimizer, Adam | AdamW):
        return _ADAM
    raise InvalidOption(
        f"averages of {type(optimizer).__module__}.{type(optimizer).__qualname__} are not known; "
        f"{remedy}"
    )


def _on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return vectors on the CPU; there is one copy for each device and dtype."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault((tensor.device, tensor.dtype), []).append(place)
    moved = list(tensors)
    for of_kind in places.values():
        joined = torch.cat([tensors[place] for place in of_kind]).cpu()
        for place, part in zip(
            of_kind, joined.split([tensors[place].numel() for place in of_kind]), strict=True
        ):
            moved[place] = part
    return moved
