"""Parameters that a model writes into in its forward pass, as a moving average of weights does.

A second call of the model must leave them as they were. Copies are made only of what is written.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svag.variance.per_example.recording.functions import Call, is_in_place, replaces_data
from svag.variance.per_example.structures import tensors_in


class WrittenParameters(TorchFunctionMode):
    """Copies a parameter before an operation writes into it.

    Args:
        model: the model whose parameters are looked after.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._places = [(module, dict(module._parameters)) for module in model.modules()]
        self._by_memory = {m: p for p in model.parameters() if (m := _memory(p))}
        self._before: dict[int, tuple[nn.Parameter, Tensor, Tensor, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        self.note(func, args, kwargs or {})
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))

    def note(self, func: Call, args: Any, kwargs: dict[str, Any]) -> None:
        """Copy the parameters that an operation writes into.

        Args:
            func: the operation.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        for tensor in _written(func, args, kwargs):
            param = self._by_memory.get(_memory(tensor))
            if param is not None and id(param) not in self._before:
                kept = param, param.data, param.detach().clone(), param._version
                self._before[id(param)] = kept

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters and their values back, as if nothing had been written."""
        for module, own in self._places:
            module._parameters.clear()
            module._parameters.update(own)
        for param, data, value, version in self._before.values():
            param.data = data
            param.data.copy_(value)
            torch._C._autograd._unsafe_set_version_counter((param,), (version,))


def _written(func: Call, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes into."""
    yield from tensors_in((kwargs.get("out"),))
    if args and (replaces_data(func) or is_in_place(func)):
        yield from tensors_in(args[:1])  # a tensor, or the list of torch._foreach_mul_


def _memory(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
