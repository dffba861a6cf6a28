"""Watches the gradient's noise during training, from the optimizer's own averages."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svag.diagnosis.monitoring.allowance import Allowance, is_real
from svag.diagnosis.monitoring.noise_figures import RunningNoiseScale, Sample, figures
from svag.diagnosis.monitoring.optimizer_averages import Averages, NamedParameters, names_of
from svag.diagnosis.monitoring.sinks import ALL, Destination, JsonLines, Record, sinks_of
from svag.errors import InvalidOption

Probe = Callable[[], Mapping[str, float]]


class Monitor:
    """Reports relative variance, factor and noise scale while a model trains.

    The averages of the optimizer are read after a step: no further backward pass, and nothing that
    training uses is changed. A record is a flat dictionary: ``kind`` ("monitor"), ``step``,
    ``layer`` (name of a parameter, "all" for all together) and these figures of the gradient g of
    one mini-batch, None where there is no finite number:

    - ``eta_sq_p10``, ``_p25``, ``_p50``, ``_p75``, ``_p90``: quantiles over coordinates of
      s/m^2, the relative variance of g, Eqs. (9) and (22).
    - ``gamma_mean``: mean factor of the last step; ``at_rest``: share of coordinates with
      m = v = 0, or with a factor below 0.01. Those with m = v = 0 enter no other figure.
    - ``variance``: sum of s; ``grad_sq``: sum of m^2 - rho s, which estimates |grad L|^2.
    - ``noise_scale``: B ``variance``/``grad_sq``, in examples, each first averaged over about the
      last ten records; None where ``grad_sq`` is not positive. Only with ``batch_size``.
    - ``entries``, ``sampled``: numbers of coordinates; ``non_finite``: share of those left out
      because an average is NaN or infinite; ``overhead``: share of the wall time taken so far.

    The figures rest on Assumption 1 of the paper: gradients in the averages' memory are
    independent and of one distribution. A moving mean counts as noise (:mod:`svag.theory.drift`),
    and so does one that swings to and fro, as at a large step size: then ``grad_sq`` comes out
    negative.
    :func:`svag.diagnosis.monitoring.probes.within_batch_noise` counts neither as noise. If
    gradients are clipped, or coupled weight decay is added to them, the figures are those of the
    changed gradients.

    With independent Gaussian gradients of d coordinates alike, the ``noise_scale`` of one record
    has the relative standard error sqrt((0.1 + 0.2 eta^2 + 0.006 eta^4)/d) at beta = 0.9. Estimates
    of single coordinates scatter by about their own size, so quantiles spread a little; the median
    of eta^2 is within 10 % of the truth up to eta^2 = 10 and levels off at 42, where the sign of m
    is chance (simulated). With Adam's two betas, eta^2 below 0.1 is uncertain, since m and v
    average over different steps and their errors do not cancel in v - m^2.

    Of a tensor with more than ``coordinates`` entries, a fixed random sample of that size is read,
    so that the cost does not grow with the model beyond the number of its tensors. DTensors are
    read as far as this process holds them; give destinations to one process only.

    Under ``torch.compile`` the reading stays outside the graph, and the compiled
    ``optimizer.step`` is unchanged. Where ``fullgraph=True`` is asked of a function that steps, or
    a CUDA graph replays steps, hooks cannot run: use ``hook=False`` and :meth:`observe`.

    Args:
        optimizer: of svag, in a row with a factor, or ``torch.optim.Adam`` or ``AdamW``; also
            inside a wrapper that has it as ``.optimizer``.
        every: least number of steps between two records.
        budget: most of the wall time that reading and writing records may take, as a share; None
            for no bound. After a reading that took c seconds, the next waits until c/budget
            seconds have passed, so a slow reading is followed by a longer pause. On an accelerator,
            c includes the wait for the step's kernels.
        to: a path, to which JSON lines are appended; a ``SummaryWriter``; a function of a record;
            or a list of these. The last records are in ``monitor.last`` anyway. An error of a
            destination or of a probe comes out of ``optimizer.step()``.
        batch_size: B, the number of examples in a gradient, over accumulated micro-batches and
            processes.
        model: whose parameters' names are taken for layers.
        named_parameters: instead of ``model``, (name, parameter) pairs.
        by_layer: whether there is a record for each parameter beside that for all.
        coordinates: most coordinates to read of a tensor; None for all.
        seed: of the choice of coordinates.
        probes: functions, by name, that compute more expensive figures, such as
            :func:`svag.diagnosis.monitoring.probes.within_batch_noise`. They are called in turn, at
            most one after a step, and share half of the budget. Their records say ``probe``.
        hook: whether to observe after each ``optimizer.step()`` by a hook.

    Attributes:
        last: the records of the last reading.
        readings: number of readings so far.

    Raises:
        InvalidOption: an option is outside its set, or the optimizer keeps no variance.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with svag.Monitor(optimizer, every=5, model=model, batch_size=8) as monitor:
        ...     for _ in range(5):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(8, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> [record["layer"] for record in monitor.last]
        ['all', 'weight', 'bias']
    """

    def __init__(
        self,
        optimizer: Optimizer,
        every: int = 100,
        budget: float | None = 0.02,
        *,
        to: Destination | Sequence[Destination] = (),
        batch_size: float | None = None,
        model: nn.Module | None = None,
        named_parameters: NamedParameters | None = None,
        by_layer: bool = True,
        coordinates: int | None = 4096,
        seed: int = 0,
        probes: Mapping[str, Probe] | None = None,
        hook: bool = True,
    ) -> None:
        if not (is_real(every) and every >= 1 and every % 1 == 0):
            raise InvalidOption(f"every={every!r} is not a number of steps, an integer >= 1")
        if batch_size is not None and not (is_real(batch_size) and 1 <= batch_size < math.inf):
            raise InvalidOption(f"batch_size={batch_size!r} is not a number of examples, B >= 1")
        _refuse_unless_probes(probes)
        names = names_of(model, named_parameters)
        self._averages = Averages(optimizer, names, coordinates=coordinates, seed=seed)
        self.every, self.budget, self.batch_size, self.by_layer = (
            every,
            budget,
            batch_size,
            by_layer,
        )
        self._sinks = sinks_of(to)
        self._allowance, self._allowance_of_probes = Allowance(budget), Allowance(budget)
        if probes and budget is not None:
            self._allowance, self._allowance_of_probes = (
                Allowance(budget / 2),
                Allowance(budget / 2),
            )
        self._probes = itertools.cycle((probes or {}).items())
        self._has_probes = bool(probes)
        self._scales: dict[str, RunningNoiseScale] = {}
        self._steps = self._read_at = self._probed_at = 0
        self.last: list[Record] = []
        self.readings = 0
        self._hook = None
        if hook:
            self._hook = self._averages.optimizer.register_step_post_hook(self._after_step)

    @property
    def spent(self) -> float:
        """Seconds that the monitor has taken so far."""
        return self._allowance.spent + self._allowance_of_probes.spent

    @property
    def overhead(self) -> float:
        """Share of the wall time that the monitor has taken since its first reading."""
        return self._allowance.used + self._allowance_of_probes.used

    def observe(self) -> None:
        """Note that a step was taken, and write records if it is time; hooks call this.

        Call it after ``optimizer.step()`` if the monitor was made with ``hook=False``.
        """
        self._steps += 1
        if self._steps - self._read_at >= self.every and self._allowance.is_open:
            self._read_at = self._steps
            with self._allowance.spending():
                self.last = self._records()
                self._write(self.last)
                self.readings += 1
        is_due = self._has_probes and self._steps - self._probed_at >= self.every
        if is_due and self._allowance_of_probes.is_open:
            self._probed_at = self._steps
            with self._allowance_of_probes.spending():
                self._write([self._probed()])

    def read(self) -> list[Record]:
        """Return records of the averages as they are now; outside of schedule and budget.

        They are not written, and noise scales are not averaged with earlier ones.
        """
        return self._records(smooth=False)

    def close(self) -> None:
        """Stop observing, and close files."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for sink in self._sinks:
            if isinstance(sink, JsonLines):
                sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            self.observe()

    def _records(self, *, smooth: bool = True) -> list[Record]:
        samples, step = self._averages.read(), self._averages.step or self._steps
        if not samples:
            return []
        every = [self._record(step, ALL, samples, smooth)]
        every[0]["overhead"] = self.overhead
        if self.by_layer:
            every += [self._record(step, sample.name, [sample], smooth) for sample in samples]
        return every

    def _record(self, step: float, layer: str, samples: Sequence[Sample], smooth: bool) -> Record:
        found = figures(samples)
        if self.batch_size is not None:
            new = RunningNoiseScale(self.batch_size)
            scale = self._scales.setdefault(layer, new) if smooth else new
            found["noise_scale"] = scale.add(found)
        return _record(step, layer, found)

    def _probed(self) -> Record:
        name, probe = next(self._probes)
        step = self._averages.step or self._steps
        found = probe()
        if not isinstance(found, Mapping) or not all(_is_number(x) for x in found.values()):
            raise InvalidOption(
                f"the probe {name!r} returned {found!r:.60}, not a dictionary of numbers by name"
            )
        return {**_record(step, ALL, found), "probe": name}

    def _write(self, records: Sequence[Record]) -> None:
        for record in records:
            for sink in self._sinks:
                sink(record)


def _refuse_unless_probes(probes: object) -> None:
    """Raise InvalidOption unless these are functions by name."""
    if probes is None:
        return
    if not isinstance(probes, Mapping) or not all(map(callable, probes.values())):
        raise InvalidOption(
            f"probes={probes!r:.60} are no functions by name; give a dictionary such as "
            '{"noise": within_batch_noise(model, batches, loss_fn)}'
        )


def _record(step: float, layer: str, found: Mapping[str, float]) -> Record:
    """Return a flat record; whole numbers are integers, and what is not finite is None."""
    numbers = {
        name: (int(value) if name in ("entries", "sampled") else float(value))
        if math.isfinite(value)
        else None
        for name, value in found.items()
    }
    return {"kind": "monitor", "step": int(step), "layer": layer, **numbers}


def _is_number(value: object) -> bool:
    return is_real(value) or (isinstance(value, Tensor) and value.numel() == 1)
