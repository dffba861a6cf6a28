"""Problems from the theory: a stochastic quadratic (§2), and the data of Wilson et al. (§5).

Both wrap :mod:`svag.theory`, so that ``svag compare`` can check its statements by training.
"""

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from svag.errors import InvalidOption, ProblemError
from svag.problems.metric import Metric
from svag.problems.problem import Data, Problem, Split
from svag.quantity import ACCURACY

Spectrum: TypeAlias = Literal["well-conditioned", "ill-conditioned"]

DIMENSION = 100
SCALE = 10.0
"""Entries of x* are uniform in [-SCALE, SCALE]."""
BATCH = 8

WILSON_EXAMPLES, WILSON_TESTED = 100, 1000
MAJORITY = 0.7
"""Probability of the label 1 in the data of Wilson et al."""

_ROWS = 80
_DIGITS = 12


def quadratic() -> Problem:
    """Minimise an ill-conditioned, axis-aligned quadratic through noise: a panel of Figure 2."""
    return quadratic_problem("ill-conditioned", rotated=False, noise=4.0)


def quadratic_problem(
    spectrum: Spectrum,
    *,
    rotated: bool,
    noise: float,
    dimension: int = DIMENSION,
    seed: int = 0,
) -> Problem:
    """Make a learning problem of a stochastic quadratic (§2).

        l(theta; x) = 1/2 (theta - x)^T Q (theta - x)

    The parameters are theta, which starts at 0; x* ~ U[-10, 10]^d. Every example of a batch of
    B is drawn afresh as x ~ N(x*, B nu^2 I) for B = 8, so that the gradient of a batch is
    g ~ N(Q (theta - x*), nu^2 Q Q) as in the paper, and its variance can be estimated from the
    examples of the batch. Another batch size b has B/b times that variance. Both splits hold only
    x*, so that recorded losses are the exact suboptimality 1/2 (theta - x*)^T Q (theta - x*),
    without the constant nu^2/2 tr(Q) that no method can lower.

    Args:
        spectrum: ``"well-conditioned"``, eigenvalues from U[0.1, 1.1], or ``"ill-conditioned"``,
            90 % of them from U[0, 1] and 10 % from U[30, 60].
        rotated: whether the eigenbasis is rotated at random, or axis-aligned.
        noise: nu >= 0.
        dimension: d.
        seed: of Q and x*.

    Returns:
        The problem. Its version follows from Q, the noise and how examples are drawn.

    Raises:
        InvalidOption: there is no such spectrum, or a number is outside its set.
        ProblemError: SciPy is not installed.

    Example:
        >>> quadratic_problem("well-conditioned", rotated=True, noise=0.1, dimension=20).description
        "stochastic quadratic of the paper's Figure 2: well-conditioned, noise 0.1"
    """
    matrix, x_star = _drawn(spectrum, rotated, noise, dimension, seed)
    spread = math.sqrt(BATCH) * noise
    return Problem(
        name="quadratic",
        description=f"stochastic quadratic of the paper's Figure 2: {spectrum}, noise {noise:g}",
        model=partial(Quadratic, torch.tensor(matrix)),
        load=partial(_load_quadratic, torch.tensor(x_star)),
        batch_size=BATCH,
        steps=1000,
        quick_steps=500,
        loss=_mean,
        select="test",
        augment=partial(_with_noise, spread),
        version=_version(matrix, spread),
    )


class Quadratic(nn.Module):
    """Maps examples x, (B, d), to losses ``1/2 (theta - x)^T Q (theta - x)``, (B,)."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(matrix)))
        self.Q: Tensor
        self.register_buffer("Q", matrix.to(self.theta.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each example."""
        away = self.theta - x
        return 0.5 * (away @ self.Q * away).sum(-1)


def wilson() -> Problem:
    """Classify data on which sign-based methods fit but do not generalise (§5).

    The data of Wilson et al. (2017): 100 training examples with 503 features, least squares on the
    full batch from theta = 0, as in Lemmas 2 and 3. Since X sign(X^T y) = 4 y, sign descent and
    Adam stay on the line spanned by sign(X^T y). They fit the training data, and predict the label
    of the majority, 70 %, for every test example. Gradient descent and M-SVAG leave the line. The
    features that belong to one test example only are not in the training data, so the test split
    has features 1 to 3 alone. All batches are the same, so a run does not depend on its seed.
    """
    return Problem(
        name="wilson",
        description="data of Wilson et al.: methods that take the sign do not generalise",
        model=_linear,
        load=_load_wilson,
        batch_size=WILSON_EXAMPLES,
        steps=1000,
        quick_steps=500,
        loss=_least_squares,
        metric=Metric(
            name=ACCURACY.name,
            function=_right,
            larger_is_better=True,
            unit=ACCURACY.unit,
            low=0.0,
            high=1.0,
        ),
        select="test",
    )


def _drawn(
    spectrum: str, rotated: bool, noise: float, dimension: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw Q and x*; :mod:`svag.theory` validates them and the noise."""
    try:
        from svag.theory import quadratic, spectra
    except ImportError as error:
        raise ProblemError("quadratics need SciPy; pip install 'svag[theory]'") from error
    draw = {
        "well-conditioned": spectra.eigenvalues_uniform,
        "ill-conditioned": spectra.eigenvalues_structured,
    }
    if spectrum not in draw:
        raise InvalidOption(f"spectrum={spectrum!r}: choose one of {', '.join(draw)}")
    if not (type(dimension) is int and dimension > 0 and type(seed) is int and seed >= 0):
        raise InvalidOption(
            f"dimension={dimension!r}, seed={seed!r}: give whole numbers, of at least 1 and 0"
        )
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise InvalidOption(f"noise={noise!r}: give a number, a standard deviation")
    rng = np.random.default_rng(seed)
    eigenvalues = draw[spectrum](dimension, rng)
    basis = spectra.random_rotation(dimension, rng) if rotated else np.eye(dimension)
    x_star = rng.uniform(-SCALE, SCALE, dimension)
    checked = quadratic.StochasticQuadratic(basis * eigenvalues @ basis.T, x_star, noise)
    return checked.Q, checked.x_star


def _load_quadratic(x_star: Tensor, data_dir: Path | None) -> Data:
    """Return x* in both splits; ``data_dir`` is not used."""

    def split(rows: int) -> Split:
        return Split(x_star.float().repeat(rows, 1), torch.zeros(rows))

    return Data(split(_ROWS), split(1))


def _with_noise(spread: float, inputs: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(inputs.shape, generator=generator, device=inputs.device, dtype=inputs.dtype)
    return inputs + spread * drawn


def _mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """Average the losses that the model returns; the targets are not used."""
    return outputs.mean()


def _version(matrix: NDArray[np.float64], spread: float) -> str:
    """Hash Q and the noise, rounded, since a rotation differs by rounding between machines."""
    text = f"1 {spread:.9g} {BATCH} {np.round(matrix, 6).tolist()}"
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _load_wilson(data_dir: Path | None) -> Data:
    """Draw the data; ``data_dir`` is not used."""
    try:
        from svag.theory.wilson import wilson_data
    except ImportError as error:
        raise ProblemError(
            "the data of Wilson et al. needs SciPy; pip install 'svag[theory]'"
        ) from error
    trained = wilson_data(WILSON_EXAMPLES, MAJORITY)
    fresh = np.where(np.random.RandomState(1).random_sample(WILSON_TESTED) < MAJORITY, 1.0, -1.0)
    features = np.zeros((WILSON_TESTED, trained.X.shape[1]))
    features[:, :3] = np.column_stack((fresh, np.ones((WILSON_TESTED, 2))))
    return Data(_examples(trained.X, trained.y), _examples(features, fresh))


def _examples(features: NDArray[np.float64], labels: NDArray[np.float64]) -> Split:
    return Split(torch.tensor(features).float(), torch.tensor(labels).float())


def _linear() -> nn.Module:
    """A linear score of the features, from 0: (B, 503) to (B, 1)."""
    model = nn.Linear(3 + 5 * WILSON_EXAMPLES, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def _least_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """R(theta) (Eq. 26), from scores (B, 1) and labels (B,)."""
    return 0.5 * (outputs[:, 0] - targets).square().mean()


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the examples with a score of their label's sign; a score of 0 is wrong."""
    return (outputs[:, 0] * targets > 0).double().mean()
