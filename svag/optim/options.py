"""Options of a parameter group: their defaults, and the checks that every group passes."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final, TypedDict

import torch
from torch import Tensor

from svag.anatomy import Anatomy
from svag.errors import ConflictingOptions, InvalidOption, UnknownOption, nearest
from svag.optim.rule import Switches


class Options(TypedDict, total=False):
    """Keywords that every optimizer of the family takes.

    No engine writes to a gradient: where a fused step divides by a ``GradScaler``'s scale itself,
    ``p.grad`` stays scaled, unlike in torch.

    Attributes:
        weight_decay: coefficient lambda, added to the gradient as lambda * parameter, or, with
            ``decoupled_weight_decay``, taken off the parameter as lr * lambda * parameter.
        decoupled_weight_decay: AdamW's weight decay instead of the L2 term.
        maximize: ascend.
        foreach: operate on lists (True), tensor by tensor (False), or by the fused engine, else as
            is faster (None).
        fused: update each element once, in one pass over memory: by the fused engine (True),
            wherever there is one (None), or not (False).
        capturable: keep steps and their arithmetic on the device, for CUDA graphs.
        differentiable: let autograd see the step.
        state_dtype: dtype of the moving averages, ``torch.bfloat16`` or ``torch.float32``, of
            parameters in float32 or half precision; None is the parameter's own. Averages kept in
            bfloat16 by this option are rounded stochastically, so that small increments count on
            average.
        stochastic_rounding: round bfloat16 parameters, and their bfloat16 averages, so as well.
        seed: of the noise, which depends on it, the step, the parameter's place and the element
            alone: a run can be repeated and resumed to the bit.
    """

    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool
    state_dtype: torch.dtype | None
    stochastic_rounding: bool
    seed: int


_COMMON: Final[Options] = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
    "state_dtype": None,
    "stochastic_rounding": False,
    "seed": 0,
}
_EVERY: Final = ("lr", "beta", "betas", "eps", "amsgrad", "anatomy", *_COMMON)

# What options of torch.optim are called in rows that have one beta.
_WITH_ONE_BETA: Final = {
    "momentum": " torch's momentum is beta here, of an average where torch has a sum: "
    "lr becomes lr / (1 - momentum)",
    "betas": " All averages share one decay: beta=0.9",
    "eps": " No eps is needed: where m = v = 0 the parameter stays",
}


def defaults(
    name: str,
    anatomy: Anatomy,
    *,
    lr: float | Tensor,
    beta: float | None,
    betas: tuple[float | Tensor, float | Tensor] | None,
    eps: float | None,
    amsgrad: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options of a group that names none itself.

    Rows with the raw relative variance have Adam's ``betas``, ``eps`` and ``amsgrad``; other
    rows that average have one ``beta``; the rest have neither.
    """
    for key in options:
        if key not in _COMMON:
            raise UnknownOption(
                f"{name}() got an unexpected keyword argument {key!r}; it takes "
                f"{', '.join(_own(anatomy))}, {', '.join(_COMMON)}."
                f"{_of_torch(key, anatomy) or nearest(key, _COMMON)}"
            )
    given = {"beta": beta, "betas": betas, "eps": eps, "amsgrad": amsgrad or None}
    for key, value in given.items():
        if value is not None and key not in _own(anatomy):
            raise UnknownOption(
                f"{name}() got an unexpected keyword argument {key!r}: {key}={value!r} has no "
                f"meaning for {anatomy}; it takes {', '.join(_own(anatomy))}."
                f"{_of_torch(key, anatomy)}"
            )
    own: dict[str, Any] = {"lr": lr, "anatomy": str(anatomy)}
    if "beta" in _own(anatomy):
        own["beta"] = 0.9 if beta is None else beta
    if "betas" in _own(anatomy):
        own["betas"] = (0.9, 0.999) if betas is None else betas
        own["eps"] = 1e-8 if eps is None else eps
        own["amsgrad"] = amsgrad
    return {**own, **_COMMON, **options}


def _own(anatomy: Anatomy) -> tuple[str, ...]:
    if anatomy.raw:
        return ("lr", "betas", "eps", "amsgrad")
    return ("lr", "beta") if anatomy.buffers else ("lr",)


def _of_torch(key: str, anatomy: Anatomy) -> str:
    """Say what an option of torch's optimizers is called here; empty if nothing is to be said."""
    if "beta" in _own(anatomy):
        return _WITH_ONE_BETA.get(key, "")
    return " The rows that average have beta: svag.MSGD, svag.MSSD" if key == "momentum" else ""


def switches_of(anatomy: Anatomy, group: Mapping[str, Any]) -> Switches:
    """Return what the update of a group's elements is made of.

    A weight decay that is a tensor is not read, since it may be on a device.
    """
    decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
    decays = isinstance(decay, Tensor) or decay != 0
    return Switches.of(
        anatomy,
        amsgrad=group.get("amsgrad", False),
        decays=decays and not decoupled,
        alters=group["maximize"] or (decays and decoupled),
    )


def dithers(group: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether bfloat16 parameters, and bfloat16 averages, are rounded stochastically."""
    stochastic = group["stochastic_rounding"]
    return stochastic, stochastic or group["state_dtype"] is not None


def check_names(group: Mapping[str, Any], known: Mapping[str, Any], name: str) -> None:
    """Refuse a group's option that this optimizer has not: another row's, or one misspelt.

    Other keys pass, as in torch: schedulers and training scripts keep notes in groups, such as
    ``no_weight_decay`` and ``weight_decay_end``. A key that has an option's whole name in it is
    taken for a note, not for a misspelling.

    Raises:
        UnknownOption: a TypeError.
    """
    own = [key for key in known if key != "anatomy"]
    for key in group:
        foreign = key in _EVERY and key not in known
        if foreign or _is_misspelt(key) or key == "anatomy":
            raise UnknownOption(
                f"a parameter group has {key!r}, which {name} does not take per group; it takes "
                f"{', '.join(own)}.{nearest(key, own)}"
            )


def _is_misspelt(key: str) -> bool:
    if any(option in key for option in _EVERY):
        return False
    return bool(nearest(key, _EVERY, cutoff=0.85))


def check(group: Mapping[str, Any]) -> None:
    """Refuse a group's options where they are outside their sets or contradict each other.

    Raises:
        InvalidOption: a ValueError that begins with the words torch has for the case.
    """
    _check_number("lr", "learning rate", group["lr"])
    betas = group.get("betas", (group["beta"],) if "beta" in group else ())
    if "betas" in group and not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise InvalidOption(f"Invalid betas: {betas!r}; give two decays, e.g. (0.9, 0.999)")
    _check_tensors(group, betas)
    for index, beta in enumerate(betas):
        if not (_is_number(beta) and 0.0 <= beta < 1.0):
            raise InvalidOption(
                f"Invalid beta parameter at index {index}: {beta!r}; a decay lies in [0, 1): "
                "0 averages nothing, 0.9 over some 19 gradients, and 1 would never move"
            )
    _check_number("eps", "epsilon value", group.get("eps", 0.0))
    _check_number("weight_decay", "weight_decay value", group["weight_decay"])
    for flag in ("fused", "foreach"):
        if group[flag] and group["differentiable"]:
            raise ConflictingOptions(
                f"`{flag}` does not support `differentiable`: autograd does not see into it; "
                f"use {flag}=None or False"
            )
    if group["fused"] and group["foreach"]:
        raise ConflictingOptions(
            "`fused` and `foreach` cannot be `True` together: they are two engines; choose one"
        )
    _check_rounding(group)


def _check_rounding(group: Mapping[str, Any]) -> None:
    if group["state_dtype"] not in (None, torch.float32, torch.bfloat16):
        raise InvalidOption(
            f"state_dtype={group['state_dtype']!r}; it is torch.bfloat16, torch.float32, or None "
            "for the parameter's own"
        )
    if group["differentiable"] and (group["state_dtype"] or group["stochastic_rounding"]):
        raise ConflictingOptions(
            "differentiable=True with state_dtype or stochastic_rounding: rounding has no "
            "derivative; use neither"
        )
    if not isinstance(group["seed"], int) or not 0 <= group["seed"] < 2**32:
        raise InvalidOption(f"seed={group['seed']!r} is not an integer in [0, 2^32)")


def _check_tensors(group: Mapping[str, Any], betas: Sequence[Any]) -> None:
    """Refuse tensors where torch does: in lists of operations, which would have to read them."""
    listed = group["foreach"] and not group["capturable"]
    if listed and isinstance(group["lr"], Tensor):
        raise InvalidOption(
            "lr as a Tensor is not supported for capturable=False and foreach=True; "
            "use foreach=None, or capturable=True"
        )
    tensors = [isinstance(beta, Tensor) for beta in betas]
    if any(tensors) and not all(tensors):
        raise InvalidOption("betas must be either both floats or both Tensors")
    for index, beta in enumerate(betas):
        if listed and tensors[index]:
            raise InvalidOption(
                f"betas[{index}] as a Tensor is not supported for capturable=False and "
                "foreach=True; use foreach=None, or capturable=True"
            )
        if tensors[index] and beta.numel() != 1:
            raise InvalidOption(f"Tensor betas[{index}] must be 1-element, not {beta.numel()}")


def _check_number(key: str, words: str, value: float | Tensor) -> None:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InvalidOption(
            f"Tensor {key} must be 1-element, not of shape {tuple(value.shape)}; "
            "use parameter groups for several"
        )
    if not (_is_number(value) and value >= 0.0):  # NaN is refused too
        raise InvalidOption(
            f"Invalid {words}: {value!r}; {key} is a number >= 0"
            + ("; use maximize=True to ascend" if key == "lr" else "")
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Real) and not isinstance(value, bool))
