"""Which fused engine a device has, and which tensors it can update.

A fused engine walks through memory, so it needs to know how the elements of a parameter, its
gradient and its averages correspond: they do where all are dense and laid out alike.
"""

import functools
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType

import torch
from torch import Tensor

from svag.optim.dtensor import PLAIN
from svag.optim.engines.kernel_spec import REAL

_ENGINES = {"cpu": "svag.optim.engines.cpu", "cuda": "svag.optim.engines.cuda"}
_REMEDIES = {
    "cpu": "Numba is not installed or does not load ({}): pip install 'svag[fast]'",
    "cuda": "Triton is not installed or does not load ({}): it comes with CUDA builds of torch",
}


@functools.cache
def engine(device_type: str) -> ModuleType | str:
    """Return the fused engine of a kind of device, or why there is none."""
    if device_type not in _ENGINES:
        return f"there is a fused engine for {' and '.join(_ENGINES)}, not for {device_type}"
    try:
        return importlib.import_module(_ENGINES[device_type])
    except ImportError as error:
        return _REMEDIES[device_type].format(error)


def refusal(param: Tensor) -> str | None:
    """Say why a parameter cannot be updated by a fused engine, whatever its gradient."""
    found = engine(param.device.type)
    if isinstance(found, str):
        return found
    if type(param) not in PLAIN:
        return f"it is a {type(param).__name__}, not a plain tensor"
    dtype = REAL.get(param.dtype, param.dtype)
    if dtype not in found.DTYPES:
        known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found.DTYPES))
        return f"its dtype is {param.dtype}, and the engine has {known} and their complex pairs"
    if param.is_inference():
        return "it is an inference tensor"
    return None


def mismatch(param: Tensor, beside: Mapping[str, Tensor], buffers: Iterable[Tensor]) -> str | None:
    """Say why a parameter cannot be updated by a fused engine with these tensors beside it.

    Args:
        param: the parameter.
        beside: its ``gradient`` and its ``gradient variance``, as far as there are any.
        buffers: its averages.
    """
    if not _dense(param):
        return f"its memory has gaps or overlaps (strides {param.stride()})"
    if param.is_neg() or param.is_conj():
        return "it is a view that stands for its negative or conjugate"
    for name, tensor in [*beside.items(), *(("state", buffer) for buffer in buffers)]:
        if type(tensor) not in PLAIN:
            return f"its {name} is a {type(tensor).__name__}, not a plain tensor"
        if tensor.device != param.device or tensor.shape != param.shape:
            return f"its {name} is of another device or shape"
        if _strides(tensor) != _strides(param):
            return f"its {name} is laid out in another way ({tensor.stride()}, {param.stride()})"
        if tensor.is_neg() or tensor.is_conj():
            return f"its {name} is a view that stands for its negative or conjugate"
        if tensor.numel() and not tensor.data_ptr():
            return f"its {name} has no memory"
    wide = torch.promote_types(param.dtype, torch.float32)
    for name, dtype in (("gradient", param.dtype), ("gradient variance", wide)):
        if name in beside and beside[name].dtype != dtype:
            return f"its {name} is {beside[name].dtype}, not {dtype}"
    return None


def is_in_memory(tensor: Tensor) -> bool:
    """Whether a tensor's storage reaches as far as its elements do.

    One whose storage was resized (to free what is gathered again later) crashes the process.
    """
    if tensor.numel() == 0 or type(tensor) not in PLAIN or tensor._is_zerotensor():
        return True
    end = tensor.storage_offset() * tensor.itemsize + reach(tensor)
    return tensor.data_ptr() != 0 and tensor.untyped_storage().nbytes() >= end


def reach(tensor: Tensor) -> int:
    """Return the number of bytes from the first element of a tensor to the end of its last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((n - 1) * stride for n, stride in steps) + 1) * tensor.itemsize


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order."""
    expected = 1
    for stride, size in sorted(_strides(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True


def _strides(tensor: Tensor) -> list[tuple[int, int]]:
    """Return strides and sizes of the dimensions along which a tensor extends."""
    if tensor.numel() == 0:
        return []
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return [(stride, size) for stride, size in pairs if size != 1]
