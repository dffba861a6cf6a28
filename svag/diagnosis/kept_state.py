"""Buffers of a model, kept to be put back after every forward pass.

A forward pass may write to a buffer (BatchNorm), assign another tensor to it, or set one that was
None. Frozen parameters, such as a teacher's moving average, are put back after every pass only if
the first one writes to them, and at the end in any case.
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
        self._parameters = [
            (module, name, param)
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)  # cannot have one replaced
            for name, param in module._parameters.items()
        ]
        distinct = {id(tensor): tensor for _, _, tensor in self._places if tensor is not None}
        # An expanded tensor cannot be written to, so a reference to it is enough.
        self._tensors = [t for t in distinct.values() if not is_expanded(t)]
        self._values = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Put every buffer back: the tensor to its place, and its values into the tensor."""
        for module, name, tensor in self._places:
            if isinstance(module, torch.jit.ScriptModule):
                if getattr(module, name) is not tensor:
                    setattr(module, name, tensor)
            elif module._buffers.get(name) is not tensor:
                module._buffers[name] = tensor
        for tensor, value in zip(self._tensors, self._values, strict=True):
            if tensor.shape != value.shape:
                tensor.resize_(value.shape)
        # BatchNorm writes without a bump of version counters, so all values are copied back.
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._values)

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keep frozen parameters, too, if the code inside the context changes them."""
        frozen = [p for p in model.parameters() if not p.requires_grad]
        before = [(p.detach().clone(), p._version) for p in frozen]
        try:
            yield
        finally:
            for param, (value, version) in zip(frozen, before, strict=True):
                if param._version != version or not torch.equal(param, value):
                    self._tensors.append(param.detach())
                    self._values.append(value)
            self.restore()

    @contextlib.contextmanager
    def parameters_kept(self, model: nn.Module) -> Iterator[None]:
        """Restore at the end the parameter objects, and the values of frozen parameters."""
        kept = [(p.detach(), p.detach().clone()) for p in model.parameters() if not p.requires_grad]
        try:
            yield
        finally:
            for module, name, param in self._parameters:
                module._parameters[name] = param
            for frozen, value in kept:
                if not torch.equal(frozen, value):
                    frozen.copy_(value)

    def replaced(self) -> str | None:
        """Return the name of a parameter that another object has replaced; None without one."""
        for module, name, param in self._parameters:
            if module._parameters.get(name) is not param:
                return name
        return None


def is_expanded(tensor: Tensor) -> bool:
    """Whether several entries of a tensor are one in memory."""
    if tensor.layout is not torch.strided:
        return False
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in sizes)


@contextlib.contextmanager
def gradients_kept(params: Sequence[Tensor]) -> Iterator[None]:
    """Restore ``grad`` and ``grad_var`` of parameters at the end."""
    kept = [(param.grad, vars(param).get("grad_var")) for param in params]
    try:
        yield
    finally:
        for param, (grad, variance) in zip(params, kept, strict=True):
            param.grad = grad
            vars(param).pop("grad_var", None)
            if variance is not None:
                cast(Any, param).grad_var = variance
