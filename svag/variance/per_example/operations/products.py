"""Rules for products of a parameter with the mini-batch, by einsum instead of vmap."""

import string
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from svag.variance.per_example.contributions.base import (
    Contributions,
    Einsums,
    PlacedRows,
    Products,
)
from svag.variance.per_example.operations.layers import conjugate, features_last, positions
from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.placement import CONSTANT, Layout, Placed
from svag.variance.per_example.owners.products import letters, matrix_letters
from svag.variance.per_example.recording.functions import Call
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.recording.taps import Factory


def product(mode: Interception, func: Call, args: Sequence[Any], name: str) -> Tensor | None:
    """Run a product with a tap whose contributions are an einsum of gradient and other factors.

    Args:
        mode: the open context's interception.
        func: the product, such as ``torch.matmul``.
        args: its arguments.
        name: its name.

    Returns:
        The product; None if it is not one parameter times tensors of the mini-batch.
    """
    found = _terms(name, args)
    if found is None:
        return None
    given, terms, result = found
    followed = [n for n, t in enumerate(given) if mode.recorder.source_of(t) is not None]
    batch = [n for n, t in enumerate(given) if state_of(t) is not CONSTANT]
    if len(followed) != 1 or set(followed) & set(batch):
        return None
    mine = followed[0]
    if any(t.is_complex() for t in given) and not given[mine].is_complex():
        return None  # the gradient is the real part
    if name in ("matmul", "mm") and mine == 1 and given[1].dim() == 2:
        return _times_matrix(mode, func, *given)
    marks, others = [mode.where_of(given[n], func) for n in batch], [terms[n] for n in batch]
    letter = _letter_of_examples(others, marks)
    if letter is None or letter not in result or len(given) - 1 != len(batch):
        return None
    if not _plain_sizes(given, terms):
        return None
    if not set(terms[mine]) <= {*result, *"".join(others)}:
        return None  # the parameter is summed over a dimension of its own
    layouts = cast(list[Layout], marks)
    out, where = func(*args), layouts[0].at(result.index(letter))
    if letter in terms[mine]:
        rows = where.at(terms[mine].index(letter))
        make = _placed([result, *others], terms[mine], rows)
    else:
        every = [where, *layouts]
        make = _contracted([result, *others], terms[mine], letter, every, given[mine].shape)
    data, uses = [given[n] for n in batch], [(given[mine], make)]
    return mode.tap(out, data, uses, where, observe=True)


def _letter_of_examples(terms: Sequence[str], marks: Sequence[Placed]) -> str | None:
    """Return the letter along which all factors have the same rows; None if there is none."""
    if not all(isinstance(where, Layout) for where in marks):
        return None
    rows = {(t[w.dim], cast(Layout, w).at(0)) for t, w in zip(terms, marks, strict=True)}
    return rows.pop()[0] if len(rows) == 1 else None


def _placed(terms: Sequence[str], mine: str, where: Layout) -> Factory:
    """Return the factory for a parameter that has its own rows for each example."""
    equation = _latin(f"{','.join(terms)}->{mine}")

    def placed(delta: Tensor, *data: Tensor) -> Contributions:
        return PlacedRows(torch.einsum(equation, delta, *map(conjugate, data)), where)

    return placed


def _contracted(
    terms: Sequence[str], mine: str, letter: str, layouts: Sequence[Layout], shape: torch.Size
) -> Factory:
    """Return the factory for a parameter that all examples share; ``letter`` is theirs."""
    example, row = "\u2460", "\u2461"
    split = [example + row + term.replace(letter, "") for term in terms]
    equation = _latin(f"{','.join(split)}->{example}{mine}")

    def contracted(delta: Tensor, *data: Tensor) -> Contributions:
        every = delta, *map(conjugate, data)
        rows = [w.examples_first(t) for w, t in zip(layouts, every, strict=True)]
        return Einsums(equation, rows, shape)

    return contracted


def _terms(name: str, args: Sequence[Any]) -> tuple[list[Tensor], list[str], str] | None:
    """Return the factors of a product, and the letters of their dimensions and the result's."""
    if name == "einsum":
        if not isinstance(args[0], str):
            return None
        given = list(args[1]) if isinstance(args[1], list | tuple) else list(args[1:])
        return given, *letters(args[0], [t.dim() for t in given])
    if name == "bilinear":
        lead = "".join(chr(0x3C3 + n) for n in range(args[0].dim() - 1))
        return list(args[:3]), [lead + "i", lead + "j", "oij"], lead + "o"
    given = list(args[:2])
    return given, *matrix_letters(given[0].dim(), given[1].dim())


def _plain_sizes(given: Sequence[Tensor], terms: Sequence[str]) -> bool:
    """Whether every letter has one size and is once in a term, so that nothing is broadcast."""
    sizes: dict[str, int] = {}
    for tensor, term in zip(given, terms, strict=True):
        if len(set(term)) != len(term):
            return False
        for letter, size in zip(term, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return False
    return True


def _latin(equation: str) -> str:
    """Rename letters to those that einsum takes."""
    used = sorted({c for c in equation if c not in ",->"})
    table = dict(zip(used, string.ascii_letters, strict=False))
    return "".join(table.get(c, c) for c in equation)


def _times_matrix(mode: Interception, func: Call, left: Tensor, right: Tensor) -> Tensor:
    """Run X @ W as a dense layer with the weight W^T."""
    where = features_last(mode, func, left)
    output = func(left, mode.given(right, where))

    def products(delta: Tensor, data: Tensor) -> Contributions:
        return Products(positions(conjugate(data), where), positions(delta, where))

    return mode.tap(output, [left], [(right, products)], where)
