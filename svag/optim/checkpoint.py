"""Another method's state in this method's terms."""

import warnings
from typing import Any

import torch
from torch import Tensor

from svag.anatomy import METHODS, Anatomy
from svag.optim.moments import debiasing

_TORCH_ADAM = str(METHODS["adam"].anatomy)


def translate(
    state_dict: dict[str, Any], anatomy: Anatomy, groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return ``state_dict`` as it is if it is of this anatomy, else in its terms, with a warning.

    What is kept, rescaled or begun anew: :meth:`svag.Dissected.load_state_dict`.

    Args:
        state_dict: of any optimizer of the family, or of ``torch.optim.Adam``.
        anatomy: of the optimizer that takes the state over.
        groups: that optimizer's parameter groups, whose options stay.
    """
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        return state_dict  # torch says that the number of groups is wrong
    saved = {_anatomy(group) for group in saved_groups}
    own = str(anatomy)
    if saved == {own}:
        # What a checkpoint of an older torch does not mention is as it is here.
        return {
            **state_dict,
            "state": {index: _tensor_step(entry) for index, entry in state_dict["state"].items()},
            "param_groups": [{**g, **s} for g, s in zip(groups, saved_groups, strict=True)],
        }
    warnings.warn(
        f"loading the state of {' and '.join(sorted(saved))} into {own}: this optimizer keeps its "
        "own options, takes the moving averages over, rescaled to its betas, and starts the "
        "others afresh",
        UserWarning,
        stacklevel=3,
    )
    state: dict[Any, Any] = {}
    for saved_group, group in zip(saved_groups, groups, strict=True):
        for index in saved_group["params"]:
            entry = _rescaled(
                state_dict["state"].get(index, {}), _betas(saved_group), _betas(group)
            )
            if anatomy.buffers and entry:
                state[index] = {name: entry[name] for name in ("step", *anatomy.buffers)}
    return {
        **state_dict,
        "state": state,
        "param_groups": [
            {**g, "params": s["params"]} for g, s in zip(groups, saved_groups, strict=True)
        ],
    }


def _anatomy(group: dict[str, Any]) -> str:
    """Name the anatomy that a saved group is of; Adam and AdamW of torch do not say it."""
    is_adam = {"betas", "eps", "amsgrad"} <= group.keys()
    return str(group.get("anatomy", _TORCH_ADAM if is_adam else "another optimizer"))


def _betas(group: dict[str, Any]) -> tuple[float, float]:
    first, second = group.get("betas") or (group.get("beta", 0.0),) * 2
    return float(first), float(second)


def _tensor_step(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose step is a tensor, which it was not before torch 1.12."""
    if "step" not in entry or isinstance(entry["step"], Tensor):
        return entry
    return {**entry, "step": torch.tensor(float(entry["step"]), dtype=torch.float32)}


def _rescaled(
    entry: dict[str, Any], saved: tuple[float, float], own: tuple[float, float]
) -> dict[str, Any]:
    """Rescale m~ and v~ so that, debiased with this optimizer's betas, m and v are unchanged."""
    if "exp_avg" not in entry or float(entry.get("step", 0)) < 1:
        return {}
    step = float(entry["step"])
    mean: Tensor = entry["exp_avg"] / debiasing(saved[0], step)
    if "exp_avg_sq" in entry:
        second = entry["exp_avg_sq"] / debiasing(saved[1], step)
    elif mean.is_complex():
        second = torch.view_as_complex(torch.view_as_real(mean).square())
    else:
        second = mean.square()
    return {
        **_tensor_step({"step": entry["step"]}),
        "exp_avg": mean * debiasing(own[0], step),
        "exp_avg_sq": second * debiasing(own[1], step),
    }
