"""Rules for systems of equations, decompositions, grouped products and Fourier transforms."""

from svag.variance.per_example.owners.operation import Operation, rule
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Layout,
    Scattered,
    Single,
    Where,
)
from svag.variance.per_example.owners.products import joined, moved


@rule("linalg_solve", "linalg_solve_triangular", "cholesky_solve")
def _solved(op: Operation) -> Where:
    """Solve A X = B, or X A = B: the columns, or the rows, of B are solved one by one."""
    a, b = op.inputs[:2] if op.name != "cholesky_solve" else op.inputs[1::-1]
    if b.dim() < 2 or (op.name == "linalg_solve" and b.dim() == a.dim() - 1):
        return op.unknown()
    batch = op.out.dim() - 2
    over: list[int | None] = [None, batch + 1]
    if op.kwargs.get("left", True) is False:
        over = [batch, None]
    first = [*range(batch - a.dim() + 2, batch)]
    second = [*range(batch - b.dim() + 2, batch)]
    return joined(op, [moved(op, a, [*first, None, None]), moved(op, b, [*second, *over])])


@rule("grouped_mm")
def _grouped_product(op: Operation) -> Where:
    """Rows of the first factor times the matrix of their group; offsets say where groups end."""
    a, b = op.inputs[:2]
    if a.dim() != 2 or b.dim() != 3 or op.where(b) is not CONSTANT:
        return op.unknown()
    return joined(op, [moved(op, a, [0, None])])


_OF_MATRICES = (
    *("linalg_inv", "inverse", "linalg_det", "det", "logdet", "linalg_slogdet", "slogdet"),
    *("linalg_cholesky", "cholesky", "linalg_cholesky_ex", "linalg_qr", "linalg_svd", "svd"),
    *("linalg_svdvals", "linalg_eigh", "linalg_eigvalsh", "matrix_exp", "linalg_matrix_exp"),
    *("linalg_matrix_power", "matrix_power", "linalg_pinv", "pinverse", "linalg_inv_ex"),
)


@rule(*_OF_MATRICES)
def _of_matrices(op: Operation) -> Where:
    """Keep the dimensions before the matrices'."""
    x = op.inputs[0]
    where = op.where(x)
    if isinstance(where, Layout | Scattered) and where.dim >= x.dim() - 2:
        return op.mixes()
    return where if isinstance(where, IS_PLACED) and len(op.inputs) == 1 else op.unknown()


_TRANSFORMS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


@rule(*(f"fft_{kind}{n}" for kind in _TRANSFORMS for n in ("", 2, "n")))
def _transformed(op: Operation) -> Where:
    """Keep the dimensions that are not transformed."""
    x = op.given("input", 0)
    where = op.where(x)
    several = op.name.endswith(("2", "n"))
    dims = op.given("dim", 2, ((-2, -1) if op.name.endswith("2") else None) if several else -1)
    if dims is None:
        size = op.given("s", 1)
        dims = range(-x.dim() if size is None else -len(size), 0)
    dims = [d % x.dim() for d in ((dims,) if isinstance(dims, int) else dims)]
    if isinstance(where, Layout | Scattered):
        return op.mixes() if where.dim in dims else where
    return where if isinstance(where, Single) else op.unknown()
