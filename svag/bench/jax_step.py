"""Times svag.jax's optimizer steps against optax's, under jit, with parameters of real models."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from svag.bench.contestants import LAYOUTS, RATIO_AT_MOST
from svag.bench.step import Quartiles, interleave, milliseconds, ratios
from svag.errors import MissingPackage, UnknownName, nearest

PEER: Final = "optax.adam"

FOUR: Final = tuple(RATIO_AT_MOST)
"""The layouts that ``svag bench step`` has targets for."""


@dataclass(frozen=True)
class Timing:
    """The timings of one optimizer.

    Attributes:
        layout: name of the parameters' shapes.
        donated: whether parameters and state are donated, so that a step writes in their place.
        name: name of the optimizer.
        milliseconds: median time of a step.
        ratio: quartiles of its time over that of ``optax.adam`` in the same round.
        state: bytes per element of its state.
    """

    layout: str
    donated: bool
    name: str
    milliseconds: float
    ratio: Quartiles
    state: float


class JitStepper:
    """An optimizer with its own parameters; a step, applied to them, is one compiled call."""

    def __init__(self, tx: Any, shapes: Sequence[tuple[int, ...]], *, donated: bool) -> None:
        import jax
        import numpy as np
        import optax

        def draw(seed: int) -> list[Any]:
            rng = np.random.default_rng(seed)
            return [jax.numpy.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step, donate_argnums=(0, 1) if donated else ())
        self._wait: Callable[[Any], Any] = jax.block_until_ready
        self._params = draw(0)
        self._state = tx.init(self._params)
        self._places = [draw(1), draw(2)]
        self._turn = 0
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state))
        self.elements = sum(leaf.size for leaf in self._params)

    def prepare(self) -> None:
        """Take other gradients, as after a backward pass."""
        self._turn = 1 - self._turn

    def run(self) -> object:
        """Take a step and wait for it."""
        grads = self._places[self._turn]
        self._params, self._state = self._step(self._params, self._state, grads)
        return self._wait((self._params, self._state))


def contestants() -> Mapping[str, Any]:
    """Return the optimizers by name, the peer first.

    Raises:
        MissingPackage: (an ImportError) jax or optax is not installed.
    """
    try:
        import optax

        import svag.jax as sj
    except ImportError as error:
        raise MissingPackage(
            "svag bench jax needs jax and optax: pip install 'svag[jax]'"
        ) from error
    return {
        PEER: optax.adam(1e-3),
        "svag.jax.m_svag": sj.m_svag(1e-3),
        "svag.jax.adam": sj.adam(1e-3),
        "svag.jax.m_ssd": sj.m_ssd(1e-3),
        "svag.jax.m_sgd": sj.m_sgd(1e-3),
        "svag.jax.m_svag, bfloat16 state": sj.m_svag(1e-3, state_dtype="bfloat16"),
    }


def choose(names: Sequence[str]) -> list[str]:
    """Check names of layouts; without names, return :data:`FOUR`.

    Raises:
        UnknownName: there is no such layout.
    """
    for name in names:
        if name not in LAYOUTS:
            known = ", ".join(map(repr, LAYOUTS))
            raise UnknownName(f"unknown layout {name!r}; known: {known}.{nearest(name, LAYOUTS)}")
    return list(names or FOUR)


def measure(layout: str, *, rounds: int, donated: bool) -> list[Timing]:
    """Time one step of every optimizer in turn, ``rounds`` times.

    On a CPU, XLA updates the averages and the parameters in separate loops. Adam's update of the
    parameters reads the averages after the step, that of corrected rows those before it, so for
    corrected rows XLA copies the averages even if they are donated.

    Args:
        layout: a key of :data:`svag.bench.contestants.LAYOUTS`.
        rounds: number of timings of each, at least 2.
        donated: donate parameters and state.
    """
    shapes = [tuple(shape) for shape in LAYOUTS[layout]()]
    steppers = {name: JitStepper(tx, shapes, donated=donated) for name, tx in contestants().items()}
    times = interleave(steppers, rounds, milliseconds)
    return [
        Timing(
            layout,
            donated,
            name,
            statistics.median(times[name]),
            ratios(times[name], times[PEER]),
            stepper.state_bytes / stepper.elements,
        )
        for name, stepper in steppers.items()
    ]
