"""Another method's state in this method's terms."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from svag.anatomy import METHODS, Anatomy
from svag.optim.moments import debiasing, rho, step_of

_TORCH_ADAM = str(METHODS["adam"].anatomy)
_AVERAGES = ("exp_avg", "exp_avg_sq", "exp_avg_var")


def translate(
    state_dict: dict[str, Any], anatomy: Anatomy, groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return ``state_dict`` as it is if it is of this anatomy, else in its terms, with a warning.

    What is kept, rescaled or begun anew: :meth:`svag.Dissected.load_state_dict`.

    Args:
        state_dict: of any optimizer of the family, of ``torch.optim``, or of another library that
            names its averages as ``torch.optim.Adam`` or ``torch.optim.SGD`` do.
        anatomy: of the optimizer that takes the state over.
        groups: that optimizer's parameter groups, whose options stay.
    """
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        return state_dict  # torch says that the number of groups is wrong
    if is_own(state_dict, anatomy):
        # What a checkpoint of an older torch does not mention is as it is here.
        return {
            **state_dict,
            "state": dict(_with_steps(state_dict)),
            "param_groups": [{**g, **s} for g, s in zip(groups, saved_groups, strict=True)],
        }
    state: dict[Any, Any] = {}
    found: Counter[str] = Counter()
    for saved_group, group in zip(saved_groups, groups, strict=True):
        for index in saved_group["params"]:
            saved = state_dict["state"].get(index, {})
            entry = _rescaled(_averages(saved, saved_group), _betas(group), _sign(group))
            if anatomy.buffers and entry:
                state[index] = {name: entry[name] for name in ("step", *anatomy.buffers)}
            found[_account(saved, anatomy, taken=bool(entry))] += 1
    taker = [_scheduled(g, s) for g, s in zip(groups, saved_groups, strict=True)]
    _warn(saved_groups, str(anatomy), found, taker)
    return {**state_dict, "state": state, "param_groups": taker}


def is_own(state_dict: dict[str, Any], anatomy: Anatomy) -> bool:
    """Return whether a state is of this anatomy, Adam's own by torch included."""
    return {_anatomy(group) for group in state_dict["param_groups"]} == {str(anatomy)}


def _anatomy(group: dict[str, Any]) -> str:
    """Name the anatomy that a saved group is of; other libraries' optimizers do not say it."""
    if {"betas", "eps", "amsgrad"} <= group.keys():
        return str(group.get("anatomy", _TORCH_ADAM))
    other = "torch.optim.SGD" if {"momentum", "nesterov"} <= group.keys() else "another optimizer"
    return str(group.get("anatomy", other))


def _scheduled(group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Return this optimizer's group, its step size where the saved schedule stood.

    Where both have a scheduler, ``lr`` is a share of ``initial_lr``: the share is the saved one.
    """
    taken = {**group, "params": saved["params"]}
    numbers = (saved.get("lr"), saved.get("initial_lr"), group.get("initial_lr"))
    if all(isinstance(number, float) for number in numbers) and saved["initial_lr"] > 0:
        taken["lr"] = group["initial_lr"] * (saved["lr"] / saved["initial_lr"])
    return taken


def _account(saved: dict[str, Any], anatomy: Anatomy, *, taken: bool) -> str:
    """Say what became of a parameter's saved state."""
    if not anatomy.buffers:
        return "this method averages nothing, so no state is taken over"
    if not taken:
        has = ", ".join(sorted(name for name in saved if saved[name] is not None))
        what = f"a state of {has}, none of which is taken over" if has else "no state"
        return f"the saved optimizer has {what}: started afresh"
    known = [name for name in (*_AVERAGES, "momentum_buffer") if saved.get(name) is not None]
    said = f"{' and '.join(known)} taken over, rescaled to this optimizer's betas"
    if "exp_avg_sq" in anatomy.buffers and not {"exp_avg_sq", "exp_avg_var"} & saved.keys():
        said += "; exp_avg_sq starts at exp_avg^2, which is no variance"
    if "exp_avg_var" in anatomy.buffers and not {"exp_avg_sq", "exp_avg_var"} & saved.keys():
        said += "; exp_avg_var starts at zero"
    return said


def _warn(
    saved_groups: Sequence[dict[str, Any]],
    own: str,
    found: Counter[str],
    taken: Iterable[dict[str, Any]],
) -> None:
    """Say what is kept, what was taken over and what was not."""
    names = " and ".join(sorted({_anatomy(group) for group in saved_groups}))
    parts = "; ".join(f"For {count} of the parameters: {what}" for what, count in found.items())
    saved_lrs = [group.get("lr") for group in saved_groups]
    own_lrs = [group["lr"] for group in taken]
    schedule = ""
    if _differ(saved_lrs, own_lrs):
        schedule = (
            f". The saved step size is {saved_lrs[0]}, this optimizer's {own_lrs[0]}: a scheduler "
            "whose state is loaded as well brings the saved one back, so set its base_lrs to this "
            "optimizer's afterwards (docs/from-adam.md)"
        )
    warnings.warn(
        f"loading the state of {names} into {own}: this optimizer keeps its own options. {parts}"
        f"{schedule}",
        UserWarning,
        stacklevel=4,
    )


def _differ(saved: Sequence[Any], own: Sequence[Any]) -> bool:
    return any(
        isinstance(s, float) and isinstance(o, float) and s != o
        for s, o in zip(saved, own, strict=True)
    )


def _betas(group: dict[str, Any]) -> tuple[float, float]:
    first, second = group.get("betas") or (group.get("beta", group.get("momentum", 0.0)),) * 2
    return float(first), float(second)


def _sign(group: dict[str, Any]) -> float:
    """Return what the gradient is multiplied by before it is averaged."""
    return -1.0 if group.get("maximize") else 1.0


def _with_steps(state_dict: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield states whose step is a tensor: it was a number before torch 1.12, or the group's."""
    groups = {i: group for group in state_dict["param_groups"] for i in group["params"]}
    for index, entry in state_dict["state"].items():
        step = entry.get("step", groups.get(index, {}).get("step"))
        missing = step is not None and bool(entry) and not isinstance(entry.get("step"), Tensor)
        yield index, {**entry, "step": step_of(step)} if missing else entry


def _averages(entry: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state's averages by Adam's names, with the decays and the sign they have.

    The buffer of SGD sums what an average weighs by 1 - momentum. A step is the state's own, else
    the group's, else so large that the averages are debiased to the precision of float32.
    """
    first, second = _betas(group)
    found = {name: entry[name] for name in _AVERAGES if entry.get(name) is not None}
    buffer, share = entry.get("momentum_buffer"), 1.0 - float(group.get("dampening", 1.0))
    if isinstance(buffer, Tensor) and share > 0 and 0 < first < 1 and not found:
        found["exp_avg"] = buffer * ((1 - first) / share)
    step = entry.get("step", group.get("step"))
    if step is None:
        largest = max(first, second)
        step = math.ceil(math.log(2.0**-24) / math.log(largest)) if 0 < largest < 1 else 1
    return {**found, "step": step, "betas": (first, second), "sign": _sign(group)}


def _rescaled(entry: dict[str, Any], own: tuple[float, float], sign: float) -> dict[str, Any]:
    """Rescale m~ and v~ so that, debiased with this optimizer's betas, m and v are unchanged.

    The variance of m, which within-batch rows keep, is rho (v - m^2)/(1 - rho), and v is m^2 where
    there is neither.
    """
    if "exp_avg" not in entry or float(entry["step"]) < 1:
        return {}
    step, saved = float(entry["step"]), entry["betas"]
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
        "step": step_of(entry["step"]),
        "exp_avg": mean * (own_weight * entry["sign"] * sign),
        "exp_avg_sq": second * debiasing(own[1], step),
        "exp_avg_var": variance * (own_weight * own_weight),
    }


def _per_real(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Apply a function to real tensors, or to complex ones as pairs of reals."""
    if not x.is_complex():
        return function(x, y)
    return torch.view_as_complex(function(torch.view_as_real(x), torch.view_as_real(y)))
