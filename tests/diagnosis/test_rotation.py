"""Rotations are orthogonal, are undone, and mix entries with equal weights."""

import pytest
import torch

from svag.diagnosis.rotation import Rotation, blocks, hadamard

SHAPES = [(1,), (2, 3), (7,), (64,), (3, 5, 7), (100, 101), ()]


def test_it_is_orthogonal_as_a_matrix():
    rotation = Rotation([torch.zeros(12, dtype=torch.float64)], seed=3)
    columns = [rotation.apply([e])[0] for e in torch.eye(12, dtype=torch.float64)]
    matrix = torch.stack(columns, dim=1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(12, dtype=torch.float64))
    assert set(matrix[matrix.abs() > 1e-9].abs().unique().numpy().round(6)) <= {
        round(8**-0.5, 6), 0.5
    }  # blocks of 8 and 4  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_undoes_it(dtype):
    tensors = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    rotation = Rotation(tensors, seed=0)
    for back, tensor in zip(rotation.inverse(rotation.apply(tensors)), tensors, strict=True):
        assert back.shape == tensor.shape
        torch.testing.assert_close(back, tensor)


def test_two_seeds_differ_and_one_repeats():
    tensors = [torch.randn(50)]
    first, again, other = (Rotation(tensors, seed).apply(tensors)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [1, 2, 3, 4095, 4096, 4097, 9000, 0])
def test_blocks_are_powers_of_two_and_add_up(count):
    sizes = blocks(count)
    assert sum(sizes) == count
    assert all(size & (size - 1) == 0 and 0 < size <= 4096 for size in sizes)


def test_hadamard_is_its_own_inverse():
    vectors = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(hadamard(hadamard(vectors)), vectors)
