"""The one idea of the library: every method is a direction times a factor.

    theta <- theta - lr * gamma * d

An :class:`Anatomy` names the direction ``d`` and the factor ``gamma``; :data:`METHODS` is the
table of the named methods. ``sign`` and ``adapted`` give a method's cell in the paper's Figure 1.
This module does not import torch, since theory, analysis and report use it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

from svag.errors import InvalidOption, UnknownName, nearest

Direction = Literal["gradient", "momentum"]
Factor = Literal["none", "svag", "sqrt", "erf"]
RelativeVariance = Literal["corrected", "raw"]
Variance = Literal["moving-average", "within-batch"]


def _one_of(field: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed or type(value) not in (bool, str):
        raise InvalidOption(
            f"{field}={value!r} is not a part of an anatomy; choose one of "
            + ", ".join(repr(known) for known in allowed)
        )


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What an update is made of.

    Attributes:
        direction: ``"gradient"``, g, or ``"momentum"``, its debiased moving average m.
        sign: whether only the sign of the direction is kept.
        factor: ``"none"``: 1; ``"svag"``: 1/(1+r), Eq. (15), optimal for a direction that keeps
            its magnitude; ``"sqrt"``: (1+r)^(-1/2), Adam's, Eq. (8); ``"erf"``:
            erf(1/sqrt(2r)), Eqs. (10) and (16), optimal for the sign of a Gaussian direction.
        relative_variance: r. ``"corrected"``: the variance of the direction over the square of
            its mean, s/m^2 for g and rho s/m^2 for m, Eqs. (22) to (25); ``"raw"``: Adam's
            (v - m^2)/m^2, Eq. (9), with two betas and an eps.
        variance: where the variance comes from: moving averages, which take the change of the mean
            gradient along the path for noise (:mod:`svag.theory.drift`), or the examples of one
            mini-batch, which see the noise alone.

    Raises:
        InvalidOption: a value is outside its set, or ``relative_variance="raw"`` is combined with
            ``variance="within-batch"``.

    Example:
        >>> row = Anatomy("momentum", sign=True, factor="erf")
        >>> str(row), row.buffers
        ('sign(m) * erf(1/sqrt(2 rho s/m^2))', ('exp_avg', 'exp_avg_sq'))
    """

    direction: Direction = "gradient"
    sign: bool = False
    factor: Factor = "none"
    relative_variance: RelativeVariance = "corrected"
    variance: Variance = "moving-average"

    def __post_init__(self) -> None:
        _one_of("direction", self.direction, get_args(Direction))
        _one_of("sign", self.sign, (True, False))
        _one_of("factor", self.factor, get_args(Factor))
        _one_of("relative_variance", self.relative_variance, get_args(RelativeVariance))
        _one_of("variance", self.variance, get_args(Variance))
        if self.raw and self.variance == "within-batch":
            raise InvalidOption(
                "relative_variance='raw' is (v - m^2)/m^2 of moving averages, which a mini-batch "
                f"cannot feed (variance={self.variance!r}); use relative_variance='corrected' or "
                "variance='moving-average'"
            )

    @property
    def adapted(self) -> bool:
        """Whether the update is variance-adapted, that is, has a factor other than 1."""
        return self.factor != "none"

    @property
    def raw(self) -> bool:
        """Whether the update is adapted by Adam's relative variance."""
        return self.adapted and self.relative_variance == "raw"

    @property
    def within_batch(self) -> bool:
        """Whether the update is adapted by the variance within each mini-batch."""
        return self.adapted and self.variance == "within-batch"

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the moving averages that the update needs, as in ``torch.optim.Adam``'s state.

        ``exp_avg_var`` is the moving average of the within-batch variances.
        """
        averaged = self.adapted and not self.within_batch
        needs_mean = self.direction == "momentum" or averaged
        needs_variance = self.direction == "momentum" and self.within_batch
        return (
            *("exp_avg",) * needs_mean,
            *("exp_avg_sq",) * averaged,
            *("exp_avg_var",) * needs_variance,
        )

    def __str__(self) -> str:
        """Return the update in symbols, e.g. ``sign(m) * 1/sqrt(1 + rho s/m^2)``."""
        symbol = "m" if self.direction == "momentum" else "g"
        direction = f"sign({symbol})" if self.sign else symbol
        if not self.adapted:
            return direction
        if self.raw:
            ratio = "(v - m^2)/m^2"
        elif self.within_batch:
            ratio = f"var[{symbol}]/{symbol}^2"
        else:
            ratio = "rho s/m^2" if self.direction == "momentum" else "s/m^2"
        factor = {
            "svag": f"1/(1 + {ratio})",
            "sqrt": f"1/sqrt(1 + {ratio})",
            "erf": f"erf(1/sqrt(2 {ratio}))",
        }[self.factor]
        return f"{direction} * {factor}"


@dataclass(frozen=True, slots=True)
class Method:
    """A named row of the table.

    Attributes:
        key: what the command line, the records and the registry call it.
        name: what the paper calls it.
        optimizer: the class of ``svag`` that implements it.
        anatomy: its direction and factor.
        lr: its default step size.
        betas: its default decays: none, one for all averages, or Adam's two.
    """

    key: str
    name: str
    optimizer: str
    anatomy: Anatomy
    lr: float
    betas: tuple[float, ...] = ()


_ROWS = (
    Method("sgd", "SGD", "SGD", Anatomy(), 0.1),
    Method("m-sgd", "M-SGD", "MSGD", Anatomy("momentum"), 0.1, (0.9,)),
    Method("ssd", "SSD", "SSD", Anatomy(sign=True), 1e-3),
    Method("m-ssd", "M-SSD", "MSSD", Anatomy("momentum", sign=True), 1e-3, (0.9,)),
    Method("svag", "SVAG", "SVAG", Anatomy("gradient", factor="svag"), 0.1, (0.9,)),
    Method("m-svag", "M-SVAG", "MSVAG", Anatomy("momentum", factor="svag"), 0.1, (0.9,)),
    Method("adam", "Adam", "Adam", Anatomy("momentum", True, "sqrt", "raw"), 1e-3, (0.9, 0.999)),
    Method("adam-star", "Adam*", "AdamStar", Anatomy("momentum", True, "sqrt"), 1e-3, (0.9,)),
)

METHODS: Final[Mapping[str, Method]] = MappingProxyType({row.key: row for row in _ROWS})

PAPER_METHODS: Final = ("m-sgd", "m-ssd", "m-svag", "adam")
"""The four methods that the paper compares, one for each cell of its Figure 1."""


def method(key: str) -> Method:
    """Return the row of the table with a key; :func:`svag.entrants.entrant` takes variants, too.

    Raises:
        UnknownName: no row has this key; the message lists the known keys.
    """
    if key not in METHODS:
        raise UnknownName(
            f"unknown method {key!r}; known: {', '.join(METHODS)}.{nearest(key, METHODS)}"
        )
    return METHODS[key]
