"""Dtypes of parameters and averages, rounding, and the limits of the rule, in svag.jax."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

import jax
import jax.numpy as jnp
import optax
import torch
from measured import assert_within
from optim.cases import CASES, CORRECTED, FEW, METHODS, WITHIN_BATCH, Case, by_name, named
from optim.test_generated import plain

import svag
import svag.jax as sj
from svag.errors import InvalidOption
from svag.jax import rounding
from svag.optim import rounding as torch_rounding

from .stepping import build, path, walk

STEPS, SIZE = 6, 60
EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10, "complex64": 2.0**-23}
BETAS = (0.0, 0.5, 0.9, 0.999)


def drawn(seed: int, noise: float = 1.0) -> Any:
    """Gradients of magnitudes in [1/2, 8], of constant sign where there is little noise."""
    rng = np.random.default_rng(seed)
    constant = rng.uniform(1.0, 4.0, SIZE) * rng.choice([-1.0, 1.0], SIZE)
    if noise < 1.0:
        return constant * (1.0 + noise * rng.uniform(-1.0, 1.0, (STEPS, SIZE)))
    return rng.choice([-1.0, 1.0], (STEPS, SIZE)) * 2.0 ** rng.uniform(-1.0, 3.0, (STEPS, SIZE))


def as_dtype(values: Any, dtype: str) -> Any:
    """Values of the dtype; halves of complex ones are real and imaginary parts."""
    if dtype == "complex64":
        real, imaginary = np.split(np.asarray(values, np.float32), 2, axis=-1)
        return jnp.asarray(real + 1j * imaginary)
    return jnp.asarray(values).astype(dtype)


def as_reals(array: Any) -> Any:
    if jnp.iscomplexobj(array):
        return np.concatenate([array.real, array.imag], axis=-1).astype(np.float64)
    return np.asarray(array.astype(jnp.float32), np.float64)


@pytest.mark.parametrize("dtype", EPS)
@by_name(FEW)
def test_within_64_eps_of_the_reference(case: Case, dtype: str):
    """Of |theta_0| + sum |updates|; sign descent where its direction is not decided set aside."""
    start = as_dtype(np.random.default_rng(0).uniform(0.5, 1.5, SIZE), dtype)

    @jax.jit
    def follow(beta: Any, gradients: Any, variances: Any) -> Any:
        decay = {"b1": beta} if case.raw else {"beta": beta} if case.averages else {}
        return walk(build(case, 0.01, **decay), start, gradients, variances)[0][-1]

    for beta in BETAS if case.averages else (0.9,):
        for seed, noise in ((0, 1.0), (1, 0.01), (2, 0.0)):
            gradients = as_dtype(drawn(seed, noise), dtype)
            variances = as_reals(gradients) ** 2 * np.geomspace(0.01, 10.0, SIZE)
            sample = {"variances": variances.astype(np.float32)} if case.within_batch else {}
            given = as_dtype(variances, "complex64" if dtype == "complex64" else "float32")
            end = follow(np.float32(beta), gradients, given if case.within_batch else None)
            decay = case.decay(float(np.float32(beta)))
            steps = case.reference(as_reals(gradients), as_reals(start), lr=0.01, **sample, **decay)
            reach = sum((np.abs(step.update) for step in steps), np.abs(as_reals(start)))
            decided = np.ones(SIZE, bool)
            if case.anatomy.sign and not case.anatomy.adapted and case.averages:
                decided = np.min([np.abs(step.m) for step in steps], axis=0) > 64 * EPS[dtype]
            off = np.abs(as_reals(end) - steps[-1].theta)[decided] / (EPS[dtype] * reach[decided])
            assert_within(f"jax, {dtype}, in eps", off.max(), 64.0, (str(case), beta, noise))


# ------------------------------------------------------------------------- dtypes of the state


@pytest.mark.parametrize("param", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("state", [None, "float32", "bfloat16", jnp.bfloat16])
def test_averages_have_the_dtype_that_is_asked_for(param: str, state: Any):
    params = {"w": jnp.ones(3, param), "b": jnp.ones((), param)}
    for tx in (sj.m_svag(state_dtype=state), sj.adam(amsgrad=True, state_dtype=state)):
        before = tx.init(params)
        updates, after = tx.update(params, before, params)
        for tree in (before, after):
            averages = [x for x in jax.tree.leaves(tree) if x.dtype != jnp.int32]
            assert {str(x.dtype) for x in averages} == {str(jnp.dtype(state or param))}
        assert {str(x.dtype) for x in jax.tree.leaves(updates)} == {param}


def test_state_dtypes_that_are_refused():
    for wrong in ("float16", "int8", "float64", "half a byte", 3):
        with pytest.raises(InvalidOption, match="state_dtype="):
            sj.m_svag(state_dtype=wrong)
    with pytest.raises(InvalidOption, match="complex64; averages are kept in another dtype"):
        sj.m_svag(state_dtype="float32").init(jnp.ones(2, jnp.complex64))
    with pytest.raises(InvalidOption, match="int32 has no gradient"):
        sj.m_svag().init({"w": jnp.ones(2, jnp.int32)})


@pytest.mark.parametrize(("shape", "place"), [((), 0), ((7,), 3), ((2, 3, 5), 1), ((4, 0), 2)])
def test_noise_is_that_of_the_torch_engines(shape: tuple[int, ...], place: int):
    for seed, step in ((0, 1), (2**32 - 1, 17)):
        ours = rounding.noise(seed, place, jnp.int32(step), shape)
        key = torch_rounding.key(seed, place, float(step))
        theirs = torch_rounding.noise(key, torch.zeros(shape))
        for name, torchs in zip(("mu", "nu", "nu_max"), theirs[1:], strict=True):
            np.testing.assert_array_equal(np.asarray(ours[name], np.int64), torchs.numpy())


@pytest.mark.parametrize("key", ["m-svag", "adam"])
def test_bfloat16_averages_are_rounded_as_by_the_torch_engines(key: str):
    """Where XLA contracts to fused multiply-adds, a number beside a rounding point may flip."""
    case = named(key)[0]
    gradients = drawn(3).astype(np.float32)
    param = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = case.build([param], state_dtype=torch.bfloat16, seed=5, foreach=False)
    for gradient in gradients:
        param.grad = torch.from_numpy(gradient)
        optimizer.step()
    tx = build(case, state_dtype="bfloat16", seed=5)
    _, states = walk(tx, jnp.zeros(SIZE), jnp.asarray(gradients))
    mean, square = (optax.tree.get(states, name)[-1] for name in ("mu", "nu"))
    for ours, name in ((mean, "exp_avg"), (square, "exp_avg_sq")):
        theirs = optimizer.state[param][name].float().numpy()
        assert (np.asarray(ours, np.float32) == theirs).mean() > 0.95
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=3 * 2.0**-7)


def test_small_increments_to_bfloat16_averages_count_on_average():
    """At b2 = 0.999 an increment is below half a unit: rounded to nearest, v would stand still."""
    tx = sj.adam(b2=0.999, state_dtype="bfloat16")
    ones = jnp.ones(4000)
    state = tx.init(ones)
    nu = [jnp.full(4000, 0.5, jnp.bfloat16)]
    state = optax.tree.set(state, nu=nu[0])
    for _ in range(100):
        _, state = tx.update(ones, state, ones)
    expected = 1.0 - 0.5 * 0.999**100
    found = float(optax.tree.get(state, "nu").astype(jnp.float32).mean())
    assert abs(found - expected) < 0.1 * (expected - 0.5)


# ---------------------------------------------------------------------------------- limits


@by_name(CASES + WITHIN_BATCH)
def test_zero_gradients_move_nothing(case: Case):
    options = {"eps": 0.0} if case.raw else {}
    zeros, ones = np.zeros((3, 9), np.float32), np.ones((3, 9), np.float32)
    start = np.linspace(-1.0, 1.0, 9, dtype=np.float32)
    thetas = path(case, zeros, start, ones if case.within_batch else None, lr=0.1, **options)
    np.testing.assert_array_equal(thetas, [start] * 3)


@by_name([case for case in FEW if not case.raw and case.anatomy.factor != "none"])
def test_without_variance_nothing_is_adapted(case: Case):
    """Constant gradients, or mini-batches that agree: M-SVAG is M-SGD, and so on."""
    gradients = np.repeat(drawn(0)[:1], STEPS, axis=0).astype(np.float32)
    none = np.zeros_like(gradients) if case.within_batch else None
    ours = path(case, gradients, variances=none, lr=0.1, **case.decay(0.9))
    theirs = path(plain(case), gradients, lr=0.1, **plain(case).decay(0.9))
    np.testing.assert_allclose(ours, theirs, rtol=32 * EPS["float32"])


@by_name([case for case in CORRECTED if case in FEW])
def test_the_first_step_and_every_one_with_beta_zero_is_a_gradient_step(case: Case):
    gradients = drawn(4).astype(np.float32)
    expected = path(named("ssd" if case.anatomy.sign else "sgd")[0], gradients, lr=0.1)
    first = path(case, gradients[:1], lr=0.1, **case.decay(0.9))
    np.testing.assert_allclose(first, expected[:1], rtol=4 * EPS["float32"])
    everyone = path(case, gradients, lr=0.1, **case.decay(0.0))
    np.testing.assert_allclose(everyone, expected, rtol=0, atol=EPS["float32"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@by_name(FEW[:7])
def test_no_gradient_makes_a_nan(case: Case, dtype: str):
    low, high = (-7.0, 4.75) if dtype == "float16" else (-30.0, 30.0)
    rng = np.random.default_rng(0)
    for shape in ((1, SIZE), (STEPS, SIZE)):
        size = 10.0 ** rng.uniform(low, high, shape)
        signs = rng.choice([-1.0, 0.0, 1.0], (STEPS, SIZE), p=[0.4, 0.2, 0.4])
        thetas = path(case, jnp.asarray(signs * size).astype(dtype), lr=0.1)
        assert not np.isnan(thetas).any()
        assert case.raw or np.isfinite(thetas).all()


@by_name(METHODS)
def test_a_nan_is_seen(case: Case):
    gradients = np.full((2, 3), [1.0, np.nan, 2.0], np.float32)
    thetas = path(case, gradients, lr=0.1)
    np.testing.assert_array_equal(np.isnan(thetas[-1]), [False, True, False])


def test_a_count_at_its_maximum_stays_there():
    most = np.iinfo(np.int32).max
    for tx in (sj.m_svag(), sj.adam()):
        params = jnp.ones(3)
        state = optax.tree.set(tx.init(params), count=jnp.asarray(most, jnp.int32))
        updates, state = jax.jit(tx.update)(params, state, params)
        assert int(optax.tree.get(state, "count")) == most
        assert bool(jnp.isfinite(updates).all())


def test_complex_numbers_are_pairs_of_reals():
    """As in torch, whose state is complex too; a variance of each part in grad_var."""
    gradients = drawn(6).astype(np.float32)
    halves = np.split(gradients, 2, axis=-1)
    for tx in (sj.m_svag(0.1), sj.adam(0.1), sj.ssd(0.1)):
        pair = walk(tx, as_dtype(np.zeros(SIZE), "complex64"), as_dtype(gradients, "complex64"))
        for part, half in zip((pair[0].real, pair[0].imag), halves, strict=True):
            alone = walk(tx, jnp.zeros(SIZE // 2), jnp.asarray(half))[0]
            np.testing.assert_allclose(part, alone, rtol=1e-5, atol=1e-6)
    param = torch.nn.Parameter(torch.zeros(SIZE // 2, dtype=torch.complex64))
    optimizer = svag.MSVAG([param], lr=0.1)
    for gradient in as_dtype(gradients, "complex64"):
        param.grad = torch.from_numpy(np.array(gradient))
        optimizer.step()
    theta = walk(sj.m_svag(0.1), jnp.zeros(SIZE // 2, jnp.complex64),
                 as_dtype(gradients, "complex64"))[0][-1]  # fmt: skip
    np.testing.assert_allclose(theta, param.detach().numpy(), rtol=1e-5, atol=1e-6)
