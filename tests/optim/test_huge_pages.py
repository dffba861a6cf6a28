"""Where moving averages lie: on huge pages if the system has some, and as zeros_like makes them."""

import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import svag
from svag.optim.huge_pages import zeros_like

SMAPS = Path("/proc/self/smaps")

LARGE = {
    "vector": torch.empty(1_000_003),
    "double": torch.empty(300_000, dtype=torch.float64),
    "complex": torch.empty(300_000, dtype=torch.complex64),
    "channels_last": torch.empty(64, 32, 40, 40).contiguous(memory_format=torch.channels_last),
    "transposed": torch.empty(900, 1100).t(),
}


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_buffers_are_as_torch_makes_them(case, dtype):
    param = nn.Parameter(LARGE[case])
    buffer = zeros_like(param, dtype or param.dtype)
    expected = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    assert torch.equal(buffer, expected)
    assert (buffer.dtype, buffer.stride()) == (expected.dtype, expected.stride())
    assert not buffer.requires_grad
    assert buffer.untyped_storage().nbytes() == expected.untyped_storage().nbytes()


def test_huge_pages_are_taken_where_there_are_some():
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        before = _huge()
        if hasattr(mmap, "MADV_HUGEPAGE"):
            own.madvise(mmap.MADV_HUGEPAGE)
        own.write(bytes(64 << 20))
        if _huge() - before < 16 << 20:
            pytest.skip("this system gives no huge pages to a process that asks for them")
    param = nn.Parameter(torch.ones(16 << 20))
    param.grad = torch.ones_like(param)
    before = _huge()
    optimizer = svag.MSGD([param], lr=1.0)
    optimizer.step()
    # A few, since memory may be too scattered for more.
    assert _huge() - before >= 4 << 20
    assert optimizer.state[param]["exp_avg"].nbytes == 64 << 20


def _huge() -> int:
    """Bytes of this process on huge pages."""
    if not SMAPS.exists():
        return 0
    kilobytes = re.findall(r"AnonHugePages:\s+(\d+) kB", SMAPS.read_text())
    return 1024 * sum(map(int, kilobytes))
