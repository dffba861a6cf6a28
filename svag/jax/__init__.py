"""The family as optax gradient transformations, from the same table and the same rule.

    import svag.jax as sj

    tx = sj.m_svag(0.1)
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)

Importing it does not import torch.
"""

from svag.errors import MissingPackage

try:
    import jax
    import optax
except ImportError as _error:
    raise MissingPackage("svag.jax needs jax and optax: pip install 'svag[jax]'") from _error

from svag.jax.examples import check_independence, clip_by_global_norm, value_grad_and_variance
from svag.jax.methods import adam, adam_star, dissected, m_sgd, m_ssd, m_svag, sgd, ssd, svag
from svag.jax.transformation import ScaleByAnatomyState, scale_by_anatomy

del jax, optax

__all__ = [
    "ScaleByAnatomyState",
    "adam",
    "adam_star",
    "check_independence",
    "clip_by_global_norm",
    "dissected",
    "m_sgd",
    "m_ssd",
    "m_svag",
    "scale_by_anatomy",
    "sgd",
    "ssd",
    "svag",
    "value_grad_and_variance",
]
