"""Builds the optimizer of an entrant, svag's own or one from outside.

An optimizer from outside is a class, or a function that returns an optimizer; it is called as
``name(params, lr=lr, **options)``.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from svag import optim
from svag.entrants import Entrant
from svag.errors import ProblemError, UnknownOption, in_one_line, nearest
from svag.problems import identity, user_code

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]]

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build(entrant: Entrant, params: Params, *, lr: float) -> Optimizer:
    """Build an optimizer.

    Args:
        entrant: the entrant.
        params: tensors, or parameter groups; options of a group override the entrant's.
        lr: step size.

    Raises:
        ProblemError: an optimizer from outside cannot be found, raises, or cannot be used in a run.
        UnknownOption: (a TypeError) it does not take one of the options.

    Example:
        >>> from svag.entrants import entrant
        >>> type(build(entrant("m-svag(beta=0.95)"), [torch.ones(2)], lr=0.3)).__name__
        'MSVAG'
    """
    given = list(params)
    if entrant.anatomy is None:
        return _found(entrant).build(given, lr)
    options = dict(entrant.options)
    if not entrant.row:
        options["anatomy"] = entrant.anatomy
    elif entrant.within_batch:
        options["variance"] = entrant.anatomy.variance
    make: Callable[..., Optimizer] = getattr(optim, entrant.optimizer)
    return make(given, lr=lr, **options)


def check(entrant: Entrant, params: Iterable[Tensor] | None = None) -> None:
    """Build an optimizer from outside and take a step, before anything is trained with it.

    Args:
        entrant: the entrant; one of svag's own is not checked.
        params: a model's parameters, which are not changed; by default one matrix.

    Raises:
        ProblemError: it cannot be built, ignores its step size, or cannot take a step.
        UnknownOption: (a TypeError) it does not take one of the options.
    """
    if not entrant.outside:
        return
    found = _found(entrant)
    given = [torch.ones(2, 2)] if params is None else [p for p in params if p.requires_grad]
    copies = [p.detach().clone().requires_grad_() for p in given]
    one, other = (_lrs(found.build(copies, lr)) for lr in (entrant.lr, entrant.lr / 2))
    if one == other:
        raise found.refused(
            f"has the step size {one[0]:g} whatever lr it is called with, so none can be searched "
            "for; pass its lr on"
        )
    optimizer = found.build(copies, entrant.lr)
    for copy in copies:
        copy.grad = torch.ones_like(copy)
    try:
        optimizer.step()
    except Exception as error:
        raise found.raised("cannot take a step", error) from error


def code_version(entrant: Entrant) -> str:
    """Return the version of an optimizer's code; empty for svag's own.

    It is ``package==version`` for an installed package, and for a user's own optimizer a hash of
    the code that it reaches.

    Raises:
        ProblemError: it cannot be found.

    Example:
        >>> from svag.entrants import entrant
        >>> code_version(entrant("torch.optim.SGD")).partition("==")[0]
        'torch'
    """
    if not entrant.outside:
        return ""
    found = _found(entrant)
    if found.installed:
        return _package(found.module.__name__.partition(".")[0])
    return identity.version(found.module, found.name)


@dataclass(frozen=True)
class _Found:
    """An optimizer from outside, imported."""

    entrant: Entrant
    module: ModuleType
    name: str

    @property
    def installed(self) -> bool:
        return user_code.installed(self.module)

    @property
    def factory(self) -> Callable[..., object]:
        made: Callable[..., object] = getattr(self.module, self.name)
        return made

    def build(self, given: list[Any], lr: float) -> Optimizer:
        _check_keywords(self)
        try:
            built = self.factory(given, lr=lr, **self.entrant.options)
        except (Exception, SystemExit) as error:
            raise self.raised("could not be built", error) from error
        if not isinstance(built, Optimizer):
            raise self.refused(f"is {type(built).__name__}; make a torch.optim.Optimizer")
        _check_step(self, built)
        _check_groups(self, built, given)
        _check_weight_decay(self, built, given)
        return built

    def refused(self, why: str) -> ProblemError:
        """Return the error that says why it cannot be compared, and where the user defined it."""
        return ProblemError(f"the optimizer {self.entrant.key!r} {why}{self._defined()}")

    def raised(self, what: str, error: BaseException) -> ProblemError:
        """Return the error that quotes what it raised, with the line of the user's code."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if not self.installed:
            text = in_one_line(error)
        return ProblemError(f"the optimizer {self.entrant.key!r} {what}: {text}")

    def _defined(self) -> str:
        if self.installed:
            return ""
        try:
            line = inspect.getsourcelines(self.factory)[1]
            return f" ({inspect.getsourcefile(self.factory)}:{line})"
        except (OSError, TypeError):
            return f" ({self.module.__file__})"


def _found(entrant: Entrant) -> _Found:
    return _Found(entrant, *user_code.resolve(entrant.optimizer))


def _check_keywords(found: _Found) -> None:
    """Raise if the optimizer's signature does not accept ``lr`` or one of the options."""
    options = found.entrant.options
    called = f"{found.name}({', '.join(['params', 'lr=lr', *(f'{name}=...' for name in options)])})"
    try:
        signature = inspect.signature(found.factory)
    except (ValueError, TypeError):
        return  # callables written in C may have no signature
    takes = signature.parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        if "lr" not in takes:
            raise found.refused(f"takes no lr; it is called as {called}")
        names = [name for name in list(takes)[1:] if name != "lr"]
        for option in options:
            if option not in names:
                raise UnknownOption(
                    f"{found.entrant.key!r}: there is no option {option!r}; options are "
                    f"{', '.join(names) or 'none'}.{nearest(option, names)}"
                )
    try:
        signature.bind([], lr=found.entrant.lr, **options)
    except TypeError as error:
        raise found.refused(
            f"cannot be called as {called}: {error}; options are NAME=VALUE in parentheses"
        ) from None


def _check_step(found: _Found, built: Optimizer) -> None:
    """Raise if ``step()`` needs arguments, such as the closure of LBFGS."""
    parameters = list(inspect.signature(type(built).step).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    if needed:
        raise found.refused(
            f"cannot be compared: its step() needs {', '.join(needed)}, and a run calls step() "
            "without arguments, once a gradient"
        )


def _check_groups(found: _Found, built: Optimizer, given: list[Any]) -> None:
    """Raise if a group has no step size, or if parameters are missing from the groups."""
    groups = getattr(built, "param_groups", [])
    if not groups or any("lr" not in group for group in groups):
        raise found.refused("has groups without 'lr', which schedules set; give every group one")
    held = {id(p) for group in groups for p in group["params"]}
    asked = [p for p in _tensors(given) if p.requires_grad]
    left_out = sum(id(p) not in held for p in asked)
    if left_out:
        raise found.refused(
            f"leaves out {left_out} of {len(asked)} parameters, which would not be trained; take "
            "all that it is called with"
        )


def _check_weight_decay(found: _Found, built: Optimizer, given: list[Any]) -> None:
    """Raise if the optimizer would ignore a group's weight decay; torch accepts unknown keys."""
    decays = [group.get("weight_decay") for group in given if isinstance(group, Mapping)]
    if any(decays) and "weight_decay" not in built.defaults:
        raise found.refused(
            f"has no weight_decay, and the problem's is {max(filter(None, decays)):g}; compare "
            "without it, --weight-decay 0, or leave this optimizer out"
        )


def _tensors(given: list[Any]) -> list[Tensor]:
    if given and isinstance(given[0], Mapping):
        return [p for group in given for p in group["params"]]
    return given


def _lrs(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@cache
def _package(module: str) -> str:
    """Return the installed package that contains a module, with its version."""
    try:
        owners = {module: metadata.version(module)}
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(module, [])
        owners = {name: metadata.version(name) for name in sorted(set(names))}
    # Builds of one version for different devices differ in the local version after the plus.
    return ", ".join(f"{name}=={version.partition('+')[0]}" for name, version in owners.items())
