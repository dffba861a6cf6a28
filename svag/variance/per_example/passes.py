"""Handles calls of the model: where a pass begins and ends, and whether it is verified."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from svag.errors import PerExampleError
from svag.variance.per_example.checks.escapes import Escapes
from svag.variance.per_example.checks.loss_tape import LossTape
from svag.variance.per_example.checks.replacement import Replacement
from svag.variance.per_example.checks.verification import Verification, example_of
from svag.variance.per_example.inputs import Inputs
from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.marks import forget_addresses, mark, mark_of
from svag.variance.per_example.owners.operation import inside_model
from svag.variance.per_example.owners.placement import CONSTANT, IS_PLACED, Lost
from svag.variance.per_example.recording.functions import Call
from svag.variance.per_example.recording.hooked import view_differs
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.recording.recorder import Recorder
from svag.variance.per_example.schedule import kind_of, turn_of
from svag.variance.per_example.structures import rebuilt, tensors_in


class Passes:
    """Hooks on the modules of a model, and reactions to operations and backward passes.

    Args:
        model: the model.
        recorder: collects the contributions.
        inputs: marks the inputs of calls.
        check: True verifies every pass, False none, None the first and every ``every``-th.
        every: passes between two verified ones.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        inputs: Inputs,
        check: bool | None,
        every: int,
    ) -> None:
        self.model, self.recorder, self.inputs = model, recorder, inputs
        self.check, self.every = check, every
        self._depth = 0
        self._seen = -1  # number of backward passes when the current forward pass began
        self._tape: LossTape | None = None
        self._replacement: Replacement | None = None
        self._constant = False  # whether an output does not depend on the mini-batch
        self._escapes = Escapes(model)
        self._examples = 0  # of the call of the model that is running

    def hooks(self) -> list[Any]:
        """Register the hooks."""
        inside_model(False)
        handles: list[Any] = []
        for module in self.model.modules():
            handles.append(
                module.register_forward_pre_hook(Hook(self._enter), prepend=True, with_kwargs=True)
            )
            handles.append(
                module.register_forward_hook(Hook(self._leave), with_kwargs=True, always_call=True)
            )
        return handles

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        with torch._C.DisableTorchFunction():
            self._entered(module, args, kwargs)

    def _entered(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder = self.recorder
        if recorder.silent:
            return
        self._depth += 1
        recorder.inside = True
        inside_model(True)
        if self._depth > 1 or torch._C._current_graph_task_id() != -1:
            return
        if not torch.is_grad_enabled():
            return
        recorder.follow(self.model)
        recorder.calls += 1
        if self._seen != recorder.backwards:
            self._begin()
        followed = lambda t: recorder.source_of(t) is not None  # noqa: E731
        examples = self._examples = self.inputs.enter(module, args, kwargs, followed)
        self._escapes.begin((*args, *kwargs.values()))
        if examples:
            recorder.examples = examples
            self._plan(module, examples, args, kwargs)

    def _begin(self) -> None:
        """Reset the state at the start of a forward pass."""
        self._seen = self.recorder.backwards
        self._constant = False
        for buffer in self.model.buffers():
            mark(buffer, CONSTANT)  # a buffer may have a mark of an earlier mini-batch
        self.recorder.used_outside = False
        self.recorder.verification = self._tape = self._replacement = None
        forget_addresses()

    def _plan(self, module: nn.Module, examples: int, args: Any, kwargs: dict[str, Any]) -> None:
        """Decide whether this call is verified, and run it with others replaced if it is new."""
        recorder = self.recorder
        if self.check is False:
            return
        turn = turn_of(self.model, kind_of(self.model, module, examples, args, kwargs))
        if self._tape is None:
            self._tape = LossTape(example_of(turn, examples))
        if not self.check and turn % self.every != 0:
            return
        if recorder.verification is None:
            recorder.verification = Verification(examples, turn)
        example = recorder.verification.example
        if example < examples and (turn == 0 or self.check):
            recorder.silent = True
            try:
                self._replacement = Replacement(self.model, module, example, turn, args, kwargs)
            finally:
                recorder.silent = False

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return self._left(module, args, kwargs, output)

    def _left(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.recorder.silent:
            return None
        self._depth = max(0, self._depth - 1)
        self.recorder.inside = self._depth > 0
        inside_model(self._depth > 0)
        if self._depth or output is None or not torch.is_grad_enabled():
            return None
        if torch._C._current_graph_task_id() != -1:
            return None
        replacement, self._replacement = self._replacement, None
        if replacement is not None:
            self.recorder.silent = True
            try:
                replacement.compare(output)
            finally:
                self.recorder.silent = False
        if self.check is not False and self._examples:
            self._check_escapes(module, args, kwargs, output)
        for tensor in tensors_in((output,)):
            self._refuse_lost(module, tensor)
            self._constant |= tensor.requires_grad and state_of(tensor) is CONSTANT
        if self._tape is None:
            return None
        output = self._with_cuts(output)
        self._tape.outputs += [t for t in tensors_in((output,)) if t.requires_grad]
        return output

    def _check_escapes(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Call the model with others replaced if new lines of code read numbers from tensors.

        It takes several calls: a maximum, for one, changes only if the example that has it is
        replaced.
        """
        if not self._escapes.found((*args, *kwargs.values())):
            return
        self.recorder.silent = True
        try:
            for example in range(min(2, self._examples)):
                for turn in range(min(2, self._examples - 1)):
                    again = Replacement(
                        self.model, module, example, turn, args, kwargs, early=False
                    )
                    again.compare_without_dropout(output)
        finally:
            self.recorder.silent = False
        self._escapes.approve()

    def _refuse_lost(self, module: nn.Module, tensor: Tensor) -> None:
        """Raise in the backward pass if an output has a gradient but its mark is Lost."""
        where = state_of(tensor)
        if not isinstance(where, Lost) or not tensor.requires_grad:
            return
        why = (
            f"{type(module).__name__} returned a tensor of shape {tuple(tensor.shape)}, and which "
            f"of its rows belong to which example is not clear ({where}), so per-example gradients "
            "cannot be computed; write it with operations that svag follows, or use "
            "svag.micro_batch_variance"
        )
        recorder = self.recorder

        def arrived(_: Tensor) -> None:
            if not recorder.silent:
                raise PerExampleError(why)

        tensor.register_hook(arrived)

    def _with_cuts(self, output: Any) -> Any:
        """Return the outputs as aliases, to verify from if svag does not know the loss."""
        verification = self.recorder.verification
        if verification is None or not _is_plain(output):
            return output

        def alias(tensor: Tensor) -> Tensor:
            where = mark_of(tensor)
            if not isinstance(where, IS_PLACED) or not tensor.requires_grad:
                return tensor
            result = tensor.view_as(tensor)
            if not tensor._is_view():
                view_differs(result)
            mark(result, where)
            verification.outputs.append((result, where))
            return result

        return rebuilt(output, alias)

    # Called by the interception of operations.

    def record(self, func: Call, args: Any, kwargs: Any, out: Any) -> None:
        """Record an operation of the loss.

        Args:
            func: the function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            out: its result.
        """
        if self._depth:
            self._escapes.record(func, args)
        elif self._tape is not None and self._tape.outputs:
            self._tape.record(func, args, kwargs, out)

    def before_backward(
        self,
        roots: Sequence[Tensor],
        gradients: Sequence[Tensor | None] | None,
        mode: Interception,
    ) -> None:
        """Raise if the loss mixes examples; verify the pass if it is due.

        Args:
            roots: the tensors that the backward pass starts from.
            gradients: their gradients, as given to ``backward``; None for ones.
            mode: the interception, which can run autograd.

        Raises:
            PerExampleError: the loss mixes examples, or does not depend on them.
        """
        states = [state_of(t) for t in roots]
        for where in states:
            if isinstance(where, Lost) and where.mixed:
                raise PerExampleError(
                    f"the loss mixes the examples of the mini-batch ({where}), so no example has a "
                    "gradient of its own; use svag.micro_batch_variance, whose groups may be mixed "
                    "inside"
                )
        recorder = self.recorder
        recorder.fixed = all(
            s is CONSTANT and recorder.source_of(t) for s, t in zip(states, roots, strict=True)
        )
        if recorder.fixed and self._constant:
            raise PerExampleError(
                "the model returned something that does not depend on the mini-batch as far as "
                "svag sees, so its gradient belongs to no example; if a mask chose no example, "
                "leave this mini-batch out, or use svag.micro_batch_variance"
            )
        if torch._C._current_graph_task_id() != -1:
            return
        tape, self._tape = self._tape, None
        if tape is not None and (tape.is_new(self.model) or recorder.verification is not None):
            with torch._C.DisableTorchFunction():
                for root in roots:
                    tape.check(root)
                tape.approve(self.model)
        if recorder.verification is None:
            return
        seen = not any(isinstance(where, Lost) for where in states)
        with mode.retained.kept():
            recorder.verification.before_backward(roots, gradients, mode, recorder, seen=seen)


class Hook:
    """A hook that does nothing in copies of the module.

    Args:
        call: the hook; None for one that does nothing.
    """

    def __init__(self, call: Call | None = None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        """Call the hook."""
        return None if self.call is None else self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook()

    def __reduce__(self) -> tuple[type["Hook"], tuple[()]]:
        return Hook, ()


def _is_plain(output: Any) -> bool:
    """Whether a structure consists of built-in containers, so that it can be rebuilt."""
    if isinstance(output, Tensor):
        return type(output) is Tensor
    if type(output) in (tuple, list):
        return all(_is_plain(v) for v in output)
    if type(output) is dict:
        return all(_is_plain(v) for v in output.values())
    return not isinstance(output, dict | list | tuple)
