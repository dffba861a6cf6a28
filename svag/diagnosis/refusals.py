"""What a model must be like to be dissected; each refusal says how to get there."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from svag.errors import InvalidOption


def refuse_unready(model: nn.Module) -> None:
    """Refuse a model that is not initialised, and inference mode.

    Raises:
        InvalidOption: as said.
    """
    if torch.is_inference_mode_enabled():
        raise InvalidOption(
            "there are no gradients in torch.inference_mode(); dissect outside of it"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise InvalidOption(
                f"{name!r} has no shape yet, as the model is lazy; run one batch through it first"
            )


def refuse_parameter(name: str, param: nn.Parameter) -> None:
    """Refuse a trainable parameter whose gradient or small steps cannot be had.

    Raises:
        InvalidOption: it is neither float32 nor float64, was made in inference mode, or has a hook
            that may step an optimizer.
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
    if getattr(param, "_post_accumulate_grad_hooks", None):
        raise InvalidOption(
            f"parameter {name!r} has a hook of register_post_accumulate_grad_hook, which may step "
            "an optimizer in the backward pass; remove it for the dissection"
        )


def refuse_others(loss: Tensor, params: Iterable[Tensor]) -> None:
    """Refuse a loss that depends on trainable parameters beside the model's.

    Raises:
        InvalidOption: as said.
    """
    own = {id(param) for param in params}
    waiting: list[Any] = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in own:
            raise InvalidOption(
                f"the loss depends on a trainable parameter of shape {tuple(leaf.shape)} that is "
                "not in the model, and would not be dissected; put model and loss into one module, "
                "and give batch_loss"
            )
        waiting += [following for following, _ in node.next_functions]
