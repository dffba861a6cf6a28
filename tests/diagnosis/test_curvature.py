"""Products with the Hessian and the Gauss-Newton matrix, against differences of gradients."""

import random

import numpy as np
import pytest
import torch
from measured import assert_within
from torch import nn
from torch.nn import functional

from diagnosis.curved_models import MAKERS, case
from diagnosis.second_order_oracle import Oracle
from svag.diagnosis.curvature.products import Curvature
from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError

DENSE = ("mlp", "regression", "batch norm", "transformer, dropout", "lstm", "dropout", "tied")


def curved(name, *, seed=3, **options):
    """A curvature, and an oracle of it on a model of its own."""
    made, other = case(name), case(name)
    batches = [Batch((made.inputs, made.targets), seed)]
    objective = Objective(made.model, made.loss_fn, **options)
    return Curvature(objective, batches), Oracle(other.model, other.loss_fn, batches)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-3))


@pytest.mark.parametrize("name", DENSE)
def test_matrices_are_those_of_differences(name):
    curvature, oracle = curved(name)
    with curvature:
        for of, times in (
            ("hessian", oracle.hessian_times),
            ("gauss-newton", oracle.gauss_newton_times),
        ):
            operator = curvature.operator(of)
            found = operator(torch.eye(operator.size).double())
            assert_within(f"{of}, dense", relative(found, oracle.dense(times)), 1e-7, name)


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in DENSE])
def test_products_are_those_of_differences(name):
    curvature, oracle = curved(name)
    with curvature:
        for seed in range(2):
            vector = curvature.operator("hessian").gaussian(1, seed)[0]
            for of, times in (
                ("hessian", oracle.hessian_times),
                ("gauss-newton", oracle.gauss_newton_times),
            ):
                found = curvature.operator(of)(vector[None])[0]
                assert_within(f"{of}, products", relative(found, times(vector)), 1e-6, name)


def test_several_batches_count_alike():
    made, other = case("batch norm"), case("batch norm")
    batches = [
        Batch((made.inputs, made.targets), 1),
        Batch((made.inputs[:4] + 0.2, made.targets[:4]), 2),
    ]
    oracle = Oracle(other.model, other.loss_fn, batches)
    with Curvature(Objective(made.model, made.loss_fn), batches) as curvature:
        vectors = [[torch.randn_like(p) for p in made.model.parameters()] for _ in range(2)]
        forms = curvature.forms_along(vectors)
        gradient = torch.cat([g.reshape(-1) for g in curvature.gradient()])
        products = curvature.hessian_product(vectors[1]), curvature.gauss_newton_product(vectors[1])
    flats = [torch.cat([part.reshape(-1) for part in vector]) for vector in vectors]
    assert relative(gradient, oracle.gradient(oracle.start)) < 1e-12
    for v, form in zip(flats, forms, strict=True):
        assert form.slope == pytest.approx(float(oracle.gradient(oracle.start) @ v), rel=1e-10)
        assert form.hessian == pytest.approx(float(oracle.hessian_times(v) @ v), rel=1e-6)
        assert form.gauss_newton == pytest.approx(float(oracle.gauss_newton_times(v) @ v), rel=1e-6)
    for product, times in zip(
        products, (oracle.hessian_times, oracle.gauss_newton_times), strict=True
    ):
        assert [p.shape for p in product] == [p.shape for p in made.model.parameters()]
        assert relative(torch.cat([p.reshape(-1) for p in product]), times(flats[1])) < 1e-7


def test_l2_terms_are_in_both_matrices():
    plain, _ = curved("mlp")
    decayed, _ = curved("mlp", weight_decay={"0.weight": 0.3, "2.bias": 2.0})
    vector = [torch.randn_like(p) for p in case("mlp").model.parameters()]
    expected = [0.3 * vector[0], 0 * vector[1], 0 * vector[2], 2.0 * vector[3]]
    with plain, decayed:
        for method in ("hessian_product", "gauss_newton_product"):
            more, less = (getattr(c, method)(vector) for c in (decayed, plain))
            for a, b, share in zip(more, less, expected, strict=True):
                torch.testing.assert_close(a - b, share)


def test_the_gauss_newton_matrix_of_a_least_squares_line_is_the_hessian():
    x = torch.randn(20, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    batch = Batch((x, torch.zeros(20, 1).double()), 0)
    with Curvature(Objective(model, nn.MSELoss()), [batch]) as curvature:
        for of in ("hessian", "gauss-newton"):
            found = curvature.operator(of)(torch.eye(3).double())
            torch.testing.assert_close(found, 2 * x.T @ x / 20)


def test_a_compiled_model_has_the_curvature_of_its_source():
    made, (_, oracle) = case("mlp"), curved("mlp")
    compiled = torch.compile(made.model, backend="aot_eager")
    batch = Batch((made.inputs, made.targets), 0)
    functional.cross_entropy(compiled(made.inputs), made.targets).backward()
    with Curvature(Objective(compiled, made.loss_fn), [batch]) as curvature:
        product = curvature.hessian_product([torch.ones_like(p) for p in made.model.parameters()])
    expected = oracle.hessian_times(torch.ones_like(oracle.start))
    assert relative(torch.cat([part.reshape(-1) for part in product]), expected) < 1e-7


def test_it_works_within_a_dissection_and_leaves_that_going_on():
    made = case("batch norm")
    made.model.eval()
    objective = Objective(made.model, made.loss_fn)
    curvature = Curvature(objective, [Batch((made.inputs, made.targets), 1)])
    with objective.dissected():
        with curvature:
            first = curvature.gradient()
        assert made.model.training
        assert len(objective.theta) == len(first)
        with curvature:
            again = curvature.gradient()
    assert not made.model.training
    assert same(first, again)


def test_outputs_of_an_unknown_type_have_a_hessian_only():
    class Held:
        def __init__(self, logits):
            self.logits = logits

    class Holding(nn.Linear):
        def forward(self, x):
            return Held(super().forward(x))

    made = case("mlp")
    objective = Objective(
        Holding(4, 3).double(), lambda z, y: functional.cross_entropy(z.logits, y)
    )
    with Curvature(objective, [Batch((made.inputs, made.targets), 0)]) as curvature:
        assert not curvature.has_gauss_newton
        forms = curvature.forms(curvature.gradient())
        assert forms.hessian > 0
        assert forms.gauss_newton is None


def test_without_known_outputs_there_is_no_gauss_newton_matrix():
    made = case("mlp")
    objective = Objective(
        made.model,
        batch_loss=lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
    )
    vector = [torch.ones_like(p) for p in made.model.parameters()]
    known, _ = curved("mlp")
    with Curvature(objective, [Batch((made.inputs, made.targets), 0)]) as curvature:
        forms = curvature.forms(vector)
        with pytest.raises(DissectionError, match="give loss_fn"):
            curvature.gauss_newton_product(vector)
    with known:
        assert known.forms(vector).hessian == pytest.approx(forms.hessian)
    assert forms.gauss_newton is None


def test_no_batch_has_no_curvature():
    made = case("mlp")
    with pytest.raises(DissectionError, match="at least one batch"):
        Curvature(Objective(made.model, made.loss_fn), [])


def state(model):
    """All that a dissection must leave as it was."""
    backends = torch.backends
    return (
        [p.detach().clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [p.grad for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
        [backends.cudnn.enabled, backends.mkldnn.enabled, backends.mha.get_fastpath_enabled()],
        [backends.cuda.flash_sdp_enabled(), backends.cuda.mem_efficient_sdp_enabled()],
        [backends.cuda.math_sdp_enabled(), backends.cuda.cudnn_sdp_enabled()],
        [torch.is_grad_enabled(), random.getstate(), np.random.get_state()[1].tolist()],  # noqa: NPY002
    )


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


@pytest.mark.parametrize("name", ["batch norm", "lstm", "weight norm", "transformer, dropout"])
def test_everything_is_restored(name):
    made = case(name)
    made.model.eval()
    for number, param in enumerate(made.model.parameters()):
        param.grad = torch.full_like(param, number) if number else None
    before = state(made.model)
    objective = Objective(made.model, made.loss_fn)
    with (
        torch.no_grad(),
        Curvature(objective, [Batch((made.inputs, made.targets), s) for s in (1, 2)]) as curvature,
    ):
        assert made.model.training
        recurrent = name == "lstm"
        assert torch.backends.cudnn.enabled is not recurrent
        curvature.forms(curvature.gradient())
    assert same(state(made.model), before)
