"""The update of one element, written once for every engine.

:func:`numbers_of` turns a group's settings and the number of a step into the :class:`Numbers` that
all elements of a tensor share, :func:`element_of` updates an element with them: gradient, moving
averages, variance, factor, update, in this order. Both are factories: the switches of a row and the
operations of an engine are bound in their closures, so that an engine compiles only what its row
does. An engine binds, loads, loops and stores; rounding to half precision is its business.

A new factor is a function in ``FACTORS`` and a value of :data:`svag.anatomy.Factor`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from svag.anatomy import METHODS, Anatomy, Factor

Scalar = Any
"""A number the same for a whole tensor: a float, or a 0-dimensional tensor under ``capturable``."""

Operand = Any
"""A number in compiled code, a block of numbers in Triton, a tensor or a list of them in torch."""

_ADAM: Final = METHODS["adam"].anatomy


class Switches(NamedTuple):
    """What decides the text of an update; everything else is a number.

    Attributes:
        momentum: the direction is m, else g.
        sign: only its sign is kept.
        factor: gamma.
        raw: gamma is of Adam's relative variance.
        adam: the row whose sign and factor together make m/(sqrt(v) + eps).
        within_batch: the variance is of the mini-batch.
        amsgrad: v~ is the largest so far.
        decays: weight decay is added to the gradient.
        alters: gradients are multiplied by a number first (ascent, a scaled loss), and parameters
            too (decoupled weight decay).
    """

    momentum: bool
    sign: bool
    factor: Factor
    raw: bool
    adam: bool
    within_batch: bool
    amsgrad: bool
    decays: bool
    alters: bool

    @classmethod
    def of(cls, anatomy: Anatomy, *, amsgrad: bool, decays: bool, alters: bool) -> "Switches":
        """Return the switches of a row of the table, with a group's options.

        Args:
            anatomy: the row.
            amsgrad: use the largest v~ so far.
            decays: there is weight decay that is added to the gradient.
            alters: gradients or parameters are multiplied by a number first.
        """
        return cls(
            momentum=anatomy.direction == "momentum",
            sign=anatomy.sign,
            factor=anatomy.factor,
            raw=anatomy.raw,
            adam=anatomy == _ADAM,
            within_batch=anatomy.within_batch,
            amsgrad=amsgrad,
            decays=decays,
            alters=alters,
        )

    @property
    def averages_gradient(self) -> bool:
        """Whether exp_avg is kept."""
        return self.momentum or self.averages_square

    @property
    def averages_square(self) -> bool:
        """Whether exp_avg_sq is kept."""
        return self.factor != "none" and not self.within_batch


class Settings(NamedTuple):
    """The numbers of a parameter group.

    Attributes:
        lr: step size alpha.
        beta: decay of the first moment, and of the second unless the row is raw.
        beta2: decay of the second moment.
        eps: added to sqrt(v) in raw rows.
        weight_decay: lambda, where lambda * parameter is added to the gradient.
        decoupled_weight_decay: lambda, where lr * lambda * parameter is taken off the parameter.
        gradient: what the gradient is multiplied by: -1 to ascend, over the scale of the loss.
        seed: of the noise in stochastic rounding.
    """

    lr: Scalar
    beta: Scalar
    beta2: Scalar
    eps: Scalar
    weight_decay: Scalar
    decoupled_weight_decay: Scalar
    gradient: Scalar
    seed: Scalar


class Numbers(NamedTuple):
    """The numbers of one step of one tensor, in the precision of its elements.

    Attributes:
        gradient: what makes g of ``p.grad``.
        weight_decay: coupled.
        shrink: 1 - lr * decoupled weight decay.
        lr: what gamma times the direction is multiplied by; debiases the direction, too.
        keep: beta.
        take: 1 - beta.
        keep2: beta2.
        take2: 1 - beta2.
        before: what debiases the last step's exp_avg; 0 at the first step.
        of_square: weight of the last exp_avg_sq in the variance of exp_avg,
        of_mean_square: of the square of the last exp_avg,
        of_deviation: and of (g - m)^2, m being the last step's.
        ceiling: of that variance: 0 while the averages hold one gradient or none, then inf.
        mean: what makes m of exp_avg in raw rows, up to the factor that makes v of exp_avg_sq.
        eps: times the factor that makes sqrt(v) of sqrt(exp_avg_sq).
    """

    gradient: Scalar
    weight_decay: Scalar
    shrink: Scalar
    lr: Scalar
    keep: Scalar
    take: Scalar
    keep2: Scalar
    take2: Scalar
    before: Scalar
    of_square: Scalar
    of_mean_square: Scalar
    of_deviation: Scalar
    ceiling: Scalar
    mean: Scalar
    eps: Scalar


class Arithmetic(NamedTuple):
    """What an engine binds beside ``+``, ``-`` and ``*``.

    Attributes:
        static: how a switch is written so that what it excludes is left out.
        function: makes a function that can be called by another.
        number: a constant in the precision of the elements.
        tiny: the smallest normal number.
        huge: the largest number.
        divide: x / y, rounded.
        sqrt: rounded.
        erf: the error function.
        sign: -1, 0, 1, or NaN of NaN.
        least: x, or a bound where x is above it.
        greatest: x, or a bound where x is below it; NaN of NaN.
        choose: x if a condition on :class:`Numbers` holds, else y.
        debiasing: 1 - beta^step (:func:`svag.optim.moments.debiasing`).
        root: the square root of a number that all elements share.
    """

    static: Callable[[Any], Any]
    function: Callable[[Callable[..., Any]], Callable[..., Any]]
    number: Callable[[float], Any]
    tiny: float
    huge: float
    divide: Callable[[Operand, Operand], Operand]
    sqrt: Callable[[Operand], Operand]
    erf: Callable[[Operand], Operand]
    sign: Callable[[Operand], Operand]
    least: Callable[[Operand, Scalar], Operand]
    greatest: Callable[[Operand, Operand], Operand]
    choose: Callable[[Any, Operand, Operand], Operand]
    debiasing: Callable[[Scalar, Scalar], Scalar]
    root: Callable[[Scalar], Scalar]


def numbers_of(switches: Switches, ops: Arithmetic) -> Callable[..., tuple[Scalar, ...]]:
    """Return the function of :class:`Settings` (without the seed) and a step to :class:`Numbers`.

    Steps count from 1, as ``state["step"]`` does; the paper's t is ``step - 1``. The variance of a
    gradient (Eq. 22) is

        s_t = (v_t - m_t^2) / (1 - rho(beta, t))
            = (1 + beta)/2 * ( v_(t-1) - m_(t-1)^2 + (1 - beta)/(1 - beta^(t+1)) (g_t - m_(t-1))^2 )

    (substitute the recurrences of m and v). The second form has no factor 1/(1 - rho), which grows
    like 1/beta and would multiply the round-off of v - m^2. The weights here make the variance of
    exp_avg of it: s for a gradient, rho s for m (Eq. 21), times the square of what debiases.
    """
    momentum, debiases = ops.static(switches.momentum), ops.static(not switches.sign)
    adam = ops.static(switches.adam)
    debiasing, root, choose = ops.debiasing, ops.root, ops.choose

    def numbers(lr, beta, beta2, eps, weight_decay, decoupled, gradient, step):
        weight = debiasing(beta, step)
        root_weight2 = root(debiasing(beta2, step))
        later = step > 1
        before = choose(later, 1 / debiasing(beta, choose(later, step - 1, 1.0)), 0.0)
        share = (1 + beta) / 2 * weight * weight
        if momentum:
            share = share * ((1 - beta) * (2 - weight) / ((1 + beta) * weight))
        shrink = 1 - lr * decoupled
        if adam:
            lr = lr * root_weight2 / weight
        elif momentum and debiases:
            lr = lr / weight
        ceiling = choose(beta > 0, choose(later, float("inf"), 0.0), 0.0)
        return (
            gradient,
            weight_decay,
            shrink,
            lr,
            beta,
            1 - beta,
            beta2,
            1 - beta2,
            before,
            share * before,
            share * before * before,
            share * (1 - beta) / weight,
            ceiling,
            root_weight2 / weight,
            eps * root_weight2,
        )

    return numbers


def element_of(switches: Switches, ops: Arithmetic) -> Callable[..., tuple[Operand, ...]]:
    """Return the update of an element.

    A function of the parameter, its gradient, ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``,
    ``exp_avg_var``, ``grad_var`` and the tuple of :class:`Numbers`. It returns the parameter and
    the four averages after the step; those that the row has not, it returns as they came.

    Corrected rows compare the variance with the squared mean in units of exp_avg. Where the squares
    underflow (0/0: float32 gradients below about 1e-19), no variance was seen and gamma = 1; where
    the variance overflows (above about 1e18), gamma = 0, since the squared mean is bounded.
    """
    sqrt, divide, least, greatest = ops.sqrt, ops.divide, ops.least, ops.greatest
    choose, sign_of = ops.choose, ops.sign
    gamma_of = FACTORS.get(switches.factor, _svag)(ops)  # not called where nothing is adapted
    zero, one = ops.number(0.0), ops.number(1.0)
    tiny, huge, root_of_tiny = ops.number(ops.tiny), ops.number(ops.huge), ops.number(ops.tiny**0.5)
    momentum, raw, adam = map(ops.static, (switches.momentum, switches.raw, switches.adam))
    averages_gradient = ops.static(switches.averages_gradient)
    averages_square = ops.static(switches.averages_square)
    within_batch, amsgrad = ops.static(switches.within_batch), ops.static(switches.amsgrad)
    decays, alters = ops.static(switches.decays), ops.static(switches.alters)
    takes_sign = ops.static(switches.sign and not switches.adam)
    adapted = ops.static(switches.factor != "none" and not switches.adam)
    corrected = ops.static(switches.averages_square and not switches.raw)

    def element(param, grad, mean, square, largest, variance, sample, numbers):
        (
            gradient, weight_decay, shrink, lr, keep, take, keep2, take2,
            before, of_square, of_mean_square, of_deviation, ceiling, debias, eps,
        ) = numbers  # fmt: skip
        g = grad
        if alters:
            g = gradient * g
        if decays:  # by some group: not 0 times an infinite parameter of another
            g = choose(weight_decay != zero, g + weight_decay * param, g)
        if alters:
            param = shrink * param

        direction = g
        average = g
        spread = g
        if corrected:
            deviation = g - before * mean
            spread = of_square * square - least(of_mean_square * (mean * mean), huge)
            spread = spread + of_deviation * (deviation * deviation)
            spread = least(greatest(spread, zero), ceiling)
        if averages_gradient:
            # From the nearer end, so that neither end is lost to rounding.
            near = take < 0.5
            mean = choose(near, mean, g) + choose(near, take, -keep) * (g - mean)
            average = mean
        if momentum:
            direction = mean
        if averages_square:
            seen = take2 * g * g
            square = choose(keep2 > zero, keep2 * square + seen, seen)  # 0 * inf is not 0
        if amsgrad:
            largest = greatest(square, largest)
        if within_batch:
            spread = gradient * gradient * sample
            if momentum:
                seen = take * take * spread
                variance = choose(keep > zero, keep * keep * variance + seen, seen)
                spread = variance

        if raw:
            root = sqrt(largest if amsgrad else square) + eps
            root = greatest(root, choose(eps != zero, zero, root_of_tiny))
            if adam:
                # Eq. (7) backwards: sign(m) * |m|/(sqrt(v) + eps) is m/(sqrt(v) + eps).
                direction = divide(direction, root)
            else:
                ratio = divide(root, debias * average)
                inverse = divide(one, ratio * ratio)
        if takes_sign:
            direction = sign_of(direction)
        if adapted:
            if not raw:
                size = least(average * average, huge) + tiny
                inverse = divide(size, size + spread)
            direction = gamma_of(inverse) * direction
        # A sum, since quantised weights know no difference.
        return param + -lr * direction, mean, square, largest, variance

    return element


def _svag(ops: Arithmetic) -> Callable[[Operand], Operand]:
    """1/(1 + r), Eq. (15): optimal for a direction that keeps its magnitude."""

    def gamma(inverse):
        return inverse

    return ops.function(gamma)


def _sqrt(ops: Arithmetic) -> Callable[[Operand], Operand]:
    """(1 + r)^(-1/2), Eq. (8): Adam's."""
    sqrt = ops.sqrt

    def gamma(inverse):
        return sqrt(inverse)

    return ops.function(gamma)


def _erf(ops: Arithmetic) -> Callable[[Operand], Operand]:
    """erf(1/sqrt(2r)): probability of the right sign minus that of the wrong one, if Gaussian.

    Eqs. (10) and (16). Below r = 1e-3 it is 1 in every dtype (1 - erf(22) < 1e-212); the bound
    keeps its derivative finite at r = 0, and is what a negative raw r meets.
    """
    sqrt, divide, greatest, erf = ops.sqrt, ops.divide, ops.greatest, ops.erf
    one, two, smallest = ops.number(1.0), ops.number(2.0), ops.number(1e-3)

    def gamma(inverse):
        eta_sq = greatest(divide(one, inverse) - one, smallest)
        return erf(divide(one, sqrt(two * eta_sq)))

    return ops.function(gamma)


FACTORS: Final[Mapping[Factor, Callable[[Arithmetic], Callable[[Operand], Operand]]]] = {
    "svag": _svag,
    "sqrt": _sqrt,
    "erf": _erf,
}
"""gamma as a function of 1/(1 + r) = E[p]^2/E[p^2], which is what Adam has: its v/m^2 can be far
below 1, where r + 1 would have lost it."""
