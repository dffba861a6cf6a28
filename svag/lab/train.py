"""One run: a problem, a method, a step size, a seed -> a record.

Numerical failure is a status, not an exception: a run has diverged when a loss or an evaluation is
no longer a finite number, when an evaluation finds the training loss at more than
:data:`BLOW_UP` times its value before the first step, or when it ends above that value.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svag import optim
from svag.anatomy import method
from svag.errors import InvalidOption, RecordError, in_one_line
from svag.lab.agreement import Agreement
from svag.lab.records import Recorder, Run, Status
from svag.optim import Dissected
from svag.problems import Data, Problem, Split
from svag.variance.per_example import within_batch_variance

BLOW_UP = 10.0
_EVAL_BATCH = 1000
_HELD_OUT = 0.1

Figures = dict[str, float]


def train(
    problem: Problem,
    data: Data,
    run: Run,
    directory: Path,
    *,
    progress: Callable[[int], None] = lambda step: None,
) -> None:
    """Train once and record it; whatever ends the run is in the record as its status.

    Args:
        problem: the task.
        data: its data, as ``problem.load`` returned them.
        run: method, step size, seed and length.
        directory: its folder ``records`` receives the record.
        progress: called with the number of steps taken after each evaluation.

    Raises:
        KeyboardInterrupt: passed on after the record has been closed as interrupted.
        RecordError: the record cannot be written.
    """
    noted = {"source": problem.source, "threads": torch.get_num_threads()}
    with Recorder(directory, run, **noted) as recorder:
        started = time.perf_counter()
        figures: Figures = {}
        try:
            session = Session(problem, data, run)
            status: Status = "done"
            for step in session:
                figures = session.evaluate()
                recorder.eval(step, **figures)
                recorder.agreement(
                    step, session.agreement.correlations() if session.agreement else {}
                )
                progress(step)
                if session.blown_up(figures):
                    status = "diverged"
                    break
            if session.diverged:
                status, figures = "diverged", {}
            elif figures["train_loss"] > session.initial_loss:
                status = "diverged"
        except KeyboardInterrupt:
            recorder.end("interrupted", wall_time=_since(started))
            raise
        except RecordError:
            raise
        except Exception as error:
            recorder.end("error", message=in_one_line(error), wall_time=_since(started))
        else:
            recorder.end(status, step=session.step, **figures, wall_time=_since(started))


class Session:
    """A model in training: iterate to train, a step count at a time, to the next evaluation."""

    def __init__(self, problem: Problem, data: Data, run: Run) -> None:
        torch.manual_seed(run.seed)
        self.problem, self.run = problem, run
        self.model = problem.model()
        self.optimizer = optimizer_of(problem, self.model, run.method, run.lr)
        self.agreement = self._watch()
        self.step = 0
        self.diverged = False
        self.initial_loss = math.nan
        training, self.splits = _splits(data, run)
        self._batches = batches(training, run.batch_size, torch.Generator().manual_seed(run.seed))

    def __iter__(self) -> Iterator[int]:
        """Train, and stop before the first step and at each evaluation with the step count."""
        yield 0
        while self.step < self.run.steps and not self.diverged:
            stop = min(self.step + self.run.eval_every, self.run.steps)
            self.diverged = not self.advance(stop)
            if not self.diverged:
                yield self.step

    def advance(self, stop: int) -> bool:
        """Take steps until ``stop`` have been taken; False as soon as a loss is not finite."""
        problem, model, optimizer = self.problem, self.model, self.optimizer
        model.train()
        for step in range(self.step, stop):
            lr = self.run.lr * problem.schedule(step, self.run.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            inputs, targets = next(self._batches)
            optimizer.zero_grad()
            with self._recording():
                loss = problem.loss(model(inputs), targets)
                loss.backward()
            if not math.isfinite(loss.item()):
                return False
            optimizer.step()
            if self.agreement:
                self.agreement.observe()
            self.step = step + 1
        return True

    def _watch(self) -> Agreement | None:
        """Return what compares the estimates of the variance, where the method keeps its own."""
        optimizer = self.optimizer
        if isinstance(optimizer, Dissected) and "exp_avg_var" in optimizer.anatomy.buffers:
            return Agreement(self.model, optimizer)
        return None

    def _recording(self) -> AbstractContextManager[object]:
        """Return what estimates the gradients' variance, where the method asks for it."""
        if not method(self.run.method).anatomy.within_batch:
            return nullcontext()
        return within_batch_variance(self.model, check=self.step == 0)

    def evaluate(self) -> Figures:
        """Return losses on an equally large part of the training data and on the test data."""
        self.model.eval()
        figures: Figures = {}
        for name, split in self.splits.items():
            loss, accuracy = _means(self.problem, self.model, split)
            figures[f"{name}_loss"] = loss
            if name != "train":
                figures[f"{name}_accuracy"] = accuracy
        if self.step == 0:
            self.initial_loss = figures["train_loss"]
        return figures

    def blown_up(self, figures: Figures) -> bool:
        """Whether an evaluation is past all bounds."""
        finite = all(math.isfinite(value) for value in figures.values())
        return not (finite and figures["train_loss"] <= BLOW_UP * self.initial_loss)


def optimizer_of(problem: Problem, model: nn.Module, key: str, lr: float) -> Optimizer:
    """Build a method's optimizer; the problem's weight decay goes to weights, not to biases."""
    row = method(key)
    make: Callable[..., Optimizer] = getattr(optim, row.optimizer)
    if row.anatomy.within_batch:
        make = functools.partial(make, variance="within-batch")
    if problem.weight_decay == 0:
        return make(model.parameters(), lr=lr)
    weights = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    decayed = {"params": weights, "weight_decay": problem.weight_decay}
    return make([decayed, {"params": others}] if others else [decayed], lr=lr)


def batches(
    split: Split, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end, every epoch a new order; a last smaller batch is left out."""
    size = min(batch_size, len(split))
    while True:
        order = torch.randperm(len(split), generator=generator)
        for chosen in order[: len(split) // size * size].split(size):
            yield split.inputs[chosen], split.targets[chosen]


def _splits(data: Data, run: Run) -> tuple[Split, dict[str, Split]]:
    """Return what is trained on, and what is evaluated on, by the names of the figures."""
    training = data.train
    evaluated = {"test": data.test}
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
    if run.select == "validation":
        held_out = max(1, round(_HELD_OUT * len(training)))
        evaluated["validation"] = _part(training, order[:held_out])
        training = _part(training, order[held_out:])
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
    return training, {"train": _part(training, order[: len(data.test)]), **evaluated}


def _part(split: Split, chosen: Tensor) -> Split:
    return Split(split.inputs[chosen], split.targets[chosen])


@torch.no_grad()
def _means(problem: Problem, model: nn.Module, split: Split) -> tuple[float, float]:
    """Return mean loss and accuracy over a split."""
    loss = accuracy = 0.0
    parts = zip(split.inputs.split(_EVAL_BATCH), split.targets.split(_EVAL_BATCH), strict=True)
    for inputs, targets in parts:
        outputs = model(inputs)
        loss += len(inputs) * problem.loss(outputs, targets).item()
        accuracy += len(inputs) * float(problem.accuracy(outputs, targets))
    if not (math.isnan(accuracy) or 0 <= accuracy <= len(split)):
        raise InvalidOption(
            f"the accuracy of {problem.name!r} is {accuracy / len(split):.4g}; its contract is a "
            "figure in [0, 1], larger being better"
        )
    return loss / len(split), accuracy / len(split)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
