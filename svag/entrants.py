"""Entrants, which are what can be compared, and the texts that name them in commands and records.

    m-svag                                a row of the table, by its key, its name or its class
    m-svag(beta=0.95)                     with options, in parentheses at the end
    m-svag@within-batch(beta=0.95)        with the variance estimated within each mini-batch
    sign(m) * erf(1/sqrt(2 rho s/m^2))    an anatomy in symbols, as ``str(anatomy)`` writes it
    torch.optim.SGD(momentum=0.9)         any optimizer of a package, package.module.name
    my.py:make                            or of the user's own, path/to/file.py:name

Every text has one canonical form, the key: symbols of a row become the row's key, options are
sorted, options at their default are left out, and numbers are in their shortest form. No optimizer
is imported here: :func:`svag.lab.optimizers.check` checks whether one from outside exists.
"""

import posixpath
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from types import MappingProxyType
from typing import Any, Final, TypeAlias, get_args

from svag import notation
from svag.anatomy import METHODS, Anatomy, Direction, Factor, Method, RelativeVariance, Variance
from svag.errors import InvalidOption, UnknownName, UnknownOption, nearest

OUTSIDE_LR: Final = 1e-3
"""Step size at which the search begins for optimizers from outside svag: Adam's default."""

_WITHIN_BATCH: Final = "within-batch"


@dataclass(frozen=True, slots=True)
class Entrant:
    """A method or an optimizer, with its options, that takes part in a comparison.

    Attributes:
        key: its canonical text, by which the command line and the records name it.
        name: its name in tables and pictures.
        row: key of the row of the table that it is, with or without options; empty for other
            anatomies and for optimizers from outside svag.
        anatomy: its direction and factor; None for an optimizer from outside svag.
        optimizer: class in ``svag.optim``; from outside, ``package.module:name`` or
            ``path/to/file.py:name``.
        options: keywords that the optimizer is built with, beside ``lr`` and ``variance``.
        lr: default step size.
        betas: decays of its averages: none, one for all, or Adam's two.
    """

    key: str
    name: str
    row: str
    anatomy: Anatomy | None
    optimizer: str
    options: Mapping[str, object] = field(hash=False)
    lr: float
    betas: tuple[float, ...] = ()

    @property
    def outside(self) -> bool:
        """Whether it is an optimizer from outside svag."""
        return self.anatomy is None

    @property
    def sign(self) -> bool:
        """Whether only the sign of the direction is kept; False where that is not known."""
        return self.anatomy is not None and self.anatomy.sign

    @property
    def adapted(self) -> bool:
        """Whether the update is variance-adapted; False where that is not known."""
        return self.anatomy is not None and self.anatomy.adapted

    @property
    def within_batch(self) -> bool:
        """Whether the method needs the within-batch variance of every gradient."""
        return self.anatomy is not None and self.anatomy.within_batch


@dataclass(frozen=True, slots=True)
class Option:
    """An option of svag's own optimizers: a flag, or a number in [0, ``below``)."""

    default: float | bool | None
    below: float = sys.float_info.max

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if isinstance(self.default, bool):
            return "a flag: name it, or leave it out"
        finite = self.below == sys.float_info.max
        return "a finite number >= 0" if finite else f"in [0, {self.below:g})"

    def checked(self, value: object) -> float | bool | None:
        """Return the value as a bool or float; None if it is not allowed."""
        if isinstance(self.default, bool) or isinstance(value, bool):
            return value if isinstance(value, bool) and isinstance(self.default, bool) else None
        if isinstance(value, int | float) and 0 <= value < self.below:
            return float(value) + 0.0  # makes 0.0 of -0.0
        return None


OPTIONS: Final[Mapping[str, Option]] = MappingProxyType(
    {
        "beta": Option(0.9, below=1.0),
        "beta2": Option(0.999, below=1.0),
        "eps": Option(1e-8),
        "amsgrad": Option(False),
        "weight_decay": Option(None),  # by default the problem's; 0 turns it off for the method
        "decoupled": Option(False),
    }
)
"""The options of svag's own methods that a comparison can vary, with their defaults."""

_Values: TypeAlias = Mapping[str, Any]

_ALIASES: Final = {"signum": "m-ssd"}
_HOMES: Final = ("", "svag.", "svag:", "svag.optim.", "svag.optim:")
_ROWS: Final[Mapping[str, Method]] = {
    **{alias: METHODS[key] for alias, key in _ALIASES.items()},
    **{
        text.lower(): row
        for row in METHODS.values()
        for text in (row.key, row.name, *(home + row.optimizer for home in _HOMES))
    },
}
_ROW_OF: Final = {str(row.anatomy): row for row in METHODS.values()}


def _anatomies() -> Iterator[Anatomy]:
    """Yield every valid anatomy, once."""
    factors = [factor for factor in get_args(Factor) if factor != "none"]
    for direction, sign in product(get_args(Direction), (False, True)):
        yield Anatomy(direction, sign)
        for factor, ratio, variance in product(
            factors, get_args(RelativeVariance), get_args(Variance)
        ):
            if (ratio, variance) != ("raw", _WITHIN_BATCH):
                yield Anatomy(direction, sign, factor, ratio, variance)


def _without_blanks(text: str) -> str:
    return "".join(text.split())


SYMBOLS: Final[Mapping[str, Anatomy]] = {str(anatomy): anatomy for anatomy in _anatomies()}
"""Every anatomy by its symbols."""

_SYMBOLS: Final = {_without_blanks(symbols): anatomy for symbols, anatomy in SYMBOLS.items()}


def _is_symbols(text: str) -> bool:
    return _without_blanks(text) in _SYMBOLS


@lru_cache(maxsize=1024)
def entrant(text: str) -> Entrant:
    """Return the entrant that a text names.

    Raises:
        UnknownName: the text names no method.
        UnknownOption: (a TypeError) the method does not have one of the options.
        InvalidOption: (a ValueError) an option's value is outside its set.

    Example:
        >>> entrant("Adam(weight_decay=1e-4, decoupled, beta=0.9)").key
        'adam(decoupled, weight_decay=0.0001)'
        >>> entrant("sign(m)*1/sqrt(1+rho s/m^2)").key
        'adam-star'
        >>> entrant("torch.optim.Muon").outside
        True
    """
    return _read(text, {})


def with_options(text: str, **options: float | bool | None) -> Entrant:
    """Return the entrant that a text names, with values for options that the text leaves out.

    Args:
        text: as for :func:`entrant`.
        options: values, by names in :data:`OPTIONS`. A value of None, an option that the method
            does not have, and all options of optimizers from outside svag are ignored.

    Example:
        >>> [with_options(key, beta=0.95).key for key in ("sgd", "m-sgd", "torch.optim.SGD")]
        ['sgd', 'm-sgd(beta=0.95)', 'torch.optim.SGD']
    """
    for name in options:
        if name not in OPTIONS:
            raise UnknownOption(_no_option(text, name, OPTIONS))
    return _read(text, {name: value for name, value in options.items() if value is not None})


def split(text: str) -> list[str]:
    """Split a list of texts at the commas outside parentheses.

    Raises:
        UnknownName: the parentheses do not match, or the list is empty.

    Example:
        >>> split("m-sgd, adam(beta=0.8, decoupled)")
        ['m-sgd', 'adam(beta=0.8, decoupled)']
    """
    parts = notation.split(text)
    if not parts:
        raise UnknownName(f"{text!r} names no method; known: {', '.join(METHODS)}")
    return parts


def in_order(keys: Iterable[str]) -> list[str]:
    """Sort keys in the table's order: variants after their row, outside optimizers last.

    Example:
        >>> in_order(["torch.optim.SGD", "adam", "m-svag(beta=0.8)", "m-svag"])
        ['m-svag', 'm-svag(beta=0.8)', 'adam', 'torch.optim.SGD']
    """
    rows = list(METHODS)

    def place(key: str) -> tuple[int, str]:
        one = entrant(key)
        return rows.index(one.row) if one.row else len(rows) + one.outside, key

    return sorted(set(keys), key=place)


def allowed_options(anatomy: Anatomy) -> tuple[str, ...]:
    """Return the names in :data:`OPTIONS` that apply to an anatomy."""
    averages: tuple[str, ...] = ("beta",) if anatomy.buffers else ()
    if anatomy.raw:
        averages = ("beta", "beta2", "eps", "amsgrad")
    return (*averages, "weight_decay", "decoupled")


def _read(text: str, general: _Values) -> Entrant:
    """Return the entrant that a text names; general options are used where they apply."""
    head, parts = notation.taken_apart(text, _is_symbols)
    row = _ROWS.get(head.lower())
    anatomy = row.anatomy if row else _SYMBOLS.get(_without_blanks(head))
    if anatomy is None:
        return _outsider(text, head, parts)
    stated = notation.stated(text, parts)
    anatomy = _fed_by(text, anatomy, stated.pop("variance", anatomy.variance))
    allowed = allowed_options(anatomy)
    values = {name: value for name, value in general.items() if name in allowed}
    values |= _values(text, stated)
    for name in values:
        if name not in allowed:
            variance = ("variance",) if anatomy.adapted and not anatomy.raw else ()
            raise UnknownOption(_no_option(text, name, (*allowed, *variance)))
    return _own(anatomy, {name: _checked(text, name, values[name]) for name in sorted(values)})


def _own(anatomy: Anatomy, values: _Values) -> Entrant:
    """Build the entrant of one of svag's own methods."""
    values = {name: value for name, value in values.items() if value != OPTIONS[name].default}
    written = [
        name if value is True else f"{name}={notation.short(repr(value)).removesuffix('.0')}"
        for name, value in values.items()
    ]
    plain = replace(anatomy, variance="moving-average")
    row = _ROW_OF.get(str(anatomy)) or _ROW_OF.get(str(plain))
    base = row.key + f"@{_WITHIN_BATCH}" * anatomy.within_batch if row else str(anatomy)
    notes = [_WITHIN_BATCH] * (row is not None and anatomy.within_batch) + written
    return Entrant(
        key=f"{base}({', '.join(written)})" if written else base,
        name=_named(row.name if row else base, notes),
        row=row.key if row else "",
        anatomy=anatomy,
        optimizer=row.optimizer if row else "Dissected",
        options=_keywords(anatomy, values),
        lr=row.lr if row else 1e-3 if anatomy.sign else 0.1,
        betas=_betas(anatomy, values),
    )


def _betas(anatomy: Anatomy, values: _Values) -> tuple[float, ...]:
    names = [name for name in allowed_options(anatomy) if name in ("beta", "beta2")]
    return tuple(values.get(name, OPTIONS[name].default) for name in names)


def _keywords(anatomy: Anatomy, values: _Values) -> dict[str, object]:
    """Return the options as keyword arguments of the optimizer's class."""
    keywords = dict(values)
    if anatomy.raw and {"beta", "beta2"} & values.keys():
        keywords["betas"] = _betas(anatomy, values)
        keywords.pop("beta", None)
        keywords.pop("beta2", None)
    if "decoupled" in keywords:
        keywords["decoupled_weight_decay"] = keywords.pop("decoupled")
    return keywords


def _fed_by(text: str, anatomy: Anatomy, variance: str) -> Anatomy:
    """Return the anatomy with the ``variance`` that the text states."""
    if variance.strip("'\"") == anatomy.variance:
        return anatomy
    if variance.strip("'\"") != _WITHIN_BATCH or not anatomy.adapted or anatomy.raw:
        raise UnknownName(_no_variance(text))
    return replace(anatomy, variance=_WITHIN_BATCH)


def _values(text: str, stated: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of stated options, by their names in :data:`OPTIONS`."""
    values: dict[str, Any] = {}
    for name, written in stated.items():
        value = notation.literal(text, name, written)
        parts = {"decoupled" if name == "decoupled_weight_decay" else name: value}
        if name == "betas":
            if not (isinstance(value, tuple | list) and len(value) == 2):
                raise InvalidOption(f"{text!r}: betas={written}; give two, as betas=(0.9, 0.999)")
            parts = dict(zip(("beta", "beta2"), value, strict=True))
        for part in parts.keys() & values.keys():
            raise InvalidOption(f"{text!r} gives {part} twice; give it once")
        values |= parts
    return values


def _checked(text: str, name: str, value: object) -> float | bool:
    checked = OPTIONS[name].checked(value)
    if checked is None:
        raise InvalidOption(f"{text!r}: {name}={value!r}; {name} is {OPTIONS[name].allowed}")
    return checked


def _outsider(text: str, head: str, parts: Iterable[str]) -> Entrant:
    """Build the entrant of an optimizer from outside svag; options are keywords of its class."""
    place, name = _place(text, head)
    stated = notation.stated(text, parts)
    if stated.get("variance") == _WITHIN_BATCH:
        raise UnknownName(_no_variance(text))
    options = {option: notation.literal(text, option, stated[option]) for option in sorted(stated)}
    written = [f"{option}={notation.short(stated[option])}" for option in options]
    file = place.endswith(".py")
    base = f"{place}:{name}" if file else f"{place}.{name}"
    short = f"{posixpath.basename(place)}:{name}" if file else name
    return Entrant(
        key=f"{base}({', '.join(written)})" if written else base,
        # The full name tells torch.optim.SGD from svag's own SGD in a table.
        name=_named(base if short.lower() in _ROWS else short, written),
        row="",
        anatomy=None,
        optimizer=f"{place}:{name}",
        options=options,
        lr=OUTSIDE_LR,
    )


def _place(text: str, head: str) -> tuple[str, str]:
    """Return the file or the module that a text names, and the name in it."""
    if head.endswith(".py"):
        raise UnknownName(
            f"{text!r} names a file; name the optimizer, or the function in it that makes one, "
            f"too: {head}:make"
        )
    place, mark, name = head.rpartition(":" if ":" in head else ".")
    if mark == ":" and place.endswith(".py") and name.isidentifier():
        return posixpath.normpath(place), name
    names = [*place.split("."), name]
    if names[0] == "svag" or not all(each.isidentifier() for each in names):
        raise UnknownName(_unknown(text, head))
    return place, name


def _named(name: str, notes: list[str]) -> str:
    return f"{name} ({', '.join(notes)})" if notes else name


def _unknown(text: str, head: str) -> str:
    known = (*METHODS, *_ALIASES)
    close = nearest(head.lower(), known) or nearest(text, SYMBOLS)
    if "*" in head.rstrip("*"):
        return (
            f"unknown method {text!r}: symbols are g, m, sign(g) or sign(m), alone or times one "
            "of 1/(1 + r), 1/sqrt(1 + r), erf(1/sqrt(2 r)), where r is s/m^2 for g, rho s/m^2 "
            f"for m, var[g]/g^2 for g, var[m]/m^2 for m, or (v - m^2)/m^2.{close}"
        )
    return (
        f"unknown method {text!r}; known: {', '.join(METHODS)}.{close} There are also anatomies "
        "in symbols, such as 'sign(m) * erf(1/sqrt(2 rho s/m^2))', and any optimizer: "
        "package.module.name, such as torch.optim.AdamW, or path/to/file.py:name"
    )


def _no_variance(text: str) -> str:
    rows = [row for row in METHODS.values() if row.anatomy.adapted and not row.anatomy.raw]
    return (
        f"unknown method {text!r}; a variance can be chosen for "
        f"{', '.join(f'{row.key}@{_WITHIN_BATCH}' for row in rows)}, and in symbols with "
        "var[g]/g^2 or var[m]/m^2"
    )


def _no_option(text: str, name: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    return (
        f"{text!r}: there is no option {name!r}; options are {', '.join(names)}."
        f"{nearest(name, names)}"
    )
