"""Another method's state in this method's terms."""

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor

from svag.anatomy import METHODS
from svag.optim.moments import debiasing

if TYPE_CHECKING:
    from svag.optim.optimizer import Dissected

_TORCH_ADAM = str(METHODS["adam"].anatomy)


def translate(state_dict: dict[str, Any], optimizer: "Dissected") -> dict[str, Any]:
    """Return ``state_dict`` as it is if it is of the optimizer's anatomy, else translated.

    What is kept, rescaled or begun anew: :meth:`svag.Dissected.load_state_dict`.
    """
    saved_groups, groups = state_dict["param_groups"], optimizer.param_groups
    saved = {_anatomy(group) for group in saved_groups}
    own = str(optimizer.anatomy)
    if saved <= {own} or len(saved_groups) != len(groups):
        return state_dict  # torch reports a wrong number of groups
    warnings.warn(
        f"loading the state of {' and '.join(sorted(saved))} into {own}: this optimizer keeps its "
        "own options, takes the moving averages over, rescaled to its betas, and starts the "
        "others afresh",
        UserWarning,
        stacklevel=3,
    )
    state: dict[Any, Any] = {}
    new_groups = []
    for saved_group, group in zip(saved_groups, groups, strict=True):
        options = {key: value for key, value in group.items() if key != "params"}
        new_groups.append({**options, "params": saved_group["params"]})
        for index in saved_group["params"]:
            entry = _rescaled(
                state_dict["state"].get(index, {}), _betas(saved_group), _betas(group)
            )
            if optimizer.anatomy.buffers and entry:
                state[index] = {name: entry[name] for name in ("step", *optimizer.anatomy.buffers)}
    return {**state_dict, "state": state, "param_groups": new_groups}


def _anatomy(group: dict[str, Any]) -> str:
    """Name the anatomy that a saved group is of; Adam and AdamW of torch do not say it."""
    return str(group.get("anatomy", _TORCH_ADAM if "betas" in group else "another optimizer"))


def _betas(group: dict[str, Any]) -> tuple[float, float]:
    first, second = group.get("betas") or (group.get("beta", 0.0),) * 2
    return float(first), float(second)


def _rescaled(
    entry: dict[str, Any], saved: tuple[float, float], own: tuple[float, float]
) -> dict[str, Any]:
    """Rescale m~ and v~ so that, debiased with this optimizer's betas, m and v are unchanged."""
    if "exp_avg" not in entry or "step" not in entry:
        return {}
    step = float(entry["step"])
    if step < 1:
        return {}
    exp_avg: Tensor = entry["exp_avg"]
    mean = exp_avg / debiasing(saved[0], step)
    if "exp_avg_sq" in entry:
        second = entry["exp_avg_sq"] / debiasing(saved[1], step)
    else:
        second = mean * mean
    return {
        "step": entry["step"],
        "exp_avg": mean * debiasing(own[0], step),
        "exp_avg_sq": second * debiasing(own[1], step),
    }
