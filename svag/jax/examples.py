"""The gradient of a mini-batch and its variance, from the gradients of its examples.

    grad = 1/N sum_k g_k,    grad_var = 1/(N (N - 1)) sum_k (g_k - grad)^2

g_k is the gradient of example k. ``grad_var`` is the unbiased estimate of the variance of ``grad``
itself, not of one example's gradient, as in :mod:`svag.variance`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from svag.errors import InvalidOption, PerExampleError, TooFewSamples
from svag.jax.pairs import remember

Tree = Any


class _Moments(NamedTuple):
    """Mean of some examples' gradients, and the sum of squared deviations from it."""

    count: Any
    mean: Tree
    spread: Tree


def value_grad_and_variance(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    *,
    has_aux: bool = False,
    shared_argnums: Sequence[int] = (),
    keep_batch_axis: bool = True,
    micro_batch: int | None = None,
    axis_name: str | None = None,
) -> Callable[..., tuple[Any, Tree, Tree]]:
    """Return a function of the loss, its gradient and the gradient's within-batch variance.

        grad_var = 1/(N (N - 1)) sum_k (g_k - grad)^2

    It replaces ``jax.value_and_grad(fun)`` for a loss that is the mean over the examples
    along axis 0: ``fun`` is called, under ``jax.vmap``, with mini-batches of one example each. A
    loss that is no such mean (batch normalisation, a sum, a mean over tokens that are not padding)
    has no per-example gradients of this kind: :func:`check_independence` says so.

    Args:
        fun: the loss, a real scalar.
        argnums: positions of the arguments to differentiate by, as in ``jax.value_and_grad``.
        has_aux: ``fun`` returns (loss, aux).
        shared_argnums: positions of arguments that are the same for all examples. All other
            positional arguments are trees of arrays with the examples along axis 0; split a PRNG
            key for each example. Keyword arguments are shared.
        keep_batch_axis: an example is given with a batch axis of length 1; False: without, for a
            ``fun`` that is the loss of one example.
        micro_batch: largest number of examples whose gradients are in memory together; None is all.
        axis_name: axis of ``jax.shard_map`` or ``jax.pmap`` over which the mini-batch is divided.
            Under ``jax.jit`` with sharded arguments none is needed.

    Returns:
        A function of the arguments of ``fun``, which returns the mean loss (with ``has_aux`` the
        pair of it and aux, stacked along axis 0), the mean gradient in the dtype of the parameters
        and its variance in at least float32; of a complex gradient, the variances of the real and
        the imaginary part.

    Raises:
        InvalidOption: (a ValueError) when called: arguments disagree about the number of examples,
            or ``micro_batch`` is not a positive integer.
        TooFewSamples: (a RuntimeError) when called: there is one example.

    Example:
        >>> def loss(params, x, y):
        ...     return ((x @ params - y) ** 2).mean()
        >>> params, x, y = jnp.zeros(1), jnp.array([[1.0], [1.0]]), jnp.array([1.0, 3.0])
        >>> value, grads, grad_var = value_grad_and_variance(loss)(params, x, y)
        >>> print(value, grads, grad_var)
        5.0 [-4.] [4.]
    """
    if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
        raise InvalidOption(
            f"micro_batch={micro_batch!r}; it is a number of examples >= 1, or None"
        )
    differentiated = {argnums} if isinstance(argnums, int) else set(argnums)
    fixed = differentiated | set(shared_argnums)

    def estimate(*args: Any, **kwargs: Any) -> tuple[Any, Tree, Tree]:
        batch, count = _batch_of(args, fixed)
        shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        if count * shards < 2:
            raise TooFewSamples(
                f"a variance needs at least 2 examples and the mini-batch has {count}; give more, "
                "or use variance='moving-average'"
            )

        given = list(args)
        if axis_name is not None:
            for i in differentiated:
                given[i] = jax.tree.map(partial(_varying, axis_name=axis_name), given[i])

        def of_one(example: Tree) -> tuple[Any, Tree]:
            if keep_batch_axis:
                example = jax.tree.map(lambda x: x[None], example)
            merged = [example.get(i, arg) for i, arg in enumerate(given)]
            found: tuple[Any, Tree] = jax.value_and_grad(fun, argnums, has_aux)(*merged, **kwargs)
            return found

        size = min(micro_batch or count, count)
        values, moments = _in_micro_batches(of_one, batch, count, size, axis_name)
        values, aux = values if has_aux else (values, None)
        value = values.mean()
        if axis_name is not None:
            value, moments = jax.lax.pmean(value, axis_name), _over_axis(moments, axis_name, shards)
        number = count * shards
        grads = jax.tree.map(_narrowed, moments.mean, _picked(args, argnums))
        grad_var = jax.tree.map(
            lambda s, g: _as_stored(s / (number * (number - 1)), g), moments.spread, grads
        )
        remember(grads, grad_var)
        return ((value, aux) if has_aux else value), grads, grad_var

    return estimate


def check_independence(
    fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    shared_argnums: Sequence[int] = (),
    rtol: float = 1e-3,
    **kwargs: Any,
) -> None:
    """Raise if the loss of a mini-batch, or its gradient, is not the mean over the examples.

    Run it once, outside ``jax.jit``, before :func:`value_grad_and_variance` is relied on.

    Args:
        fun: the loss.
        args: its arguments.
        argnums: as in :func:`value_grad_and_variance`.
        has_aux: likewise.
        shared_argnums: likewise.
        rtol: largest difference of the gradients, over the root mean square of |g_k|.
        kwargs: keyword arguments of ``fun``.

    Raises:
        PerExampleError: (a RuntimeError) they differ.
        InvalidOption: (a ValueError) it is called inside ``jax.jit``, where there are no numbers.

    Example:
        >>> def loss(params, x):
        ...     return ((params * (x - x.mean())) ** 2).mean()
        >>> try:
        ...     check_independence(loss, jnp.ones(()), jnp.array([1.0, 3.0]))
        ... except RuntimeError as error:
        ...     print(str(error)[:79])
        the loss of the mini-batch is 1 and the mean over its examples is 0; the gradie
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
        raise InvalidOption(
            "check_independence compares numbers, which a traced function has not: call it once, "
            "outside jax.jit, with the arguments of a step"
        )
    options: Any = {"has_aux": has_aux, "shared_argnums": shared_argnums}
    value, grads, grad_var = value_grad_and_variance(fun, argnums, **options)(*args, **kwargs)
    whole, expected = jax.value_and_grad(fun, argnums, has_aux)(*args, **kwargs)
    value, whole = (value[0], whole[0]) if has_aux else (value, whole)
    differentiated = {argnums} if isinstance(argnums, int) else set(argnums)
    count = _batch_of(args, differentiated | set(shared_argnums))[1]
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b), grads, expected)
    of_noise = count * sum(jnp.abs(v).sum() for v in jax.tree.leaves(grad_var))
    size = float(jnp.sqrt(optax.tree.norm(grads, squared=True) + of_noise))
    distance, value, whole = float(optax.tree.norm(apart)), float(value), float(whole)
    if distance > rtol * size or abs(value - whole) > rtol * max(abs(value), abs(whole)):
        raise PerExampleError(
            f"the loss of the mini-batch is {whole:.6g} and the mean over its examples is "
            f"{value:.6g}; the gradients differ by {distance:.3g}. The loss has to be a mean over "
            "examples that do not see each other: no batch normalisation in training mode, no sum, "
            "no weights that depend on the mini-batch"
        )


def clip_by_global_norm(grads: Tree, grad_var: Tree, max_norm: Any) -> tuple[Tree, Tree]:
    """Clip the norm of all gradients together and scale their variances with them.

        c = min(1, max_norm / |g|);    grads <- c grads;    grad_var <- c^2 grad_var

    Call this before ``update``: ``optax.clip_by_global_norm`` in a chain leaves ``grad_var`` as it
    is.

    Args:
        grads: a tree.
        grad_var: a tree like it.
        max_norm: largest norm.

    Example:
        >>> grads, grad_var = clip_by_global_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 1.0]), 2.5)
        >>> print(grads, grad_var)
        [1.5 2. ] [0.25 0.25]
    """
    norm = optax.tree.norm(grads)
    factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    clipped = (
        jax.tree.map(lambda g: (factor * g).astype(g.dtype), grads),
        jax.tree.map(lambda v: (factor * factor * v).astype(v.dtype), grad_var),
    )
    remember(*clipped)
    return clipped


def _batch_of(args: Sequence[Any], fixed: set[int]) -> tuple[dict[int, Any], int]:
    """Return the arguments that hold examples, by position, and the number of examples."""
    batch = {i: arg for i, arg in enumerate(args) if i not in fixed}
    sizes: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = f"argument {path[0].key}{jax.tree_util.keystr(path[1:])}"
        if jnp.ndim(leaf) == 0:
            raise InvalidOption(
                f"{name} has no axis, so no examples; name its position in shared_argnums, or give "
                "it by keyword"
            )
        sizes.setdefault(jnp.shape(leaf)[0], name)
    if len(sizes) != 1:
        found = ", ".join(f"{name} has {size}" for size, name in sizes.items()) or "there is none"
        raise InvalidOption(
            f"the arguments must hold the same number of examples along axis 0: {found}; name the "
            "positions of those without examples in shared_argnums, or give them by keyword"
        )
    return batch, next(iter(sizes))


def _in_micro_batches(
    of_one: Callable[[Tree], tuple[Any, Tree]],
    batch: Tree,
    count: int,
    size: int,
    axis_name: str | None,
) -> tuple[Any, _Moments]:
    """Return what the examples returned, stacked, and the moments of their gradients.

    Chunks of ``size`` examples are merged in a scan, then what is left over.
    """
    chunks = count // size
    if chunks == 1:
        values, moments = _of_chunk(of_one, jax.tree.map(lambda x: x[:size], batch))
    else:
        cut = jax.tree.map(lambda x: x[: chunks * size].reshape(chunks, size, *x.shape[1:]), batch)

        def one_chunk(moments: _Moments, chunk: Tree) -> tuple[_Moments, Any]:
            values, further = _of_chunk(of_one, chunk)
            return _merged(moments, further), values

        _, like = jax.eval_shape(lambda b: _of_chunk(of_one, b), jax.tree.map(lambda x: x[0], cut))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        if axis_name is not None:
            nothing = jax.tree.map(partial(_varying, axis_name=axis_name), nothing)
        moments, values = jax.lax.scan(one_chunk, nothing, cut)
        values = jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:]), values)
    if chunks * size < count:
        rest, further = _of_chunk(of_one, jax.tree.map(lambda x: x[chunks * size :], batch))
        values = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), values, rest)
        moments = _merged(moments, further)
    return values, moments


def _of_chunk(of_one: Callable[[Tree], tuple[Any, Tree]], chunk: Tree) -> tuple[Any, _Moments]:
    """Return what the examples of a chunk returned, and the moments of their gradients."""
    values, grads = jax.vmap(of_one)(chunk)
    size = jax.tree.leaves(chunk)[0].shape[0]
    wide = jax.tree.map(_widened, grads)
    mean = jax.tree.map(lambda g: _total(lambda row: row, g) / size, wide)
    spread = jax.tree.map(lambda g, m: _total(lambda row, m: (row - m) ** 2, g, m), wide, mean)
    return values, _Moments(jnp.asarray(size, float), mean, spread)


def _total(of: Callable[..., Any], rows: Any, *others: Any) -> Any:
    """Return the sum of a function of each row.

    On a CPU in a loop, since XLA's sums over the first axis take up to a hundred times as long
    there; rows that are divided over devices by explicit sharding cannot be taken one by one.
    """

    def in_turn(rows: Any, *others: Any) -> Any:
        first = of(rows[0], *others)
        return jax.lax.fori_loop(1, len(rows), lambda i, sum_: sum_ + of(rows[i], *others), first)

    def at_once(rows: Any, *others: Any) -> Any:
        return jax.vmap(lambda row: of(row, *others))(rows).sum(axis=0)

    if any((*jax.typeof(rows).sharding.spec, None)[:1]):
        return at_once(rows, *others)
    return jax.lax.platform_dependent(rows, *others, cpu=in_turn, default=at_once)


def _merged(a: _Moments, b: _Moments) -> _Moments:
    """Return the moments of two groups of examples together (Chan, Golub and LeVeque)."""
    count = a.count + b.count
    share = b.count / count
    between = jax.tree.map(lambda x, y: y - x, a.mean, b.mean)
    return _Moments(
        count,
        jax.tree.map(lambda x, d: x + (share * d).astype(x.dtype), a.mean, between),
        jax.tree.map(
            lambda s, t, d: s + t + (a.count * share).astype(d.dtype) * d**2,
            a.spread,
            b.spread,
            between,
        ),
    )


def _varying(param: Any, axis_name: str) -> Any:
    """Mark a parameter as varying along the axis.

    ``jax.shard_map`` sums gradients over all devices if the parameter does not vary along the axis.
    """
    return param + (0 * jax.lax.axis_index(axis_name)).astype(jnp.result_type(param))


def _over_axis(moments: _Moments, axis_name: str, shards: int) -> _Moments:
    """Return the moments of the examples of all shards, which have the same number each."""
    mean = jax.lax.pmean(moments.mean, axis_name)
    spread = jax.tree.map(
        lambda s, m, all_: s + moments.count.astype(s.dtype) * (m - all_) ** 2,
        moments.spread,
        moments.mean,
        mean,
    )
    return _Moments(moments.count * shards, mean, jax.lax.psum(spread, axis_name))


def _widened(gradients: Any) -> Any:
    """Return gradients in at least float32; complex ones as pairs of reals along the last axis."""
    if jnp.iscomplexobj(gradients):
        gradients = jnp.stack([gradients.real, gradients.imag], axis=-1)
    return gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32))


def _as_stored(reals: Any, like: Any) -> Any:
    """Return pairs of reals as complex numbers where the parameter has such."""
    return jax.lax.complex(reals[..., 0], reals[..., 1]) if jnp.iscomplexobj(like) else reals


def _narrowed(mean: Any, param: Any) -> Any:
    return _as_stored(mean, param).astype(jnp.result_type(param))


def _picked(args: Sequence[Any], argnums: int | Sequence[int]) -> Any:
    if isinstance(argnums, int):
        return args[argnums]
    return tuple(args[i] for i in argnums)
