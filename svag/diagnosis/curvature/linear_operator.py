"""A symmetric matrix that is known by its products with vectors."""

from collections.abc import Callable

import torch
from torch import Tensor


class LinearOperator:
    """A symmetric matrix of shape (d, d), as the function that multiplies vectors by it.

    Args:
        product: maps vectors of shape (k, d) to the k products, of the same shape.
        size: d.
        dtype: of the vectors.
        device: of the vectors.

    Attributes:
        products: number of vectors multiplied so far.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> operator = LinearOperator(lambda vectors: vectors @ matrix, 2)
        >>> operator(torch.tensor([[1.0, 0.0]])), operator.products
        (tensor([[2., 1.]]), 1)
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._product = product
        self.size, self.dtype, self.device = size, dtype, torch.device(device)
        self.products = 0

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the products of vectors of shape (k, d)."""
        self.products += len(vectors)
        return self._product(vectors)

    @property
    def vector_bytes(self) -> int:
        """Size of a vector in memory."""
        return self.size * self.dtype.itemsize

    def gaussian(self, count: int, seed: int) -> Tensor:
        """Draw vectors of shape (count, d) with standard normal entries."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(count, self.size, generator=generator, dtype=self.dtype)
        return drawn.to(self.device)


def length_of(vector: Tensor) -> float:
    """Euclidean norm of a vector, summed up in float64, so that no square leaves the range."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
