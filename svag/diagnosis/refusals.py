"""Refuses models and arguments that cannot be dissected; each message names the remedy."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from svag.diagnosis.kept_state import is_expanded
from svag.errors import InvalidOption


def refuse_arguments(methods: Iterable[object], optimizer: object, progress: object) -> None:
    """Refuse arguments of a wrong type.

    Args:
        methods: must be names.
        optimizer: must be a ``torch.optim.Optimizer`` or None.
        progress: must be callable.

    Raises:
        InvalidOption: as said.
    """
    names = isinstance(methods, Iterable) and not isinstance(methods, str)
    if not names or not all(isinstance(one, str) for one in methods):
        raise InvalidOption(
            f"methods={methods!r:.60} is no sequence of names; give some of those that "
            "'svag methods' lists, such as methods=('m-sgd', 'adam', 'torch.optim.SGD')"
        )
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise InvalidOption(
            f"optimizer={optimizer!r:.60} is no optimizer; give the one that trained the model, or "
            "leave it out"
        )
    if not callable(progress):
        raise InvalidOption(
            f"progress={progress!r:.60} cannot be called; give a function of the part's name and "
            "the share that is done, or leave it out"
        )


def refuse_functions(loss_fn: object, batch_loss: object, precision: object) -> None:
    """Refuse functions that cannot be called to get a loss, or the context of a forward pass.

    Args:
        loss_fn: must be callable, or None with ``batch_loss``.
        batch_loss: must be callable, or None with ``loss_fn``.
        precision: must be callable.

    Raises:
        InvalidOption: as said.
    """
    if (loss_fn is None) == (batch_loss is None):
        raise InvalidOption(
            "give loss_fn(outputs, targets) for batches (inputs, targets), or "
            "batch_loss(model, batch) for others, and not both"
        )
    name, loss = ("loss_fn", loss_fn) if batch_loss is None else ("batch_loss", batch_loss)
    if isinstance(loss, type):
        raise InvalidOption(f"{name} is the class {loss.__name__}; make one, {loss.__name__}()")
    if not callable(loss):
        raise InvalidOption(
            f"{name}={loss!r:.60} cannot be called; give a function that returns the loss, such as "
            "torch.nn.functional.cross_entropy"
        )
    if not callable(precision) or hasattr(type(precision), "__enter__"):
        raise InvalidOption(
            f"precision={precision!r:.60} is no function that returns a context; give "
            "precision=lambda: torch.autocast(...), or leave it out"
        )


def refuse_unready(model: nn.Module) -> None:
    """Refuse what is no module, a module without values for its parameters, and inference mode.

    Raises:
        InvalidOption: as said.
    """
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"model={model!r:.60} is no torch.nn.Module; give the module itself")
    if torch.is_inference_mode_enabled():
        raise InvalidOption(
            "there are no gradients in torch.inference_mode(); dissect outside of it"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise InvalidOption(
                f"{name!r} has no shape yet, as the model is lazy; run one batch through it first"
            )
        if tensor.is_meta:
            raise InvalidOption(
                f"{name!r} is on the meta device and has no values; call model.to_empty(...) and "
                "initialise or load it first"
            )


def refuse_parameter(name: str, param: nn.Parameter) -> None:
    """Refuse a trainable parameter whose gradient or small steps cannot be had.

    Raises:
        InvalidOption: it is neither float32 nor float64, was made in inference mode, shares memory
            between its entries, or has a hook that may step an optimizer.
    """
    if param.dtype not in (torch.float32, torch.float64):
        raise InvalidOption(
            f"parameter {name!r} has the dtype {param.dtype}; dissect takes float32 and "
            "float64, since small steps are lost in half precision: model.float(), with "
            "precision=lambda: torch.autocast(...) if need be"
        )
    if param.is_inference():
        raise InvalidOption(
            f"parameter {name!r} was made in torch.inference_mode() and has no gradient; build "
            "the model outside of it"
        )
    if is_expanded(param):
        raise InvalidOption(
            f"parameter {name!r} is expanded, so that entries share memory and cannot be set; make "
            "it nn.Parameter(tensor.clone()), or expand it in the forward pass"
        )
    if getattr(param, "_post_accumulate_grad_hooks", None):
        raise InvalidOption(
            f"parameter {name!r} has a hook of register_post_accumulate_grad_hook, which may step "
            "an optimizer in the backward pass; remove it for the dissection"
        )


def refuse_others(losses: Sequence[Tensor], own: Iterable[Tensor]) -> None:
    """Refuse a loss that depends on trainable tensors beside the model's.

    Args:
        losses: of two evaluations of one batch; leaf tensors that only one of them has, such as
            inputs whose gradient the loss contains, are made anew in every pass and are allowed.
        own: parameters of the model.

    Raises:
        InvalidOption: as said.
    """
    first, second = map(_leaves, losses)
    known = {id(param) for param in own}
    for key, leaf in first.items():
        if key in second and key not in known:
            kind = "parameter" if isinstance(leaf, nn.Parameter) else "tensor"
            raise InvalidOption(
                f"the loss depends on a trainable {kind} of shape {tuple(leaf.shape)} that is "
                "not among the model's parameters, and would not be dissected; put model and loss "
                "into one module, with an nn.Parameter, and give batch_loss"
            )


def _leaves(loss: Tensor) -> dict[int, Tensor]:
    """Return the tensors that a backward pass would leave gradients in, by id."""
    found: dict[int, Tensor] = {}
    waiting: list[Any] = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and leaf.is_leaf:
            found[id(leaf)] = leaf
        waiting += [following for following, _ in node.next_functions]
    return found
