"""How compiled code reads PyTorch's tensors, which it has from Python.

PyTorch's C interface says of a C++ tensor where its elements lie and how, CPython's walks through
a dictionary, and a Python tensor holds its C++ one at an offset that is found on tensors at hand.
"""

import ctypes
import functools
import sys
from typing import Final

import torch
from torch import Tensor
from torch.nn import Parameter

from svag.compiled import foreign
from svag.compiled.machine_code import Address

SYMBOLS: Final = {
    "gradient": "_ZNK3c1010TensorImpl4gradEv",  # c10::TensorImpl::grad() const
    "data": "aoti_torch_get_data_ptr",
    "arrangement": "aoti_torch_get_layout",  # torch.strided is 0
    "dimensions": "aoti_torch_get_dim",
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "dtype": "aoti_torch_get_dtype",
    "is_negative": "_ZN2at6native6is_negERKNS_6TensorE",
    "is_conjugate": "_ZN2at6native7is_conjERKNS_6TensorE",
    "is_inference": "_ZN2at6native12is_inferenceERKNS_6TensorE",
    "count_change": "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
}
"""Functions of PyTorch's libraries; each takes a pointer to a C++ tensor's address."""

TYPE: Final = 8
"""Offset of the type in an object of Python."""


@functools.cache
def reading() -> dict[str, int]:
    """Return the addresses of functions, types and of the C++ tensor for none, and offsets.

    Raises:
        ImportError: PyTorch or CPython is not what this module expects.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise ImportError("without the GIL a dictionary may change while it is walked through")
    try:
        library = ctypes.CDLL(torch._C.__file__)
        functions = {name: getattr(library, symbol) for name, symbol in SYMBOLS.items()}
        functions["next_item"] = ctypes.pythonapi.PyDict_Next
    except (OSError, AttributeError) as error:
        raise ImportError(f"a function is missing: {error}") from error
    found = {name: foreign.address_of(function) for name, function in functions.items()}
    tensor, parameter = torch.zeros(1), Parameter(torch.zeros(1))
    found["tensor_type"], found["parameter_type"] = id(Tensor), id(Parameter)
    for plain in (tensor, parameter):
        if _read(id(plain) + TYPE) != id(type(plain)):
            raise ImportError("an object does not begin with its type as expected")
    found["offset"] = offset = _offset(id(tensor), Tensor.__basicsize__, tensor._cdata)
    found["storage"] = _offset(tensor._cdata, 64, tensor.untyped_storage()._cdata)
    found["slot"] = _offset(tensor._cdata, 64, id(tensor))
    of_gradient = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(found["gradient"])
    found["undefined"] = _read(of_gradient(_read(id(tensor) + offset)))
    return found


def _offset(address: Address, size: int, pointer: Address) -> int:
    """Return where in some bytes a pointer stands, behind a count of references."""
    for offset in range(16, size, 8):
        if _read(address + offset) & ~7 == pointer:
            return offset
    raise ImportError("a tensor is not made up as expected")


def _read(address: Address) -> int:
    return ctypes.c_int64.from_address(address).value
