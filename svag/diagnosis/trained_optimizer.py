"""Reads the optimizer that has trained a model: averages to start from, and weight decay."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from svag.entrants import Entrant
from svag.errors import InvalidOption

States: TypeAlias = Mapping[str, Mapping[Tensor, dict[str, Any]]]

_FLAGS = ("decoupled_weight_decay", "decoupled")
_DECOUPLED = ("AdamW", "Adafactor", "Muon")
"""Optimizers of torch with decoupled weight decay, and without an option that says so."""


def states_of(optimizer: Optimizer, entrants: Sequence[Entrant]) -> States:
    """Return the state of an optimizer as the starting point of its own method.

    Args:
        optimizer: one of svag's, or torch's Adam or AdamW.
        entrants: the methods, of which one may be the optimizer's.
    """
    names = {"AdamW": "adam", "Adam": "adam"}
    row = names.get(type(optimizer).__name__)
    anatomy = getattr(optimizer, "anatomy", None)
    found: dict[str, dict[Tensor, dict[str, Any]]] = {}
    for one in entrants:
        if one.anatomy is None or not (one.row == row or one.anatomy == anatomy):
            continue
        kept = ("step", *one.anatomy.buffers)
        states = {
            param: {name: state[name] for name in kept}
            for param, state in optimizer.state.items()
            if all(name in state for name in kept)
            and all(_fits(state[name], param) for name in one.anatomy.buffers)
        }
        betas = [tuple(g.get("betas") or (g.get("beta"),)) for g in optimizer.param_groups]
        if states and all(group == tuple(one.betas) for group in betas):
            found[one.key] = states
    return found


def decays_of(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """Return the weight decay that an optimizer adds to gradients, by the parameter's name.

    Raises:
        InvalidOption: it has none of the model's parameters, maximizes, or svag does not know
            whether it adds its weight decay to the gradient.
    """
    names = {param: name for name, param in model.named_parameters()}
    if not any(param in names for group in optimizer.param_groups for param in group["params"]):
        raise InvalidOption(
            f"optimizer={type(optimizer).__name__}(...) has none of the model's parameters, so it "
            "has trained another model; give this model's optimizer, or leave it out"
        )
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        if group.get("maximize"):
            raise InvalidOption(
                "optimizer=... has maximize=True, but a dissection takes a loss that is minimized; "
                "give a loss_fn with the sign turned, and leave the optimizer out"
            )
        decay = float(group.get("weight_decay") or 0.0)
        if decay and not _decouples(optimizer, group):
            found |= {names[p]: decay for p in group["params"] if p in names}
    return found


def _fits(average: object, param: Tensor) -> bool:
    """Whether an average is one of a parameter's gradient: not blocks of it, nor 8-bit codes."""
    return (
        isinstance(average, Tensor) and average.shape == param.shape and average.is_floating_point()
    )


def _decouples(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Return whether weight decay acts on the parameters directly."""
    flags = [bool(group[flag]) for flag in _FLAGS if flag in group]
    known = [one for one in type(optimizer).__mro__ if _is_known(one)]
    if any(flags) or any(one.__name__ in _DECOUPLED for one in known):
        return True
    if not flags and not known:
        name = type(optimizer).__name__
        raise InvalidOption(
            f"optimizer={name}(...) has weight decay, and nothing says whether it is added to the "
            "gradient, and so belongs to the loss; leave the optimizer out, and put the L2 term "
            "into the loss if there is one"
        )
    return False


def _is_known(one: type) -> bool:
    package = one.__module__.partition(".")[0]
    return package in ("torch", "svag") and issubclass(one, Optimizer) and one is not Optimizer
