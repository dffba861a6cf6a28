"""Buffers of a model, kept to be put back after every forward pass.

A forward pass may write to a buffer (BatchNorm), assign another tensor to it, or set one that was
None. Frozen parameters, such as a teacher's moving average, are copied only if a pass changes them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


class KeptState:
    """The buffers of a model as they were.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module, name, tensor)
            for module in model.modules()
            for name, tensor in module._buffers.items()
        ]
        distinct = {id(tensor): tensor for _, _, tensor in self._places if tensor is not None}
        # An expanded tensor cannot be written to, so its place is enough.
        self._tensors = [t for t in distinct.values() if not _is_expanded(t)]
        self._values = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Put every buffer back: the tensor to its place, and its values into the tensor."""
        for module, name, tensor in self._places:
            if module._buffers.get(name) is not tensor:
                module._buffers[name] = tensor
        # BatchNorm writes without counting versions up, so nothing tells what has changed.
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._values)

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keep frozen parameters, too, if what is done meanwhile changes them."""
        frozen = [p for p in model.parameters() if not p.requires_grad]
        before = [p.detach().clone() for p in frozen]
        try:
            yield
        finally:
            for param, value in zip(frozen, before, strict=True):
                if not torch.equal(param, value):
                    self._tensors.append(param.detach())
                    self._values.append(value)
            self.restore()


def _is_expanded(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided:
        return False
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in sizes)


@contextlib.contextmanager
def gradients_kept(params: Sequence[Tensor]) -> Iterator[None]:
    """Restore gradients, and the variances that they have, at the end."""
    kept = [(param.grad, vars(param).get("grad_var")) for param in params]
    try:
        yield
    finally:
        for param, (grad, variance) in zip(params, kept, strict=True):
            param.grad = grad
            vars(param).pop("grad_var", None)
            if variance is not None:
                cast(Any, param).grad_var = variance
