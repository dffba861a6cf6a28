"""svag.jax within optax, JAX and Flax: what users combine it with, and what it refuses."""

import pickle
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optim.cases import FEW, ROWS, Case, by_name

import svag.jax as sj
from svag import METHODS, Anatomy
from svag.errors import InvalidOption, MissingVariance, UnknownOption

from .stepping import build, walk

STEPS = 5
WITHIN = sj.m_svag(0.1, variance="within-batch")


def tree(seed: int, steps: int | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    draw = partial(rng.standard_normal, dtype=np.float32)
    return {"w": jnp.asarray(draw((*lead, 8, 4))), "b": jnp.asarray(draw((*lead, 4)))}


def variances(seed: int, steps: int | None = None) -> dict[str, Any]:
    return jax.tree.map(jnp.square, tree(seed, steps))


def assert_close(ours: Any, theirs: Any, rtol: float = 1e-5) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def given(case: Case, steps: int) -> tuple[Any, Any]:
    return tree(1, steps), variances(2, steps) if case.within_batch else None


# ------------------------------------------------------------------------ jit, scan, types


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@by_name(FEW)
def test_types_are_the_same_before_and_after(case: Case, dtype: str):
    """Dtype, shape, weak type and sharding, also of a scalar parameter with a weak type."""
    params = jax.tree.map(lambda x: x.astype(dtype), {**tree(0), "scalar": jnp.ones(())})
    if dtype == "float32":
        params["scalar"] = jnp.asarray(1.0)
        assert params["scalar"].aval.weak_type
    tx = build(case)
    state = tx.init(params)
    extra = {"grad_var": params} if case.within_batch else {}
    updates, after = jax.jit(tx.update)(params, state, params, **extra)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, after)
    assert not any(x.aval.weak_type for x in jax.tree.leaves(after))
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(jax.eval_shape(tx.init, params))]
    assert shapes == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]


@by_name(ROWS)
def test_a_scan_and_a_loop_of_jitted_and_of_eager_steps_agree(case: Case):
    tx, params = build(case, 0.01), tree(0)
    gradients, sample = given(case, STEPS)
    scanned = jax.tree.map(lambda x: x[-1], walk(tx, params, gradients, sample))
    for update in (tx.update, jax.jit(tx.update)):
        ours, state = params, tx.init(params)
        for t in range(STEPS):
            now = jax.tree.map(lambda x, t=t: x[t], (gradients, sample))
            extra = {"grad_var": now[1]} if case.within_batch else {}
            updates, state = update(now[0], state, ours, **extra)
            ours = optax.apply_updates(ours, updates)
        assert_close((ours, state), scanned)


def test_a_step_compiles_once_and_donates():
    tx, count = sj.m_svag(0.1, weight_decay=0.01), []

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> Any:
        count.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = tree(0)
    expected, _ = walk(tx, params, tree(1, STEPS))
    state = tx.init(params)
    for t in range(STEPS):
        old = params["w"]
        params, state = step(params, state, jax.tree.map(lambda x, t=t: x[t], tree(1, STEPS)))
        assert old.is_deleted()
    assert len(count) == 1
    assert_close(params, jax.tree.map(lambda x: x[-1], expected))


def test_vmap_over_optimizers_and_gradients_through_steps():
    """Runs of several step sizes at once; the derivative of where a run ends by its step size."""
    gradients, params = tree(1, STEPS), tree(0)

    def end(lr: Any) -> Any:
        return walk(sj.m_svag(lr), params, gradients)[0]["w"][-1]

    together = jax.vmap(end)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(together[1], end(0.2), rtol=1e-5, atol=1e-6)
    numeric = (end(0.2).sum() - end(0.1).sum()) / 0.1  # theta is linear in lr here
    for derivative in (jax.jacfwd, jax.grad):
        slope = derivative(lambda lr: end(lr).sum())(0.1)
        np.testing.assert_allclose(slope, numeric, rtol=1e-3)


# ----------------------------------------------------------------------------------- optax


def test_a_schedule_is_followed():
    schedule = optax.exponential_decay(0.1, 2, 0.5)
    gradients, params = tree(1, STEPS), tree(0)
    ours = walk(sj.sgd(schedule), params, gradients)[0]["w"][-1]
    total = sum(schedule(t) * gradients["w"][t] for t in range(STEPS))
    np.testing.assert_allclose(ours, params["w"] - total, rtol=1e-5, atol=1e-6)
    with_warmup = sj.m_svag(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10))
    still = walk(with_warmup, params, gradients)[0]
    assert_close(jax.tree.map(lambda x: x[0], still), params)


def test_hyperparameters_are_injected_and_changed():
    """Every number of every method; a schedule for a decay; a change by hand."""
    gradients, params = tree(1, STEPS), tree(0)
    for key in METHODS:
        factory = getattr(sj, key.replace("-", "_"))
        options = {"learning_rate": 0.01, "weight_decay": 0.02}
        injected = optax.inject_hyperparams(factory)(**options)
        assert_close(
            walk(injected, params, gradients)[0], walk(factory(**options), params, gradients)[0]
        )
    scheduled = optax.inject_hyperparams(sj.m_svag)(0.1, beta=lambda count: 0.5 + 0.1 * count)
    state = scheduled.init(params)
    _, state = scheduled.update(tree(1), state, params)
    _, state = scheduled.update(tree(1), state, params)
    np.testing.assert_allclose(state.hyperparams["beta"], 0.6, rtol=1e-6)
    by_hand = optax.inject_hyperparams(sj.sgd)(learning_rate=0.1)
    state = by_hand.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.5)
    updates, _ = by_hand.update(tree(1), state, params)
    assert_close(updates, jax.tree.map(lambda g: -0.5 * g, tree(1)))


def test_weight_decay_is_masked():
    mask = {"w": True, "b": False}
    for decoupled in (False, True):
        options = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled}
        masked = walk(sj.m_svag(0.1, **options, mask=mask), tree(0), tree(1, STEPS))[0]
        whole = walk(sj.m_svag(0.1, **options), tree(0), tree(1, STEPS))[0]
        none = walk(sj.m_svag(0.1), tree(0), tree(1, STEPS))[0]
        assert_close((masked["w"], masked["b"]), (whole["w"], none["b"]))
    with pytest.raises(ValueError, match="params"):
        sj.sgd(weight_decay=0.1).update(tree(1), sj.sgd(weight_decay=0.1).init(tree(0)))


def test_a_mask_that_was_called_as_a_schedule_is_refused():
    """inject_hyperparams calls functions with the step count, unless static_args names them."""
    options = {"learning_rate": 0.1, "weight_decay": 0.1, "mask": _matrices}
    with pytest.raises(InvalidOption, match=r'mask=False.*static_args=\("mask",\)'):
        optax.inject_hyperparams(sj.m_svag)(**options).init(tree(0))
    for mask in (True, np.bool_(False), jnp.asarray(True)):
        with pytest.raises(InvalidOption, match="a tree of bools like the parameters"):
            sj.sgd(weight_decay=0.1, mask=mask)
    named = optax.inject_hyperparams(sj.m_svag, static_args=("mask",))(**options)
    plain = sj.m_svag(0.1, weight_decay=0.1, mask=_matrices)
    assert_close(*(walk(tx, tree(0), tree(1, STEPS))[0] for tx in (named, plain)))


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)


@pytest.mark.parametrize("masks_too", [False, True])
def test_within_batch_rows_among_others_take_their_part_of_the_variances(masks_too: bool):
    """multi_transform and masked, whether they mask grad_var as well or not."""
    params, gradients, sample = tree(0), tree(1, STEPS), variances(2, STEPS)
    part = optax.multi_transform(
        {"ours": WITHIN, "theirs": optax.sgd(0.1)},
        {"w": "ours", "b": "theirs"},
        mask_compatible_extra_args=masks_too,
    )
    masked = optax.masked(WITHIN, {"w": True, "b": False}, mask_compatible_extra_args=masks_too)
    alone = walk(WITHIN, params, gradients, sample)[0]["w"]
    for tx in (part, masked):
        np.testing.assert_allclose(walk(tx, params, gradients, sample)[0]["w"], alone, rtol=1e-6)
    expected = params["b"] - 0.1 * gradients["b"].sum(axis=0)
    found = walk(part, params, gradients, sample)[0]["b"][-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_accumulated_and_skipped_steps():
    params = tree(0)
    pairs = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), tree(1, STEPS))
    plain = walk(sj.m_svag(0.1), params, tree(1, STEPS))[0]
    stepped = optax.MultiSteps(sj.m_svag(0.1), every_k_schedule=2).gradient_transformation()
    assert_close(jax.tree.map(lambda x: x[1::2], walk(stepped, params, pairs)[0]), plain)
    careful = optax.apply_if_finite(WITHIN, max_consecutive_errors=3)
    state = careful.init(params)
    bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), tree(1))
    updates, after = careful.update(bad, state, params, grad_var=variances(2))
    assert_close(updates, jax.tree.map(jnp.zeros_like, params))
    assert_close(after.inner_state, state.inner_state)


def test_parts_of_a_state_are_found_by_name_and_mapped():
    tx = optax.chain(optax.clip_by_global_norm(1.0), sj.adam(amsgrad=True))
    state = tx.init(tree(0))
    for name in ("mu", "nu", "nu_max"):
        assert_close(optax.tree.get(state, name), jax.tree.map(jnp.zeros_like, tree(0)))
    assert int(optax.tree.get(state, "count")) == 0
    ones = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert_close(optax.tree.get(ones, "nu"), jax.tree.map(jnp.ones_like, tree(0)))
    assert_close(pickle.loads(pickle.dumps(state)), state)


def test_buffers_are_those_of_the_table():
    for row in METHODS.values():
        state = getattr(sj, row.key.replace("-", "_"))().init(tree(0))
        held = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 0]
        assert len(held) == len(row.anatomy.buffers) * len(tree(0)), row.key


# -------------------------------------------------------------------------------- sharding


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}], ids=str)
@by_name(ROWS)
def test_sharded_steps_are_the_unsharded(case: Case, options: dict[str, Any]):
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    if options and not case.averages:
        pytest.skip("keeps no averages")
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    tx, params = build(case, 0.01, **options), tree(0)
    sharded = jax.tree.map(lambda x: jax.device_put(x, sharding), params)
    state = tx.init(sharded)
    averages = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 0]
    assert all(leaf.sharding == sharding for leaf in averages)
    gradients, sample = given(case, STEPS)

    @jax.jit
    def step(params: Any, state: Any, grads: Any, grad_var: Any) -> Any:
        extra = {"grad_var": grad_var} if case.within_batch else {}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for t in range(STEPS):
        now = jax.tree.map(lambda x, t=t: jax.device_put(x[t], sharding), (gradients, sample))
        sharded, state = step(sharded, state, *now)
        assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
                   for leaf in jax.tree.leaves(sharded))  # fmt: skip
    assert_close(sharded, jax.tree.map(lambda x: x[-1], walk(tx, params, gradients, sample)[0]))


# ------------------------------------------------------------------------------------ flax


def test_a_flax_nnx_optimizer_and_a_linen_train_state():
    nnx = pytest.importorskip("flax.nnx", reason="needs flax")
    linen = pytest.importorskip("flax.linen")
    train_state = pytest.importorskip("flax.training.train_state")
    x, y = jnp.ones((6, 3)) * jnp.arange(6.0)[:, None], jnp.arange(6.0)[:, None]
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, sj.m_svag(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: ((m(x) - y) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.1 * losses[0]

    dense = linen.Dense(1)
    state = train_state.TrainState.create(
        apply_fn=dense.apply, params=dense.init(jax.random.key(0), x), tx=sj.m_svag(0.01)
    )

    def loss(params: Any) -> Any:
        return ((dense.apply(params, x) - y) ** 2).mean()

    first = loss(state.params)
    for _ in range(20):
        state = state.apply_gradients(grads=jax.grad(loss)(state.params))
    assert loss(state.params) < 0.1 * first


def test_within_batch_variance_in_an_nnx_optimizer_and_a_train_state():
    """The recipes of docs/jax.md: the steps are those of the bare transformation."""
    nnx = pytest.importorskip("flax.nnx", reason="needs flax")
    train_state = pytest.importorskip("flax.training.train_state")
    x, y = jnp.ones((6, 3)) * jnp.arange(6.0)[:, None], jnp.arange(6.0)[:, None]
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, WITHIN, wrt=nnx.Param)
    start = {"w": model.kernel[...], "b": model.bias[...]}

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        loss = lambda m, x, y: ((m(x) - y) ** 2).mean()  # noqa: E731
        _, grads, grad_var = sj.value_grad_and_variance(loss)(model, x, y)
        grads, grad_var = sj.clip_by_global_norm(grads, grad_var, 1.0)
        grad_var = nnx.as_pure(nnx.state(grad_var, nnx.Param))
        optimizer.update(model, grads, grad_var=grad_var)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return ((x @ params["w"] + params["b"] - y) ** 2).mean()

    @jax.jit
    def step_of_state(state: Any) -> Any:
        _, grads, grad_var = sj.value_grad_and_variance(loss)(state.params, x, y)
        grads, grad_var = sj.clip_by_global_norm(grads, grad_var, 1.0)
        updates, inner = state.tx.update(grads, state.opt_state, state.params, grad_var=grad_var)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=inner)

    state = train_state.TrainState.create(apply_fn=None, params=start, tx=WITHIN)
    for _ in range(5):
        step(model, optimizer)
        state = step_of_state(state)
    assert_close({"w": model.kernel[...], "b": model.bias[...]}, state.params)
    assert float(jnp.abs(state.params["w"] - start["w"]).max()) > 0.1


# ---------------------------------------------------------------------------------- errors


def test_what_is_refused():
    with pytest.raises(UnknownOption, match=r"beta=0\.9 has no meaning for m \* .*b1, b2, eps"):
        sj.dissected(0.1, Anatomy("momentum", False, "svag", "raw"), beta=0.9)
    with pytest.raises(UnknownOption, match=r"eps=1e-08 has no meaning for .*which takes beta"):
        sj.scale_by_anatomy(METHODS["m-svag"].anatomy, eps=1e-8)
    for make, options, words in (
        (sj.m_svag, {"b1": 0.9}, r"'b1'; it takes learning_rate, beta, .* b1 is beta here"),
        (sj.adam, {"betas": (0.9, 0.99)}, "betas is b1 and b2 here"),
        (sj.m_sgd, {"momentum": 0.9}, "momentum is beta here"),
        (sj.sgd, {"lr": 0.1}, "lr is learning_rate here"),
        (sj.ssd, {"wieght_decay": 0.1}, "Did you mean 'weight_decay'"),
    ):
        with pytest.raises(UnknownOption, match=words):
            make(**options)
    with pytest.raises(UnknownOption, match="takes none of beta"):
        sj.svag(variance="within-batch", beta=0.9)
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(InvalidOption, match=r"beta=.*a decay lies in \[0, 1\)"):
            sj.m_svag(beta=wrong)
        with pytest.raises(InvalidOption, match=r"b2=.*a decay lies in \[0, 1\)"):
            sj.adam(b2=wrong)
    for option in ("learning_rate", "weight_decay", "eps"):
        with pytest.raises(InvalidOption, match=f"{option}=-1; {option} is a number >= 0"):
            sj.adam(**{option: -1})
    with pytest.raises(InvalidOption, match="seed=-1 is not an integer"):
        sj.m_svag(seed=-1)
    with pytest.raises(TypeError, match="maximise"):
        sj.m_svag(maximise=True)


def test_a_variance_that_is_missing_or_of_another_shape():
    params = tree(0)
    state = WITHIN.init(params)
    with pytest.raises(MissingVariance, match=r"call update\(\.\.\., grad_var=grad_var\)"):
        WITHIN.update(tree(1), state, params)
    with pytest.raises(InvalidOption, match=r"grad_var has the structure .*'w'.* gradients have"):
        WITHIN.update(tree(1), state, params, grad_var={"w": params["w"]})
    with pytest.raises(InvalidOption, match="grad_var has the structure"):
        WITHIN.update(tree(1), state, params, grad_var=list(params.values()))
    with pytest.raises(InvalidOption, match=r"leaf of shape \(4,\) for a gradient of shape \(8, 4"):
        WITHIN.update(tree(1), state, params, grad_var={"w": params["b"], "b": params["b"]})
    other, _ = sj.m_svag().update(tree(1), sj.m_svag().init(params), params, grad_var=None, more=1)
    assert jax.tree.structure(other) == jax.tree.structure(params)


def test_importing_svag_jax_imports_no_torch():
    code = "import sys, svag.jax; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
