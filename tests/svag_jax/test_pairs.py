"""A gradient that was changed after its variance was estimated is warned of, others are not."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

import jax
import jax.numpy as jnp
import optax

import svag.jax as sj
from svag.jax import pairs

X, Y = jnp.arange(12.0).reshape(6, 2) / 6, jnp.arange(6.0)
PARAMS = {"w": jnp.zeros(2), "b": jnp.zeros(())}
WITHIN = sj.m_svag(0.1, variance="within-batch")
DECAYED = sj.m_svag(0.1, variance="within-batch", weight_decay=0.1)


def loss(params: Any, x: Any, y: Any) -> Any:
    return ((x @ params["w"] + params["b"] - y) ** 2).mean()


ESTIMATE = sj.value_grad_and_variance(loss)
CHANGED: dict[str, Callable[[], Any]] = {
    "clipped in the chain": lambda: optax.chain(optax.clip_by_global_norm(0.1), WITHIN),
    "scaled in the chain": lambda: optax.chain(optax.scale(-1.0), WITHIN),
    "MultiSteps": lambda: optax.MultiSteps(WITHIN, 2),
}
UNCHANGED: dict[str, Callable[[], Any]] = {
    "plain": lambda: WITHIN,
    "decay of its own": lambda: DECAYED,
    "masked": lambda: optax.masked(WITHIN, {"w": True, "b": False}),
    "injected": lambda: optax.inject_hyperparams(sj.m_svag)(0.1, variance="within-batch"),
    "skipped if not finite": lambda: optax.apply_if_finite(WITHIN, 3),
    "scaled behind it": lambda: optax.chain(WITHIN, optax.scale(0.5)),
}


def steps(tx: Any, change: Callable[[Any, Any], Any], *, compiled: bool) -> None:
    def step(params: Any, state: Any) -> Any:
        _, *estimated = ESTIMATE(params, X, Y)
        grads, grad_var = change(*estimated)
        updates, state = tx.update(grads, state, params, grad_var=grad_var)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step) if compiled else step
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        params, state = run(params, state)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_change_in_a_chain_is_warned_of(name: str, compiled: bool) -> None:
    with pytest.warns(UserWarning, match=r"gradient was changed after.*clip_by_global_norm before"):
        steps(CHANGED[name](), lambda g, v: (g, v), compiled=compiled)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", UNCHANGED)
def test_what_leaves_the_pair_together_is_not_warned_of(name: str, compiled: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx = UNCHANGED[name]()
        steps(tx, lambda g, v: (g, v), compiled=compiled)
        steps(tx, lambda g, v: sj.clip_by_global_norm(g, v, 0.1), compiled=compiled)
        half = lambda g, v: (optax.tree.scale(0.5, g), optax.tree.scale(0.25, v))  # noqa: E731
        steps(tx, half, compiled=compiled)


def test_a_change_by_hand_is_warned_of_and_a_step_that_is_compiled_alone_is_not() -> None:
    with pytest.warns(UserWarning, match="gradient was changed after"):
        steps(WITHIN, lambda g, v: (optax.tree.scale(0.5, g), v), compiled=True)
    _, grads, grad_var = ESTIMATE(PARAMS, X, Y)
    update = jax.jit(lambda g, v: WITHIN.update(g, WITHIN.init(PARAMS), PARAMS, grad_var=v))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(optax.tree.scale(0.5, grads), grad_var)


def test_nothing_is_kept_of_variances_that_are_gone() -> None:
    before = len(pairs._gradients)
    steps(WITHIN, lambda g, v: sj.clip_by_global_norm(g, v, 1.0), compiled=False)
    steps(WITHIN, lambda g, v: (g, v), compiled=True)
    assert len(pairs._gradients) == before
