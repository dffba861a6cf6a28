"""The within-batch variance of svag.jax, against its definition and against svag's in torch."""

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

import jax
import jax.numpy as jnp
import optax
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import svag
import svag.jax as sj
from svag.errors import InvalidOption, PerExampleError, TooFewSamples

from .stepping import precision

N, IN, HIDDEN = 10, 4, 5
SIZES = [None, 1, 3, 5, 7, 99]


def data(dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Parameters of two layers, inputs and targets."""
    rng = np.random.default_rng(0)
    params = {
        "in": {"w": rng.standard_normal((IN, HIDDEN)), "b": rng.standard_normal(HIDDEN)},
        "out": rng.standard_normal((HIDDEN, 1)),
    }
    x, y = rng.standard_normal((N, IN)), rng.standard_normal((N, 1))
    as_dtype = partial(jax.tree.map, lambda value: jnp.asarray(value).astype(dtype))
    return as_dtype(params), as_dtype(x), as_dtype(y)


def loss(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"])
    return ((hidden @ params["out"] - y) ** 2).mean()


def by_definition(params: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """Loss, gradient and variance in float64, one example after the other."""
    with precision("float64"):
        values = [np.asarray(v, np.float64) for v in jax.tree.leaves((params, x, y))]
        params, x, y = jax.tree.unflatten(jax.tree.structure((params, x, y)), values)
        gradient = jax.jit(jax.grad(loss))
        each = [gradient(params, x[k : k + 1], y[k : k + 1]) for k in range(len(x))]
        stacked = jax.tree.map(lambda *g: np.stack(g), *each)
        mean = jax.tree.map(lambda g: g.mean(axis=0), stacked)
        variance = jax.tree.map(lambda g: g.var(axis=0, ddof=1) / len(x), stacked)
        return float(loss(params, x, y)), mean, variance


def assert_close(ours: Any, theirs: Any, rtol: float = 2e-5) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = (np.asarray(z, np.float64) for z in (a, b))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (np.abs(b).max() + 1e-30))


@pytest.mark.parametrize("micro_batch", SIZES)
def test_it_is_the_unbiased_variance_of_the_mean(micro_batch: int | None):
    estimate = jax.jit(sj.value_grad_and_variance(loss, micro_batch=micro_batch))
    assert_close(estimate(*data()), by_definition(*data()))
    with precision("float64"):
        assert_close(estimate(*data("float64")), by_definition(*data("float64")), rtol=1e-13)


def test_it_is_that_of_the_torch_context():
    params, x, y = data()
    _, grads, grad_var = sj.value_grad_and_variance(loss)(params, x, y)
    model = torch.nn.Sequential(
        torch.nn.Linear(IN, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 1, bias=False)
    )
    theirs = [model[0].weight, model[0].bias, model[2].weight]
    ours = [params["in"]["w"].T, params["in"]["b"], params["out"].T]
    for mine, its in zip(ours, theirs, strict=True):
        its.data.copy_(torch.from_numpy(np.array(mine)))
    inputs, targets = (torch.from_numpy(np.array(z)) for z in (x, y))
    with svag.within_batch_variance(model):
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
    for tree, name in ((grads, "grad"), (grad_var, "grad_var")):
        found = [tree["in"]["w"].T, tree["in"]["b"], tree["out"].T]
        assert_close(found, [getattr(p, name).numpy() for p in theirs], rtol=1e-4)


def test_it_stands_where_value_and_grad_stood():
    """The same value, gradient, aux and dtypes; shared arguments, keywords, several argnums."""

    def with_aux(params: Any, x: Any, y: Any, scale: Any, *, power: int) -> Any:
        return scale * loss(params, x, y) ** power, {"prediction": x.sum(axis=1)}

    params, x, y = data()
    for dtype in ("float32", "bfloat16"):
        tree = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        both = sj.value_grad_and_variance(with_aux, has_aux=True, shared_argnums=(3,))
        (value, aux), grads, grad_var = both(tree, x, y, 2.0, power=1)
        expected, its = jax.value_and_grad(with_aux, has_aux=True)(tree, x, y, 2.0, power=1)
        assert_close(value, expected[0], rtol=1e-2 if dtype == "bfloat16" else 1e-5)
        assert_close(grads, its, rtol=3e-2 if dtype == "bfloat16" else 1e-5)
        assert_close(aux["prediction"][:, 0], expected[1]["prediction"])
        assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
        assert {v.dtype for v in jax.tree.leaves(grad_var)} == {jnp.dtype("float32")}
    _, (first, second), (of_first, _) = sj.value_grad_and_variance(
        lambda a, b, x, y: loss({"in": a, "out": b}, x, y), argnums=(0, 1), micro_batch=4
    )(params["in"], params["out"], x, y)
    assert_close({"in": first, "out": second}, by_definition(*data())[1])
    assert_close(of_first, by_definition(*data())[2]["in"])


def test_a_loss_of_one_example_without_a_batch_axis():
    def of_one(params: Any, x: Any, y: Any) -> Any:
        assert x.shape == (IN,)
        return loss(params, x[None], y[None])

    estimate = sj.value_grad_and_variance(of_one, keep_batch_axis=False, micro_batch=3)
    assert_close(estimate(*data()), by_definition(*data()))


def test_examples_in_a_tree_and_keys_of_their_own():
    """A key split for each example; a shared one would give all the same noise."""

    def noisy(params: Any, batch: Any, keys: Any) -> Any:
        noise = jax.vmap(lambda key: jax.random.normal(key, (IN,)))(keys)
        return loss(params, batch["x"] + noise, batch["y"])

    params, x, y = data()
    keys = jax.random.split(jax.random.key(0), N)
    noise = jax.vmap(lambda key: jax.random.normal(key, (IN,)))(keys)
    for size in (None, 4):
        estimate = sj.value_grad_and_variance(noisy, micro_batch=size)
        found = estimate(params, {"x": x, "y": y}, keys)
        assert_close(found, by_definition(params, x + noise, y))


def test_complex_parameters_have_variances_of_real_and_imaginary_parts():
    rng = np.random.default_rng(0)
    z, x = rng.standard_normal(3) + 1j * rng.standard_normal(3), rng.standard_normal((N, 3))

    def of_complex(z: Any, x: Any) -> Any:
        return (jnp.abs(x * z - 1.0) ** 2).mean()

    for size in (None, 4):
        estimate = sj.value_grad_and_variance(of_complex, micro_batch=size)
        _, grad, grad_var = estimate(jnp.asarray(z, jnp.complex64), jnp.asarray(x, jnp.float32))
        # conj of dL/d(re) + i dL/d(im), as jax.grad has it
        each = np.conj(2 * x * (x * z - 1.0)) / 3
        assert_close([grad.real, grad.imag], [each.mean(0).real, each.mean(0).imag])
        spread = [part.var(axis=0, ddof=1) / N for part in (each.real, each.imag)]
        assert_close([grad_var.real, grad_var.imag], spread, rtol=1e-4)
        tx = sj.m_svag(variance="within-batch")
        updates, _ = tx.update(grad, tx.init(grad), grad_var=grad_var)
        assert updates.dtype == jnp.complex64


def test_constant_examples_have_no_variance_and_large_means_lose_little():
    params, x, y = data()
    same = sj.value_grad_and_variance(loss, micro_batch=3)
    _, _, none = same(params, jnp.tile(x[:1], (N, 1)), jnp.tile(y[:1], (N, 1)))
    assert all(float(v.max()) < 1e-12 for v in jax.tree.leaves(none))

    def linear(w: Any, x: Any) -> Any:
        return (x * w).mean()

    x = 1e4 + np.arange(N, dtype=np.float32)
    for size in (None, 2, 3):
        _, _, grad_var = sj.value_grad_and_variance(linear, micro_batch=size)(jnp.ones(()), x)
        np.testing.assert_allclose(grad_var, x.astype(np.float64).var(ddof=1) / N, rtol=1e-4)


# ----------------------------------------------------------------------- several devices


def mesh_of(count: int, kind: AxisType = AxisType.Auto) -> Any:
    if len(jax.devices()) < count:
        pytest.skip("needs devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), ("data",), devices=devices, axis_types=(kind,))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("count", "checks", "size"), [(2, False, None), (5, True, None), (2, True, 2)]
)
def test_a_mini_batch_divided_over_devices(count: int, checks: bool, size: Any, kind: AxisType):
    """By jit with sharded arguments, and by shard_map with the name of the axis.

    With ``check_vma``, shard_map sums gradients by parameters that are the same on all devices.
    """
    mesh = mesh_of(count, kind)
    spec = PartitionSpec("data")
    params, x, y = data()
    x, y = (jax.device_put(z, NamedSharding(mesh, spec)) for z in (x, y))
    expected = by_definition(*data())
    assert_close(jax.jit(sj.value_grad_and_variance(loss))(params, x, y), expected)
    estimate = sj.value_grad_and_variance(loss, axis_name="data", micro_batch=size)
    everywhere = PartitionSpec()
    mapped = jax.shard_map(
        estimate, mesh=mesh, in_specs=(everywhere, spec, spec), out_specs=everywhere,
        check_vma=checks,
    )  # fmt: skip
    assert_close(jax.jit(mapped)(params, x, y), expected)


def test_one_example_on_each_device():
    mesh, spec = mesh_of(2), PartitionSpec("data")
    params, x, y = data()
    x, y = x[:2], y[:2]
    mapped = jax.shard_map(
        sj.value_grad_and_variance(loss, axis_name="data"),
        mesh=mesh, in_specs=(PartitionSpec(), spec, spec), out_specs=PartitionSpec(),
    )  # fmt: skip
    divided = (jax.device_put(z, NamedSharding(mesh, spec)) for z in (x, y))
    assert_close(mapped(params, *divided), by_definition(params, x, y))


# ------------------------------------------------------------------------- what is refused


def test_what_is_refused():
    params, x, y = data()
    estimate = sj.value_grad_and_variance(loss)
    with pytest.raises(TooFewSamples, match="at least 2 examples and the mini-batch has 1"):
        estimate(params, x[:1], y[:1])
    with pytest.raises(InvalidOption, match="argument 1 has 10, argument 2 has 9"):
        estimate(params, x, y[:9])
    with pytest.raises(InvalidOption, match="same number of examples along axis 0: there is none"):
        sj.value_grad_and_variance(lambda p: (p**2).sum())(jnp.ones(2))
    with pytest.raises(InvalidOption, match=r"argument 1\['t'\] has no axis.*shared_argnums"):
        sj.value_grad_and_variance(lambda p, b: (p * b["x"]).mean())(
            jnp.ones(()), {"t": 1.0, "x": x}
        )
    for wrong in (0, -1, 2.5):
        with pytest.raises(InvalidOption, match="micro_batch="):
            sj.value_grad_and_variance(loss, micro_batch=wrong)


def test_a_loss_that_is_no_mean_over_examples_is_found():
    params, x, y = data()
    sj.check_independence(loss, params, x, y)
    with pytest.raises(InvalidOption, match=r"call it once, outside jax\.jit"):
        jax.jit(lambda p: sj.check_independence(loss, p, x, y))(params)

    def normalised(params: Any, x: Any, y: Any) -> Any:
        return loss(params, (x - x.mean(0)) / (x.std(0) + 1e-3), y)

    def summed(params: Any, x: Any, y: Any) -> Any:
        return len(x) * loss(params, x, y)

    def padded(params: Any, x: Any, y: Any) -> Any:
        weight = (y > 0).astype(jnp.float32)
        hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"])
        return (weight * (hidden @ params["out"] - y) ** 2).sum() / (weight.sum() + 1e-9)

    for wrong in (normalised, summed, padded):
        with pytest.raises(PerExampleError, match="mean over its examples is"):
            sj.check_independence(wrong, params, x, y)
    with pytest.raises(PerExampleError):
        sj.check_independence(lambda *args: (summed(*args), x), params, x, y, has_aux=True)


def test_a_detached_coupling_shows_in_the_gradient_alone():
    """The value is the mean over examples, the gradient is not."""

    def coupled(w: Any, x: Any) -> Any:
        value = (w * x).mean()
        return value + (w - jax.lax.stop_gradient(w)) * x.std()

    with pytest.raises(PerExampleError):
        sj.check_independence(coupled, jnp.ones(()), jnp.arange(4.0))


# --------------------------------------------------------------------------- in a loop


def test_clipping_takes_the_variances_along():
    params, x, y = data()
    _, grads, grad_var = sj.value_grad_and_variance(loss)(params, x, y)
    norm = optax.tree.norm(grads)
    clipped, scaled = sj.clip_by_global_norm(grads, grad_var, 0.5 * norm)
    assert_close(clipped, jax.tree.map(lambda g: g / 2, grads))
    assert_close(scaled, jax.tree.map(lambda v: v / 4, grad_var))
    assert_close(sj.clip_by_global_norm(grads, grad_var, 2 * norm), (grads, grad_var), rtol=0)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    assert_close(sj.clip_by_global_norm(zeros, zeros, 1.0), (zeros, zeros), rtol=0)
    expected, _ = optax.clip_by_global_norm(0.5 * norm).update(grads, optax.EmptyState())
    assert_close(clipped, expected)


def test_a_training_loop_descends():
    params, x, y = data()
    tx = sj.m_svag(0.1, variance="within-batch")
    estimate = sj.value_grad_and_variance(loss, micro_batch=4)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads, grad_var = estimate(params, x, y)
        updates, state = tx.update(grads, state, params, grad_var=grad_var)
        return optax.apply_updates(params, updates), state, value

    state, values = tx.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]
