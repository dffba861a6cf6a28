"""Which gradient a variance was estimated with.

A transformation before svag's in a chain may change the gradient and cannot change ``grad_var``.
Arrays are immutable, so the change shows: the gradient is another object. Pairs are remembered
within one trace, or from one operation to the next outside ``jax.jit``; what comes out of a
compiled function is unknown, and nothing is said of it.
"""

import warnings
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax

_gradients: dict[int, tuple[Any, Any]] = {}  # by the variance's id: weak references to both


def remember(grads: Any, grad_var: Any) -> None:
    """Note that each leaf of ``grad_var`` is the variance of its leaf of ``grads``."""
    for grad, variance in zip(jax.tree.leaves(grads), jax.tree.leaves(grad_var), strict=True):
        key = id(variance)
        of_variance = weakref.ref(variance, partial(_forget, key))
        _gradients[key] = of_variance, weakref.ref(grad)


def _forget(key: int, gone: Any) -> None:
    if _gradients.get(key, (None,))[0] is gone:
        del _gradients[key]


def warn_of_changed(grads: Iterable[Any], variances: Iterable[Any]) -> None:
    """Warn if a variance was estimated with another gradient than the one beside it."""
    for grad, variance in zip(grads, variances, strict=True):
        of_variance, of_grad = _gradients.get(id(variance), (lambda: None, lambda: None))
        if of_variance() is variance and of_grad() is not grad:
            warnings.warn(
                "the gradient was changed after grad_var was estimated, by a transformation before "
                "this one in a chain, by optax.MultiSteps or by hand, and grad_var was not: clip "
                "by svag.jax.clip_by_global_norm before update, decay by weight_decay=, accumulate "
                "by micro_batch=, and multiply grad_var by the square of any other factor",
                UserWarning,
                stacklevel=2,
            )
            return
