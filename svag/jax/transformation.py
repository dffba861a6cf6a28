"""Any row of the table as an optax gradient transformation: :func:`scale_by_anatomy`.

The arithmetic of an element is :func:`svag.optim.rule.element_of`, called with a parameter of 0 and
a step size of -1, so that what it returns is gamma times the direction.
"""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax

from svag.anatomy import Anatomy
from svag.errors import InvalidOption, MissingVariance
from svag.jax import rounding
from svag.jax.arithmetic import on_arrays
from svag.jax.options import averaging, check_seed, check_state_dtype, dtype_of_averages
from svag.optim.rule import Settings, Switches, element_of, numbers_of

Tree = Any

_FIELDS: Final = {
    "exp_avg": "mu",
    "exp_avg_sq": "nu",
    "max_exp_avg_sq": "nu_max",
    "exp_avg_var": "mu_var",
}


class ScaleByAnatomyState(NamedTuple):
    """The moving averages of a row, before debiasing; None where it has none.

    Attributes:
        count: number of steps taken, an int32 that stays at its maximum.
        mu: of gradients.
        nu: of squared gradients.
        nu_max: the largest ``nu`` so far, element by element (``amsgrad``).
        mu_var: variance of ``mu``, from variances within mini-batches.

    Example:
        >>> import jax.numpy as jnp
        >>> import svag.jax as sj
        >>> from svag import METHODS
        >>> state = sj.scale_by_anatomy(METHODS["m-ssd"].anatomy).init(jnp.ones(2))
        >>> int(state.count), state.mu.shape, state.nu is None
        (0, (2,), True)
    """

    count: Any
    mu: Tree = None
    nu: Tree = None
    nu_max: Tree = None
    mu_var: Tree = None


class _Row(NamedTuple):
    """What the update of every leaf has in common."""

    switches: Switches
    settings: Settings
    dithers: bool


def scale_by_anatomy(
    anatomy: Anatomy,
    *,
    beta: Any = None,
    b1: Any = None,
    b2: Any = None,
    eps: Any = None,
    amsgrad: bool = False,
    state_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace gradients by gamma times the direction of a row.

        update = gamma * d,    d in {g, m, sign(g), sign(m)}

    Chain ``optax.scale_by_learning_rate`` behind it to descend. Numbers may be traced, as under
    ``optax.inject_hyperparams``. Half-precision gradients are computed with in float32; updates
    have the gradient's dtype. Complex numbers are pairs of reals.

    Args:
        anatomy: the row.
        beta: decay of all averages, in [0, 1), default 0.9; rows that average and are not raw.
        b1: decay of m, in [0, 1), default 0.9; raw rows.
        b2: decay of v, in [0, 1), default 0.999; raw rows.
        eps: added to sqrt(v), default 1e-8; raw rows.
        amsgrad: use the largest v~ so far; raw rows.
        state_dtype: dtype of all moving averages, ``"bfloat16"`` or ``"float32"``; None is the
            parameter's own. Averages kept in bfloat16 by this option are rounded stochastically,
            so that small increments count on average.
        seed: of the noise in that rounding, which depends on it, the step, the place of the leaf
            and the element alone.

    Returns:
        A transformation; ``update`` takes ``grad_var=`` if ``anatomy.within_batch``: a tree like
        the gradients', of the variances of the mean gradient. Where gradients are masked
        (``optax.masked``, ``optax.multi_transform``), it may be masked or whole.

    Raises:
        UnknownOption: (a TypeError) the row has no such option.
        InvalidOption: (a ValueError) an option is outside its range; at ``init`` and ``update``, a
            dtype or a shape does not fit.
        MissingVariance: (a RuntimeError) at ``update``, ``grad_var`` is missing.

    Example:
        >>> import optax
        >>> import svag.jax as sj
        >>> from svag import Anatomy
        >>> tx = optax.chain(
        ...     sj.scale_by_anatomy(Anatomy("momentum", True, "erf"), beta=0.9),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
        >>> params = {"w": jnp.ones(2)}
        >>> updates, state = tx.update({"w": jnp.array([0.5, -2.0])}, tx.init(params), params)
        >>> updates["w"]
        Array([-0.001,  0.001], dtype=float32)
    """
    first, second, offset = averaging(anatomy, beta=beta, b1=b1, b2=b2, eps=eps, amsgrad=amsgrad)
    dtype_of_state = check_state_dtype(state_dtype)
    check_seed(seed)
    switches = Switches.of(anatomy, amsgrad=amsgrad, decays=False, alters=False)
    settings = Settings(-1.0, first, second, offset, 0.0, 0.0, 1.0, seed)
    row = _Row(switches, settings, dtype_of_state == jnp.bfloat16)
    names = [_FIELDS[name] for name in (*anatomy.buffers, *("max_exp_avg_sq",) * amsgrad)]

    def zero(param: Any) -> Any:
        dtype = dtype_of_averages(dtype_of_state, jnp.result_type(param))
        return jnp.zeros_like(param, dtype=dtype)

    def init(params: Tree) -> Any:
        if not names:
            return optax.EmptyState()
        averages = {name: jax.tree.map(zero, params) for name in names}
        return ScaleByAnatomyState(jnp.zeros([], jnp.int32), **averages)

    def update(
        updates: Tree, state: Any, params: Tree = None, *, grad_var: Tree = None, **others: Any
    ) -> tuple[Tree, Any]:
        del params, others
        leaves, treedef = jax.tree.flatten(updates)
        kept = {name: treedef.flatten_up_to(getattr(state, name)) for name in names}
        if anatomy.within_batch:
            kept["sample"] = leaves_of_variance(grad_var, updates, anatomy)
        step = optax.safe_increment(state.count) if names else jnp.ones([], jnp.int32)
        rows = [{name: column[i] for name, column in kept.items()} for i in range(len(leaves))]
        results = [
            _leaf(row, place, grad, of_leaf, step)
            for place, (grad, of_leaf) in enumerate(zip(leaves, rows, strict=True))
        ]
        moved = treedef.unflatten([moved for moved, _ in results])
        if not names:
            return moved, state
        averages = {n: treedef.unflatten([after[n] for _, after in results]) for n in names}
        return moved, ScaleByAnatomyState(step, **averages)

    return optax.GradientTransformationExtraArgs(init, update)


def _leaf(row: _Row, place: int, grad: Any, kept: dict[str, Any], step: Any) -> tuple[Any, Any]:
    """Return gamma times the direction, and the averages after the step, in their own dtypes."""
    grad = jnp.asarray(grad)
    given = {name: _reals(value) for name, value in {**kept, "grad": grad}.items()}
    dtype = jnp.float32
    for value in given.values():
        dtype = jnp.promote_types(dtype, value.dtype)
    wide = {name: value.astype(dtype) for name, value in given.items()}
    moved, *averages = _element(row, dtype, wide, step)
    after = dict(zip(("mu", "nu", "nu_max", "mu_var"), averages, strict=True))
    noise = rounding.noise(row.settings.seed, place, step, grad.shape) if row.dithers else {}
    results = {}
    for name, stored in kept.items():
        if name == "sample":
            continue
        value = _like(after[name], stored)
        if row.dithers and stored.dtype == jnp.bfloat16:
            results[name] = rounding.to_bfloat16(value, noise[name])
        else:
            results[name] = value.astype(stored.dtype)
    return _like(moved, grad).astype(grad.dtype), results


def _element(row: _Row, dtype: Any, wide: dict[str, Any], step: Any) -> tuple[Any, ...]:
    """Call the rule with a parameter of 0; averages that the row does not have are None."""
    ops = on_arrays(dtype)
    settings = [x if isinstance(x, float) else jnp.asarray(x, dtype) for x in row.settings[:-1]]
    numbers = numbers_of(row.switches, ops)(*settings, step.astype(dtype))
    averages = [wide.get(name) for name in ("mu", "nu", "nu_max", "mu_var", "sample")]
    return element_of(row.switches, ops)(0.0, wide["grad"], *averages, numbers)


def _reals(value: Any) -> Any:
    """Return a complex array as two rows of reals, a real one as it is."""
    value = jnp.asarray(value)
    return jnp.stack([value.real, value.imag]) if jnp.iscomplexobj(value) else value


def _like(value: Any, stored: Any) -> Any:
    return jax.lax.complex(value[0], value[1]) if jnp.iscomplexobj(stored) else value


def leaves_of_variance(grad_var: Tree, updates: Tree, anatomy: Anatomy) -> list[Any]:
    """Return the leaves of ``grad_var`` that belong to gradients that are not masked.

    Raises:
        MissingVariance: (a RuntimeError) there is none.
        InvalidOption: (a ValueError) the structure or a shape is not the gradients'.
    """
    if grad_var is None:
        raise MissingVariance(
            f"the update {anatomy} takes the gradient's variance within the mini-batch: call "
            "update(..., grad_var=grad_var) with what svag.jax.value_grad_and_variance returns, or "
            "use variance='moving-average'"
        )
    leaves, treedef = jax.tree.flatten(updates)
    try:
        whole = jax.tree.map(
            lambda g, v: g if _is_masked(g) else v, updates, grad_var, is_leaf=_is_masked
        )
        found: list[Any] = treedef.flatten_up_to(whole)
        shapes = [(jnp.shape(g), jnp.shape(v)) for g, v in zip(leaves, found, strict=True)]
    except (TypeError, ValueError) as error:
        raise InvalidOption(
            f"grad_var has the structure {jax.tree.structure(grad_var)}, and the gradients have "
            f"{treedef}; give the variances as a tree like the gradients'"
        ) from error
    for of_gradient, of_variance in shapes:
        if of_gradient != of_variance:
            raise InvalidOption(
                f"grad_var has a leaf of shape {of_variance} for a gradient of shape "
                f"{of_gradient}; give one variance for each element of the gradient"
            )
    return found


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
