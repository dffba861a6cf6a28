"""Steps with svag.jax along given gradients, for cases of the torch optimizers' table."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray
from optim.cases import Case

import svag.jax as sj


@contextlib.contextmanager
def precision(dtype: Any) -> Iterator[None]:
    """Float64 where it is asked for, and nowhere else."""
    enable = getattr(jax, "enable_x64", None)
    if enable is None:  # JAX before 0.8
        from jax.experimental import enable_x64 as enable
    with enable(jnp.dtype(dtype).itemsize == 8 and jnp.dtype(dtype) != jnp.complex64):
        yield


def build(case: Case, lr: Any = None, **options: Any) -> optax.GradientTransformationExtraArgs:
    """The transformation of a case; ``betas`` and ``maximize`` are those of the torch classes."""
    if "betas" in options:
        options["b1"], options["b2"] = options.pop("betas")
    if case.amsgrad:
        options["amsgrad"] = True
    if options.pop("maximize", False):
        return optax.chain(optax.scale(-1.0), build(case, lr, **options))
    if case.kind is None:
        return sj.dissected(lr, case.anatomy, **options)
    if case.within_batch:
        options["variance"] = "within-batch"
    factory: Callable[..., Any] = getattr(sj, case.name.removesuffix("-amsgrad").replace("-", "_"))
    return factory(**({} if lr is None else {"learning_rate": lr}), **options)


def walk(tx: Any, params: Any, gradients: Any, variances: Any = None, **extra: Any) -> Any:
    """Params and state after each step, stacked, from one scan."""

    def step(carry: Any, given: Any) -> Any:
        params, state = carry
        grads, grad_var = given
        if grad_var is not None:
            extra["grad_var"] = grad_var
        updates, state = tx.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    return jax.lax.scan(step, (params, tx.init(params)), (gradients, variances))[1]


def path(
    case: Case, gradients: Any, start: Any = None, variances: Any = None, **options: Any
) -> NDArray[np.float64]:
    """Theta after each step in float64, from zero unless told otherwise.

    Numbers that are arrays are traced, so that one compiled walk serves all of them.
    """
    start = np.zeros_like(gradients[0]) if start is None else start
    traced = {k: v for k, v in options.items() if isinstance(v, np.ndarray | np.generic)}
    static = {k: v for k, v in options.items() if k not in traced}

    @jax.jit
    def run(numbers: Any, *arrays: Any) -> Any:
        return walk(build(case, **static, **numbers), *arrays)[0]

    thetas = run(traced, jnp.asarray(start), jnp.asarray(gradients), variances)
    return np.asarray(thetas.astype(jnp.promote_types(thetas.dtype, jnp.float32)), np.float64)
