"""What an optimizer keeps of a parameter: which buffers, of which dtype, and where they begin."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from svag.anatomy import Anatomy
from svag.errors import InvalidOption
from svag.optim import huge_pages
from svag.optim.moments import step_of


def buffers(anatomy: Anatomy, group: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of a group's moving averages."""
    largest = ("max_exp_avg_sq",) if group.get("amsgrad") else ()
    return anatomy.buffers + largest


def dtype_of(group: dict[str, Any], param: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's moving averages.

    Raises:
        InvalidOption: (a ValueError) ``state_dtype`` with a parameter that has no other.
    """
    dtype: torch.dtype | None = group["state_dtype"]
    if dtype is not None and param.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InvalidOption(
            f"state_dtype={dtype} with a parameter of dtype {param.dtype}; averages are kept in "
            "another dtype for float32, bfloat16 and float16 parameters only: put others into a "
            "group of their own with state_dtype=None"
        )
    return dtype or param.dtype


def of(
    states: MutableMapping[Tensor, dict[str, Any]],
    anatomy: Anatomy,
    group: dict[str, Any],
    param: Tensor,
) -> dict[str, Any]:
    """Return a parameter's state, created where it has none and its method needs one.

    Args:
        states: of all parameters; a method without averages leaves it as it is, as torch does.
        anatomy: of the method.
        group: of the parameter.
        param: whose state it is.

    Raises:
        InvalidOption: (a ValueError) somebody has set a step that is none, or taken it away.
    """
    names = buffers(anatomy, group)
    if not names:
        return states.get(param, {})
    state = states[param]
    on_device = bool(group["capturable"] or group["fused"])
    device = param.device if on_device else torch.device("cpu")
    if "step" not in state:
        _refuse_averages(state, names, param)
        dtype = torch.float32 if group["fused"] else step_of(0).dtype
        state["step"] = torch.tensor(0.0, dtype=dtype, device=device)
    state["step"] = step_of(state["step"], device)
    for name in names:
        if name not in state:
            state[name] = huge_pages.zeros_like(param, dtype_of(group, param))
    return state


def count(step: Tensor) -> float:
    """Return the number of a step; of one under FakeTensorMode, which has none, any but 1."""
    return 2.0 if hasattr(step, "fake_mode") else step.item()


def _refuse_averages(state: dict[str, Any], names: tuple[str, ...], param: Tensor) -> None:
    there = [name for name in names if name in state]
    if there:
        raise InvalidOption(
            f"the state of a parameter of shape {tuple(param.shape)} has {' and '.join(there)} "
            "and no 'step', so it cannot be debiased; set state['step'] to the number of "
            "gradients in it, or delete the state"
        )
