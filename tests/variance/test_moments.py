"""Sums of rows and of their squares: compiled or not, they are those of float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svag.variance.per_example.contributions import moments
from svag.variance.per_example.contributions.moments import Moments

NUMBA = "svag.variance.per_example.contributions.numba_moments"
numba_moments = pytest.importorskip(NUMBA, reason="one of the two ways is Numba's (extra fast)")

WAYS = {"compiled": numba_moments, "torch": None}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(moments, "_numba", lambda: WAYS[request.param])


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def sums(rows, sizes):
    """Of rows taken in portions, with the first row as the shift."""
    found = Moments(rows[0])
    for portion in rows.split(sizes):
        found.add(portion.clone())
    return found


@pytest.mark.usefixtures("way", "threads")
@pytest.mark.parametrize("width", [0, 1, 2047, 2048, 2049, 100_000])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_sums_are_those_of_float64(width, dtype, bound):
    generator = torch.Generator().manual_seed(0)
    rows = (5 + torch.randn(17, width, generator=generator, dtype=torch.float64)).to(dtype)
    found = sums(rows, [1, 7, 9])
    differences = rows.double().numpy() - rows[0].double().numpy()
    for ours, theirs in ((found.total, differences), (found.squares, differences**2)):
        np.testing.assert_allclose(ours.double().numpy(), theirs.sum(0), rtol=bound, atol=bound)


@given(st.integers(1, 5), st.integers(1, 5000), st.integers(1, 3))
def test_both_ways_agree_on_any_shape(count, width, step):
    wide = torch.randn(count, width * step)
    rows = wide[:, ::step]  # with gaps where step > 1
    compiled = sums(rows, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_numba", lambda: None)
        expected = sums(rows, count)
    torch.testing.assert_close(compiled.total, expected.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled.squares, expected.squares, rtol=1e-5, atol=1e-5)


def test_without_numba_torch_adds_up(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, NUMBA, None)
    moments._numba.cache_clear()
    try:
        found = Moments(torch.zeros(3))
        found.add(torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 0.0]]))
    finally:
        moments._numba.cache_clear()
    assert found.total.tolist() == [2.0, 0.0, 3.0]
    assert found.squares.tolist() == [2.0, 8.0, 9.0]


@pytest.mark.usefixtures("way")
def test_what_the_compiled_loop_has_not_is_added_up_by_torch():
    rows = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.bfloat16)
    found = sums(rows, 2)
    assert found.total.tolist() == [3.0, 6.0]
    assert found.squares.tolist() == [9.0, 36.0]
