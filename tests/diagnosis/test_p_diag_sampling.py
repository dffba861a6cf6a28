"""p_diag from sampled rows, against p_diag of the whole matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from diagnosis.curved_models import case
from diagnosis.second_order_oracle import Oracle
from svag.diagnosis.curvature.linear_operator import LinearOperator
from svag.diagnosis.curvature.p_diag_sampling import sampled_p_diag
from svag.diagnosis.curvature.products import Curvature
from svag.diagnosis.curvature.row_classes import allocated, row_classes
from svag.diagnosis.objective import Batch, Objective
from svag.errors import InvalidOption
from svag.theory import p_diag, random_rotation

SEEDS, ROWS, ROUNDING = 200, 200, 1e-5


def looked_up(matrix):
    """A matrix as an operator that looks rows up, and multiplies other vectors."""
    dense = torch.as_tensor(matrix)

    def product(vectors):
        units = vectors.count_nonzero(dim=1) == 1
        return dense[vectors.argmax(dim=1)] if units.all() else vectors @ dense

    return LinearOperator(product, len(dense), dtype=dense.dtype)


def blocks(matrix, sizes):
    """p_diag of the whole and of the blocks on the diagonal."""
    ends = np.cumsum(list(sizes.values()))
    parts = [slice(end - size, end) for end, size in zip(ends, sizes.values(), strict=True)]
    return [p_diag(matrix), *(p_diag(matrix[part, part]) for part in parts)]


@pytest.fixture(scope="module")
def digits():
    """Matrices of a network of 1,960 parameters on digits, before and after training."""
    data, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(data / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 26), nn.Tanh(), nn.Linear(26, 10))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    matrices = {}
    for stage in ("initial", "trained"):
        matrices[f"hessian, {stage}"], matrices[f"gauss-newton, {stage}"] = exact(
            model, x[:64], y[:64]
        )
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for step in range(400):
            part = torch.arange(64 * step, 64 * step + 64) % len(x)
            optimizer.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return matrices, sizes


def exact(model, x, y):
    """Hessian and Gauss-Newton matrix by torch.func."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in params.values()])

    def outputs(theta):
        pieces = theta.split([p.numel() for p in params.values()])
        views = {
            n: piece.view(p.shape) for (n, p), piece in zip(params.items(), pieces, strict=True)
        }
        return functional_call(model, views, (x,))

    def loss(theta):
        return functional.cross_entropy(outputs(theta), y)

    jacobian, q = jacrev(outputs)(flat), outputs(flat).softmax(1)
    bent = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    hessian = jacrev(jacrev(loss), chunk_size=500)(flat)
    gauss_newton = torch.einsum("nka,nkl,nlb->ab", jacobian, bent, jacobian) / len(x)
    return hessian, gauss_newton


@pytest.mark.parametrize("stage", ["initial", "trained"])
@pytest.mark.parametrize("of", ["hessian", "gauss-newton"])
def test_intervals_cover(digits, of, stage):
    matrices, sizes = digits
    matrix = matrices[f"{of}, {stage}"]
    expected = blocks(matrix.double().numpy(), sizes)
    one = looked_up(matrix)
    found = [sampled_p_diag(one, sizes, ROWS, seed=seed) for seed in range(SEEDS)]
    assert one.products == SEEDS * ROWS
    values = np.array([p[0].value for p in found])
    for n, value in enumerate(expected):
        missed = [
            not p[n].interval[0] * (1 - ROUNDING) <= value <= p[n].interval[1] * (1 + ROUNDING)
            for p in found
        ]
        name = f"missed by p_diag's intervals, {of}, {stage}" if n == 0 else "missed for a tensor"
        assert_within(name, np.mean(missed), 0.1)
    widths = [(p[0].interval[1] - p[0].interval[0]) / p[0].value for p in found]
    assert abs(values.mean() - expected[0]) < 4 * values.std() / np.sqrt(SEEDS)
    assert np.mean(widths) < 0.25


def test_rows_are_those_of_the_hessian_and_all_rows_give_the_exact_value():
    made, other = case("tied"), case("tied")
    batch = Batch((made.inputs, made.targets), 0)
    oracle = Oracle(other.model, other.loss_fn, [batch])
    with Curvature(Objective(made.model, made.loss_fn), [batch]) as curvature:
        for of, times in (
            ("hessian", oracle.hessian_times),
            ("gauss-newton", oracle.gauss_newton_times),
        ):
            one = curvature.operator(of)
            row = one(torch.eye(one.size)[[7]].double())[0]
            unit = [torch.zeros_like(p) for p in made.model.parameters()]
            unit[0].view(-1)[7] = 1
            product = getattr(curvature, f"{of.replace('-', '_')}_product")(unit)
            assert torch.equal(row, torch.cat([p.reshape(-1) for p in product]))
            found = sampled_p_diag(one, curvature.sizes, one.size)
            expected = blocks(oracle.dense(times).numpy(), curvature.sizes)
            for p, value in zip(found, expected, strict=True):
                assert p.value == pytest.approx(value, rel=1e-6)
                assert p.interval == (p.value, p.value)
                assert p.rows == p.size


SHAPE = {"a": 40, "b": 1, "c": 25, "d": 2}


def test_limits_that_are_known():
    diagonal = looked_up(np.diag(np.linspace(-1, 3, 68)))
    for p in sampled_p_diag(diagonal, SHAPE, 30):
        assert (p.value, p.interval) == (1.0, (1.0, 1.0))
    signs = np.where(np.arange(68) % 3, 1.0, -1.0)
    found = sampled_p_diag(looked_up(np.outer(signs, signs)), SHAPE, 30)
    for p, size in zip(found, (68, *SHAPE.values()), strict=True):
        assert p.value == pytest.approx(1 / size)
        assert p.size == size


def test_scale_does_not_matter():
    matrix = np.random.default_rng(0).standard_normal((68, 68)) ** 3
    matrix = matrix + matrix.T
    first, *others = (
        [(p.value, p.interval) for p in sampled_p_diag(looked_up(scale * matrix), SHAPE, 30)]
        for scale in (1.0, 2.0**-60, 2.0**60)
    )
    assert others == [first, first]


def test_intervals_are_as_wide_as_the_values_scatter_when_most_rows_are_seen():
    """The rows that are seen have no part in the error: without that, three times as wide."""
    matrix = np.random.default_rng(0).standard_normal((100, 100))
    one = looked_up(matrix + matrix.T)
    found = [sampled_p_diag(one, {"a": 100}, 96, seed=seed)[0] for seed in range(200)]
    assert {p.rows for p in found} == {88}
    half_widths = [np.log(p.interval[1] / p.interval[0]) / 2 for p in found]
    assert 1.7 < np.median(half_widths) / np.std(np.log([p.value for p in found])) < 2.7


def test_a_matrix_of_zeros_has_no_p_diag():
    for p in sampled_p_diag(looked_up(np.zeros((68, 68))), SHAPE, 30):
        assert p.value is p.interval is None
    matrix = np.zeros((68, 68))
    matrix[41:66, 41:66] = 1.0
    whole, *parts = sampled_p_diag(looked_up(matrix), SHAPE, 40)
    assert whole.value == pytest.approx(1 / 25)
    assert [p.value for p in parts] == [None, None, pytest.approx(1 / 25), None]


def test_one_row_that_has_all_the_weight_leaves_the_ratio_open():
    """The deviation from the ratio is 0 there, whatever the other rows are."""
    matrix = 1e-6 * np.ones((40, 40))
    matrix[3, 3] = 1.0
    found = [sampled_p_diag(looked_up(matrix), {"a": 40}, 5, seed=seed)[0] for seed in range(50)]
    seen = [p for p in found if p.value > 0.5]
    assert seen
    assert all(p.interval == (0.0, 1.0) for p in seen)


@pytest.mark.parametrize("rows", [2, 5, 16, 40, 60])
def test_many_tensors_and_few_rows(rows):
    """Forty tensors, of which few can have rows of their own."""
    rng = np.random.default_rng(0)
    sizes = {f"t{n}": int(size) for n, size in enumerate(rng.integers(1, 60, 40))}
    size = sum(sizes.values())
    rotation = random_rotation(60, rng)
    matrix = np.zeros((size, size))
    small = (rotation * rng.uniform(0, 1, 60)) @ rotation.T
    index = rng.integers(0, 60, size)
    scale = np.exp(rng.standard_normal(size) / 2)
    matrix = scale[:, None] * small[np.ix_(index, index)] * scale
    one, exact = looked_up(matrix), p_diag(matrix)
    seeds = range(60)
    found = [sampled_p_diag(one, sizes, rows, seed=seed) for seed in seeds]
    assert one.products <= rows * len(seeds)
    assert np.mean([p[0].interval[0] <= exact <= p[0].interval[1] for p in found]) >= 0.9
    for whole, *parts in found:
        assert sum(p.rows for p in parts) <= whole.rows <= rows
        assert all((p.value is None) is (p.rows == 0) for p in parts)


def test_memory_limits_the_rows_that_are_made_at_a_time():
    largest = 0

    def product(vectors):
        nonlocal largest
        largest = max(largest, len(vectors))
        return vectors * torch.arange(1.0, 69.0)

    one = LinearOperator(product, 68)
    limited = sampled_p_diag(one, SHAPE, 40, max_bytes=4 * 3 * 4 * 68)
    assert largest == 4
    assert limited == sampled_p_diag(looked_up(np.diag(np.arange(1.0, 69.0))), SHAPE, 40)


def test_unusable_options_are_refused():
    with pytest.raises(InvalidOption, match="rows=1"):
        sampled_p_diag(looked_up(np.eye(68)), SHAPE, 1)
    with pytest.raises(InvalidOption, match="sum to 68; d is 5"):
        sampled_p_diag(looked_up(np.eye(5)), SHAPE, 4)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    rows=st.integers(2, 300),
    seed=st.integers(0, 1000),
)
def test_classes_hold_each_row_once_and_use_the_rows_given(sizes, rows, seed):
    named = {f"t{n}": size for n, size in enumerate(sizes)}
    total = sum(sizes)
    lengths = np.exp(3 * np.random.default_rng(seed).standard_normal(total))
    classes = row_classes(lengths, named, rows)
    members = np.concatenate([c.members for c in classes])
    assert sorted(members) == list(range(total))
    assert sum(c.count for c in classes) == min(rows, total)
    assert all(min(2, len(c.members)) <= c.count <= len(c.members) for c in classes)
    ends = dict(zip(named, np.cumsum(sizes), strict=True))
    for c in classes:
        if c.tensor is not None:
            assert ends[c.tensor] - named[c.tensor] <= c.members.min()
            assert c.members.max() < ends[c.tensor]


@given(
    pairs=st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 50)), min_size=1, max_size=20),
    total=st.integers(1, 400),
    least=st.integers(0, 3),
)
def test_allocation_keeps_its_bounds_and_is_in_proportion_between_them(pairs, total, least):
    weights, sizes = zip(*pairs, strict=True)
    lowest = [min(least, size) for size in sizes]
    total = max(total, sum(lowest))
    counts = allocated(weights, sizes, total, least=least)
    assert sum(counts) == min(total, sum(sizes))
    assert all(a <= n <= b for a, n, b in zip(lowest, counts, sizes, strict=True))
    free = [
        n / w
        for w, n, a, b in zip(weights, counts, lowest, sizes, strict=True)
        if a < n < b
    ]  # fmt: skip
    slack = [1 / w for w, n, a, b in zip(weights, counts, lowest, sizes, strict=True) if a < n < b]
    if free:
        assert max(free) - min(free) <= 2 * max(slack)
