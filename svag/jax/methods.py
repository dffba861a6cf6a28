"""The named methods as optax optimizers: rows of :data:`svag.METHODS`, with ``svag``'s defaults.

g is the stochastic gradient, m and v are debiased moving averages of g and g^2 (Eqs. 4 and 5), rho
is Eq. (21) and s = (v - m^2)/(1 - rho) estimates the variance of g (Eq. 22).

All take ``weight_decay``, a coefficient lambda: it is added to the gradient as lambda * parameter,
or, with ``decoupled_weight_decay``, taken off the parameter as lr * lambda * parameter; ``mask``, a
tree of bools or a function that returns one, says which parameters decay. ``learning_rate`` may be
a schedule, ``state_dtype`` and ``seed`` are those of :func:`svag.jax.scale_by_anatomy`.
"""

from dataclasses import replace
from typing import Any, TypeAlias

import jax
import optax

from svag.anatomy import METHODS, Anatomy, Variance
from svag.jax.options import check_mask, check_not_negative, is_static, names_options
from svag.jax.pairs import warn_of_changed
from svag.jax.transformation import leaves_of_variance, scale_by_anatomy

Transformation: TypeAlias = optax.GradientTransformationExtraArgs


@names_options
def dissected(
    learning_rate: optax.ScalarOrSchedule,
    anatomy: Anatomy,
    *,
    beta: Any = None,
    b1: Any = None,
    b2: Any = None,
    eps: Any = None,
    amsgrad: bool = False,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: Any = 0,
) -> Transformation:
    """Descend along any row of the table, or a recombination.

        theta <- theta - lr * gamma * d

    Args:
        learning_rate: step size alpha, or a schedule.
        anatomy: the row.
        beta: decay of all averages, in [0, 1), default 0.9; rows that average and are not raw.
        b1: decay of m, default 0.9; raw rows.
        b2: decay of v, default 0.999; raw rows.
        eps: added to sqrt(v), default 1e-8; raw rows.
        amsgrad: use the largest v~ so far; raw rows.
        weight_decay: coefficient of the L2 term, or of the decoupled shrinkage.
        decoupled_weight_decay: AdamW's weight decay.
        mask: which parameters decay; None is all.
        state_dtype: dtype of all moving averages; None is the parameter's own.
        seed: of the noise in rounding to bfloat16.

    Raises:
        UnknownOption: (a TypeError) the row has no such option.
        InvalidOption: (a ValueError) a number is outside its range.

    Example:
        >>> import svag.jax as sj
        >>> from svag import Anatomy
        >>> tx = sj.dissected(1e-3, Anatomy("gradient", True, "erf"), beta=0.99)
    """
    check_not_negative("learning_rate", learning_rate)
    check_not_negative("weight_decay", weight_decay)
    check_mask(mask)
    rule = scale_by_anatomy(
        anatomy,
        beta=beta,
        b1=b1,
        b2=b2,
        eps=eps,
        amsgrad=amsgrad,
        state_dtype=state_dtype,
        seed=seed,
    )
    # One state whether there is decay or not, so that weight_decay can be injected.
    idle = is_static(weight_decay) and weight_decay == 0 and mask is None
    decay = optax.identity() if idle else optax.add_decayed_weights(weight_decay, mask)
    parts = (rule, decay) if decoupled_weight_decay else (decay, rule)
    chain = optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))
    return _watched(chain, anatomy) if anatomy.within_batch else chain


def _watched(chain: Transformation, anatomy: Anatomy) -> Transformation:
    """Return a transformation that also looks whether gradient and variance belong together."""

    def update(
        updates: Any, state: Any, params: Any = None, *, grad_var: Any = None, **others: Any
    ) -> Any:
        variances = leaves_of_variance(grad_var, updates, anatomy)
        warn_of_changed(jax.tree.leaves(updates), variances)
        return chain.update(updates, state, params, grad_var=grad_var, **others)

    return Transformation(chain.init, update)


@names_options
def sgd(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    *,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
) -> Transformation:
    """Stochastic gradient descent.

        theta <- theta - lr * g

    Args:
        learning_rate: step size alpha, or a schedule.
        weight_decay, decoupled_weight_decay, mask: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.sgd(0.1)
    """
    return dissected(
        learning_rate,
        METHODS["sgd"].anatomy,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
    )


@names_options
def m_sgd(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    beta: Any = 0.9,
    *,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: Any = 0,
) -> Transformation:
    """Momentum SGD in the paper's form: along the debiased average of gradients (Algorithm 2).

        theta <- theta - lr * m

    ``optax.sgd(momentum=beta)`` sums what this averages and does not debias: once the start-up has
    passed (beta^t << 1), its ``learning_rate`` is this one times (1 - beta).

    Args:
        learning_rate: step size alpha, or a schedule.
        beta: decay of the average, in [0, 1).
        weight_decay, decoupled_weight_decay, mask, state_dtype, seed: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.m_sgd(0.1, beta=0.9)
    """
    return dissected(
        learning_rate,
        METHODS["m-sgd"].anatomy,
        beta=beta,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
        state_dtype=state_dtype,
        seed=seed,
    )


@names_options
def ssd(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    *,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
) -> Transformation:
    """Stochastic sign descent (§1.2).

        theta <- theta - lr * sign(g)

    Args:
        learning_rate: step size alpha, or a schedule.
        weight_decay, decoupled_weight_decay, mask: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.ssd(1e-3)
    """
    return dissected(
        learning_rate,
        METHODS["ssd"].anatomy,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
    )


@names_options
def m_ssd(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    beta: Any = 0.9,
    *,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: Any = 0,
) -> Transformation:
    """Momentum sign descent: Adam's sign without its variance adaptation (Algorithm 2).

        theta <- theta - lr * sign(m)

    Args:
        learning_rate: step size alpha, or a schedule.
        beta: decay of the average, in [0, 1).
        weight_decay, decoupled_weight_decay, mask, state_dtype, seed: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.m_ssd(1e-3, beta=0.9)
    """
    return dissected(
        learning_rate,
        METHODS["m-ssd"].anatomy,
        beta=beta,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
        state_dtype=state_dtype,
        seed=seed,
    )


@names_options
def svag(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    beta: Any = None,
    *,
    variance: Variance = "moving-average",
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: Any = 0,
) -> Transformation:
    """Stochastic variance-adapted gradient (§3.2).

        gamma = m^2 / (m^2 + s)                                                          (23)
        theta <- theta - lr * gamma * g

    Args:
        learning_rate: step size alpha, or a schedule.
        beta: decay of both averages, in [0, 1), default 0.9; there are none within-batch.
        variance: where s comes from; within-batch, gamma = g^2 / (g^2 + s).
        weight_decay, decoupled_weight_decay, mask, state_dtype, seed: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.svag(0.1, beta=0.9)
    """
    return dissected(
        learning_rate,
        replace(METHODS["svag"].anatomy, variance=variance),
        beta=beta,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
        state_dtype=state_dtype,
        seed=seed,
    )


@names_options
def m_svag(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    beta: Any = 0.9,
    *,
    variance: Variance = "moving-average",
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: Any = 0,
) -> Transformation:
    """Momentum SVAG: Adam's variance adaptation without its sign (Algorithm 1).

        gamma = m^2 / (m^2 + rho(beta, t) s)                                             (25)
        theta <- theta - lr * gamma * m

    Args:
        learning_rate: step size alpha, or a schedule.
        beta: decay of both averages, in [0, 1).
        variance: where s comes from: ``"moving-average"``, or ``"within-batch"``, from the
            ``grad_var`` that :func:`svag.jax.value_grad_and_variance` returns. The variance of m is
            then that of a sum of independent gradients (§4.1).
        weight_decay, decoupled_weight_decay, mask, state_dtype, seed: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.m_svag(0.1, beta=0.9)
        >>> import jax, optax
        >>> params = {"w": jax.numpy.array([1.0, 2.0])}
        >>> state = tx.init(params)
        >>> grads = jax.grad(lambda p: (p["w"] ** 2).sum())(params)
        >>> updates, state = tx.update(grads, state, params)
        >>> print(optax.apply_updates(params, updates)["w"].round(3))
        [0.8 1.6]
    """
    return dissected(
        learning_rate,
        replace(METHODS["m-svag"].anatomy, variance=variance),
        beta=beta,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
        state_dtype=state_dtype,
        seed=seed,
    )


@names_options
def adam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    amsgrad: bool = False,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: Any = 0,
) -> Transformation:
    """Adam, as ``optax.adam`` has it: the sign of m and an estimate of its reliability.

        theta <- theta - lr * m / (sqrt(v) + eps)                                         (6)
               = theta - lr * (1 + (v - m^2)/m^2)^(-1/2) * sign(m)        for eps = 0     (7)

    ``decoupled_weight_decay=True`` is ``optax.adamw``. With ``amsgrad``, the largest v~ is taken
    before debiasing, as in torch; ``optax.amsgrad`` by default takes the largest debiased v.

    Args:
        learning_rate: step size alpha, or a schedule.
        b1: decay of m, in [0, 1).
        b2: decay of v, in [0, 1).
        eps: added to sqrt(v).
        amsgrad: use the largest v~ so far.
        weight_decay, decoupled_weight_decay, mask, state_dtype, seed: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.adam(1e-3, b1=0.9, b2=0.999)

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015.
    """
    return dissected(
        learning_rate,
        METHODS["adam"].anatomy,
        b1=b1,
        b2=b2,
        eps=eps,
        amsgrad=amsgrad,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
        state_dtype=state_dtype,
        seed=seed,
    )


@names_options
def adam_star(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    beta: Any = 0.9,
    *,
    variance: Variance = "moving-average",
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: Any = 0,
) -> Transformation:
    """Adam*: M-SSD with Adam's factor, the relative variance corrected to that of m (§C.2).

        gamma = (1 + rho(beta, t) s / m^2)^(-1/2)
        theta <- theta - lr * gamma * sign(m)

    Args:
        learning_rate: step size alpha, or a schedule.
        beta: decay of both averages, in [0, 1).
        variance: where s comes from.
        weight_decay, decoupled_weight_decay, mask, state_dtype, seed: see the module.

    Example:
        >>> import svag.jax as sj
        >>> tx = sj.adam_star(1e-3, beta=0.9)
    """
    return dissected(
        learning_rate,
        replace(METHODS["adam-star"].anatomy, variance=variance),
        beta=beta,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        mask=mask,
        state_dtype=state_dtype,
        seed=seed,
    )
