"""A run in progress: the model, its optimizers, its batches, and the number of steps taken."""

import contextlib
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from svag.entrants import entrant
from svag.errors import ProblemError
from svag.lab.agreement import Agreement
from svag.lab.batches import Batches
from svag.lab.cuda_graph import WARM_UP, Captured, Finite
from svag.lab.devices import device_of
from svag.lab.evaluation import Evaluation, Figures, splits_of, subset
from svag.lab.optimizers import build
from svag.lab.resuming import Resumable, generators, set_generators
from svag.lab.run import Run
from svag.lab.step_state import NotResumable, State
from svag.optim import Dissected
from svag.problems import Data, Problem, Split, supervised
from svag.problems.nested import mapped, tensors
from svag.problems.seeding import seed_everything
from svag.problems.steps import Context, Step, afresh, micro_batched
from svag.variance.per_example import CHECK_EVERY, within_batch_variance

_TRAINED: MutableMapping[nn.Module, None] = WeakIdKeyDictionary()
"""The modules that runs of this process have trained, as long as they exist."""

_LOOK_EVERY = 50
"""Steps between two checks that losses on a GPU are finite; each check makes the host wait."""


class Session:
    """A run in progress. Iterating trains it, and stops at every evaluation with the step count.

    Attributes:
        step: steps taken so far.
        diverged: whether a loss or a parameter is no longer finite.
        evaluates_all: whether evaluations during the run already use all examples.
    """

    def __init__(self, problem: Problem, data: Data, run: Run, *, captured: bool = False) -> None:
        """Build it; with ``captured`` the step is a CUDA graph, see :func:`captures`."""
        seed_everything(run.seed)
        self.problem, self.run = problem, run
        self.device = device_of(run.device)
        self.model = self._fresh_model()
        if run.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._entrant = entrant(run.method)
        self.optimizers = self._optimizers()
        self._lrs = [[float(g["lr"]) for g in o.param_groups] for o in self.optimizers]
        self._factor = 1.0
        self.agreement = self._watch()
        self.step, self.diverged = 0, False
        self._began = 0
        in_order = problem.carry_state
        training, evaluated = splits_of(data.to(self.device), run, in_order=in_order)
        self._batches = Batches(
            training,
            run.batch_size,
            seed=run.seed,
            augment=problem.augment,
            prepare=problem.prepare,
            in_order=in_order,
            at_epoch=self._forget,
        )
        count = run.eval_examples and max(run.eval_examples, run.batch_size if in_order else 1)
        some = {name: subset(s, count, in_order=in_order) for name, s in evaluated.items()}
        self._evaluation = self._evaluation_on(some, data)
        self._evaluation_in_full = self._evaluation_on(evaluated, data)
        self.evaluates_all = all(some[name] is evaluated[name] for name in some)
        self._own_step = None if problem.step is None else afresh(problem.step)
        self._take_step = self._step_function()
        self._finite_losses = Finite(self.device)
        functions = {
            name: getattr(problem, name) for name in ("loss", "augment", "prepare", "schedule")
        }
        self._resumable = Resumable(self.model, self.optimizers, self._own_step, functions)
        self._resumed = self._as_left = False
        self._captured = captured
        if captured:
            self._capture()

    def __iter__(self) -> Iterator[int]:
        """Train; yield the step count before the first step and at each evaluation."""
        return self.stops()

    def stops(self, due: Callable[[], None] = lambda: None) -> Iterator[int]:
        """Iterate in the same way; ``due`` is called before every step, and may save the state."""
        if not self._resumed:
            yield 0
        every = self.run.eval_every
        while self.step < self.run.steps and not self.diverged:
            stop = min(self.step // every * every + every, self.run.steps)
            self.diverged = not self.advance(stop, due)
            if not self.diverged:
                yield self.step

    def advance(self, stop: int, due: Callable[[], None] = lambda: None) -> bool:
        """Take steps until ``stop`` have been taken; return False once a loss is not finite.

        Args:
            stop: step count to reach.
            due: called before every step.
        """
        if not self._as_left:  # a checkpoint has restored the modules' modes
            self.model.train()
        self._as_left = False
        _TRAINED.update(dict.fromkeys(_trainable(self.model)))
        schedule, steps = self.problem.schedule, self.run.steps
        for step in range(self.step, stop):
            due()
            self._set_step_size(schedule(step, steps))
            loss = self._take_step(self.model, self._batches, self.optimizers)
            if not self._is_finite(loss, look=step + 1 == stop or (step + 1) % _LOOK_EVERY == 0):
                return False
            if self.problem.carry_state:
                self._detach()
            if self.agreement:
                self.agreement.observe()
            self.step = step + 1
        return True

    def _is_finite(self, loss: Tensor | float, *, look: bool) -> bool:
        """Whether this and earlier losses are finite; on a GPU only checked with ``look``."""
        if not isinstance(loss, Tensor) or self.device.type == "cpu":
            return math.isfinite(self._number(loss))
        self._finite_losses.observe(loss)
        if not look or self._finite_losses:
            return True
        self.step = self._began + self._finite_losses.count
        return False

    def evaluate(self, *, full: bool = False) -> Figures:
        """Return the figures of the evaluated splits; ``carried_state`` is not changed.

        Args:
            full: whether to evaluate all examples, instead of ``run.eval_examples``.
        """
        evaluation = self._evaluation_in_full if full else self._evaluation
        if not self._finite():
            self.diverged = True
            return evaluation.nothing()
        carried = getattr(self.model, "carried_state", None)
        self.model.eval()
        # Every evaluation draws the same random numbers and leaves the generators unchanged.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            figures = evaluation.figures(self.model)
        if self.problem.carry_state:
            setattr(self.model, "carried_state", carried)  # noqa: B010
        self.diverged = self.diverged or not all(math.isfinite(value) for value in figures.values())
        return figures

    def state_dict(self) -> State:
        """Return the state from which the run can continue.

        Raises:
            NotResumable: the model, an optimizer or the step has state that cannot be saved.
        """
        if not self._finite_losses:
            raise NotResumable("a loss was not finite")
        return {
            **self._resumable.state_dict(),
            "taken": self.step,
            "factor": self._factor,
            "batches": self._batches.state_dict(),
            "generators": generators(self.device),
            "agreement": self.agreement.state_dict() if self.agreement else None,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state of a session of the same run."""
        self._resumable.load_state_dict(state)
        if self._captured:  # the state may be of an attempt without a CUDA graph
            self._on_the_device()
        self.step, self._factor, self._resumed = state["taken"], state["factor"], True
        self._as_left = True
        self._began = self.step
        self._batches.load_state_dict(state["batches"])
        if self.agreement:
            self.agreement.load_state_dict(state["agreement"])
        set_generators(state["generators"], self.device)

    def _evaluation_on(self, splits: dict[str, Split], data: Data) -> Evaluation:
        problem = self.problem
        return Evaluation(
            problem,
            problem.judged_by(data),
            splits,
            batch_size=self.run.batch_size if problem.carry_state else None,
            precision=self.precision,
        )

    def _finite(self) -> bool:
        params = [p for p in self.model.parameters() if p.is_floating_point() or p.is_complex()]
        return all(p.isfinite().all().item() for p in params)

    def _fresh_model(self) -> nn.Module:
        """Build the model on the device; refuse one that cannot be trained, or was before."""
        model, name = self.problem.model(), self.problem.name
        if not isinstance(model, nn.Module):
            raise ProblemError(
                f"the model function of {name!r} returned {type(model).__name__} instead of a "
                "torch.nn.Module"
            )
        trainable = _trainable(model)
        if not trainable:
            raise ProblemError(
                f"the model of {name!r} has no parameter that requires a gradient, so there is "
                "nothing to train"
            )
        if any(module in _TRAINED for module in trainable):
            raise ProblemError(
                f"the model function of {name!r} returned a model, or a part of one, that an "
                "earlier run has trained; have it build a new one at every call, for instance with "
                "copy.deepcopy"
            )
        return model.to(self.device)

    def _optimizers(self) -> list[Optimizer]:
        """Build the problem's optimizers, or one for all parameters."""
        if self.problem.optimizers is None:
            return [self._make(self.model.parameters())]
        built = list(self.problem.optimizers(self.model, self._make))
        if not built or not all(isinstance(one, Optimizer) for one in built):
            raise ProblemError(
                f"optimizers of {self.problem.name!r} returned {built!r}; return a list of what "
                "make() built"
            )
        return built

    def _make(self, params: Any, *, lr_factor: float = 1.0) -> Optimizer:
        return build(self._entrant, self._groups(params), lr=self.run.lr * lr_factor)

    def _groups(self, params: Any) -> Any:
        """Return parameters or groups; with weight decay, weights and others in separate groups.

        A method's own ``weight_decay`` replaces the problem's, on the same parameters. A group that
        states its own keeps it.
        """
        given = self._entrant.options.get("weight_decay")
        decay = self.run.weight_decay if given is None else float(given)  # type: ignore[arg-type]
        if decay == 0 or (given is not None and self._entrant.outside):
            return params
        params = [params] if isinstance(params, Tensor) else list(params)
        groups = params if params and isinstance(params[0], dict) else [{"params": params}]
        return [part for group in groups for part in _parted(group, decay)]

    def _set_step_size(self, factor: float) -> None:
        if factor == self._factor:
            return
        if not _is_factor(factor):
            raise ProblemError(
                f"the schedule of {self.problem.name!r} returned {factor!r:.60} at step "
                f"{self.step} of {self.run.steps}; return a finite number of at least 0"
            )
        self._factor = factor
        for optimizer, lrs in zip(self.optimizers, self._lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr * factor)
                else:
                    group["lr"] = lr * factor

    def _watch(self) -> Agreement | None:
        """Return an :class:`Agreement` if the method averages within-batch variances, else None."""
        optimizer = self.optimizers[0]
        if isinstance(optimizer, Dissected) and "exp_avg_var" in optimizer.anatomy.buffers:
            return Agreement(self.model, optimizer)
        return None

    def _step_function(self) -> Step:
        """Return the problem's own step, or the default step that the method needs."""
        if self._own_step is not None:
            return self._with_precision(self._own_step)
        if not self._entrant.within_batch:
            return supervised(self.problem.loss, self.precision)
        self.model.train()  # a model may override train() to keep BatchNorm in evaluation mode
        if any(isinstance(m, _BatchNorm) and m.training for m in self.model.modules()):
            return micro_batched(self.problem.loss, self.precision)
        return supervised(self.problem.loss, self.precision, self._recording)

    def _capture(self) -> None:
        """Replace the step by a CUDA graph; move values that change at every step to the device."""
        self._on_the_device()
        self._take_step = Captured(self._take_step, self.device, self._resumable.digests)

    def _on_the_device(self) -> None:
        """Move step sizes and step counts to the device, where a graph reads them."""
        if self.device.type != "cuda":
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
                group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
            for state in optimizer.state.values():
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].to(self.device)

    def _with_precision(self, own: Step) -> Step:
        def step(model: nn.Module, batches: Any, optimizers: Sequence[Optimizer]) -> Tensor | float:
            with self.precision():
                # autocast's cache of cast weights would be stale after an update of the weights.
                torch.set_autocast_cache_enabled(False)
                return own(model, batches, optimizers)

        return own if self.run.autocast is None else step

    def _recording(self) -> contextlib.AbstractContextManager[object]:
        return within_batch_variance(self.model, check=self.step % CHECK_EVERY == 0)

    @property
    def precision(self) -> Context:
        """What returns the context of a forward pass, such as autocast."""
        if self.run.autocast is None:
            return contextlib.nullcontext
        dtype = getattr(torch, self.run.autocast)
        return lambda: torch.autocast(self.device.type, dtype=dtype)

    def _number(self, loss: Tensor | float) -> float:
        try:
            return loss.item() if isinstance(loss, Tensor) else float(loss)
        except (TypeError, ValueError, RuntimeError):
            raise ProblemError(
                f"the step of {self.problem.name!r} returned {type(loss).__name__}; return the "
                "loss, a number or a tensor of one element"
            ) from None

    def _forget(self) -> None:
        if self.problem.carry_state:
            setattr(self.model, "carried_state", None)  # noqa: B010

    def _detach(self) -> None:
        carried = getattr(self.model, "carried_state", None)
        if any(isinstance(t, Tensor) and t.requires_grad for _, t in tensors(carried)):
            setattr(self.model, "carried_state", mapped(Tensor.detach, carried))  # noqa: B010


def captures(problem: Problem, data: Data, run: Run) -> bool:
    """Whether the step of a run can be a CUDA graph; it is tried on the device.

    It must be the default step, with one optimizer of svag's and without carried state or
    within-batch variance.

    Args:
        problem: the problem.
        data: its data.
        run: a run on a CUDA device.
    """
    one = entrant(run.method)
    own = problem.step or problem.optimizers or problem.carry_state
    if own or one.outside or one.within_batch:
        return False
    try:
        Session(problem, data, run, captured=True).advance(min(WARM_UP + 2, run.steps))
    except Exception:  # if the problem itself raises, its run will record the error
        return False
    return True


def _is_factor(value: Any) -> bool:
    """Whether a value can be the factor on a step size."""
    try:
        return not isinstance(value, str) and 0 <= float(value) < math.inf
    except (TypeError, ValueError, RuntimeError):
        return False


def _trainable(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have parameters of their own to train."""
    return [
        module
        for module in model.modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    ]


def _parted(group: dict[str, Any], decay: float) -> list[dict[str, Any]]:
    """Split a group of parameters into weights, which decay, and others."""
    if "weight_decay" in group:
        return [group]
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    parts = (
        {**group, "params": [p for p in params if (p.ndim >= 2) == decays], "weight_decay": factor}
        for decays, factor in ((True, decay), (False, 0.0))
    )
    return [part for part in parts if part["params"]]
