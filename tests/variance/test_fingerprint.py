"""The number that tells whether a tensor still has the bits that it had."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svag.variance.fingerprint import fingerprint

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
)
LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.t(),
    "with gaps": lambda t: t[:, ::2],
    "from an odd place": lambda t: t.reshape(-1)[1:],
    "an odd part": lambda t: t.reshape(-1)[3:8],
    "one in an odd place": lambda t: t.reshape(-1)[5:6],
    "expanded": lambda t: t[:1].expand(4, -1),
    "empty": lambda t: t[:0],
    "nothing, expanded": lambda t: t[0, 0].expand(3)[:0],
    "nothing in an odd place": lambda t: t.reshape(-1)[5:5],
    "a number": lambda t: t[0, 0],
    "negated": lambda t: torch._neg_view(t),
}


def values(dtype: torch.dtype, rows: int = 5, columns: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_that_of_the_bits_however_they_lie(dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](values(dtype))
    words = torch.view_as_real(tensor.resolve_neg()) if dtype.is_complex else tensor.resolve_neg()
    assert fingerprint(tensor) == fingerprint(tensor)
    if words.numel():
        changed = words.clone().reshape(-1)
        changed[-1] = changed[-1] * 1.5 + 1.0
        again = changed.view(words.shape)
        again = torch.view_as_complex(again) if dtype.is_complex else again
        assert fingerprint(again) != fingerprint(tensor)


@given(
    n=st.integers(1, 40),
    place=st.integers(0, 39),
    bit=st.integers(0, 31),
    start=st.integers(0, 3),
)
def test_every_single_bit_counts(n: int, place: int, bit: int, start: int) -> None:
    memory = torch.arange(start + n, dtype=torch.int32)
    tensor = memory.view(torch.float32)[start:]
    before = fingerprint(tensor)
    flipped = 1 << bit if bit < 31 else -(1 << 31)
    memory[start + place % n] ^= flipped
    assert fingerprint(tensor) != before
    memory[start + place % n] ^= flipped
    assert fingerprint(tensor) == before


@pytest.mark.parametrize("factor", [2.0, 0.5, 0.999, 1.0 + 2**-23, 2.0**-40])
@pytest.mark.parametrize("n", [1, 2, 64, 4096, 100_003])
def test_a_factor_shows(n: int, factor: float) -> None:
    tensor = torch.randn(n, generator=torch.Generator().manual_seed(n)) + 0.1
    assert fingerprint(tensor * factor) != fingerprint(tensor)


def test_nan_is_as_any_other_number() -> None:
    tensor = torch.tensor([1.0, float("nan"), float("inf")])
    assert fingerprint(tensor) == fingerprint(tensor.clone())
    assert fingerprint(tensor.nan_to_num()) != fingerprint(tensor)


def test_what_has_no_memory_has_none() -> None:
    assert fingerprint(torch.ones(3, device="meta")) is None
    assert fingerprint(torch.eye(3).to_sparse()) is None
