"""Another method's state in this method's terms."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svag.anatomy import METHODS, Anatomy
from svag.optim.moments import debiasing, rho

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
    """Rescale m~ and v~ so that, debiased with this optimizer's betas, m and v are unchanged.

    The variance of m, which within-batch rows keep, is rho (v - m^2)/(1 - rho), and v is m^2 where
    there is neither.
    """
    if "exp_avg" not in entry or float(entry.get("step", 0)) < 1:
        return {}
    step = float(entry["step"])
    weight, own_weight = debiasing(saved[0], step), debiasing(own[0], step)
    mean: Tensor = entry["exp_avg"] / weight
    share = rho(saved[0], step)  # the variance of m over that of g
    if "exp_avg_sq" in entry:
        second = entry["exp_avg_sq"] / debiasing(saved[1], step)
        spread = _per_real(lambda v, m: (v - m * m).clamp_min(0), second, mean)
        variance = spread * (share / (1 - share)) if share < 1 else torch.zeros_like(mean)
    else:
        variance = torch.zeros_like(mean)
        if "exp_avg_var" in entry:
            variance = entry["exp_avg_var"] / (weight * weight)
        second = _per_real(lambda r, m: m * m + r * ((1 - share) / share), variance, mean)
    return {
        **_tensor_step({"step": entry["step"]}),
        "exp_avg": mean * own_weight,
        "exp_avg_sq": second * debiasing(own[1], step),
        "exp_avg_var": variance * (own_weight * own_weight),
    }


def _per_real(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Apply a function to real tensors, or to complex ones as pairs of reals."""
    if not x.is_complex():
        return function(x, y)
    return torch.view_as_complex(function(torch.view_as_real(x), torch.view_as_real(y)))
