"""Options of a parameter group: their defaults, and the checks that every group passes."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, Final, TypedDict

from torch import Tensor

from svag.anatomy import Anatomy
from svag.errors import InvalidOption, UnknownOption, nearest


class Options(TypedDict, total=False):
    """Keywords that every optimizer of the family takes.

    ``weight_decay``: coefficient lambda, added to the gradient as lambda * parameter, or, with
    ``decoupled_weight_decay``, taken off the parameter as lr * lambda * parameter.
    ``maximize``: ascend. ``foreach``: operate on lists (True), tensor by tensor (False), or
    as is faster on the device (None). ``fused``: no fused engine is part of this version, so
    True is refused. ``capturable``: keep steps and their arithmetic on the device, for CUDA
    graphs. ``differentiable``: let autograd see the step.
    """

    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


_COMMON: Final[Options] = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}
_EVERY: Final = ("lr", "beta", "betas", "eps", "amsgrad", "anatomy", *_COMMON)


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
                f"{', '.join(_own(anatomy))}, {', '.join(_COMMON)}.{nearest(key, _COMMON)}"
            )
    given = {"beta": beta, "betas": betas, "eps": eps, "amsgrad": amsgrad or None}
    for key, value in given.items():
        if value is not None and key not in _own(anatomy):
            raise UnknownOption(
                f"{name}() got an unexpected keyword argument {key!r}: {key}={value!r} has no "
                f"meaning for {anatomy}; it takes {', '.join(_own(anatomy))}"
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


def check_names(group: Mapping[str, Any], known: Mapping[str, Any], name: str) -> None:
    """Refuse a group's option that this optimizer has not: another row's, or one misspelt.

    Other keys pass, as in torch: schedulers and training scripts keep notes in groups.

    Raises:
        UnknownOption: a TypeError.
    """
    own = [key for key in known if key != "anatomy"]
    for key in group:
        foreign = key in _EVERY and key not in known
        misspelt = key not in known and key not in _EVERY and nearest(key, _EVERY, cutoff=0.85)
        if foreign or misspelt or key == "anatomy":
            raise UnknownOption(
                f"a parameter group has {key!r}, which {name} does not take per group; it takes "
                f"{', '.join(own)}.{nearest(key, own)}"
            )


def check(group: Mapping[str, Any]) -> None:
    """Refuse a group's options where they are outside their sets or contradict each other.

    Raises:
        InvalidOption: a ValueError that begins with the words torch has for the case.
    """
    _check_number("lr", "learning rate", group["lr"])
    betas = group.get("betas", (group["beta"],) if "beta" in group else ())
    if "betas" in group and not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise InvalidOption(f"Invalid betas: {betas!r}; give two decays, e.g. (0.9, 0.999)")
    for index, beta in enumerate(betas):
        if not (_is_number(beta) and 0.0 <= beta < 1.0):
            raise InvalidOption(
                f"Invalid beta parameter at index {index}: {beta!r}; a decay lies in [0, 1): "
                "0 averages nothing, 0.9 over some 19 gradients, and 1 would never move"
            )
    _check_number("eps", "epsilon value", group.get("eps", 0.0))
    _check_number("weight_decay", "weight_decay value", group["weight_decay"])
    if group["fused"]:
        raise InvalidOption(
            "fused=True: this version has no fused engine; use fused=None or False (eager)"
        )
    if group["foreach"] and group["differentiable"]:
        raise InvalidOption(
            "foreach=True with differentiable=True: list operations do not support autograd; "
            "use foreach=None or False"
        )


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
