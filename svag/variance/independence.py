"""Do the examples of a mini-batch have gradients of their own? Replace all but one and see."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from svag.errors import PerExampleError
from svag.variance.interception import found_in, replaced, tensors_in
from svag.variance.layout import Layout, mark_of
from svag.variance.recorder import Recorder

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class IndependenceCheck:
    """Record one call of the model and the operations of the loss, and run them again.

    With every other example replaced by one of them, in the inputs of the model and then in the
    inputs of the loss, the outputs and the gradients of the one that stayed must stay. The targets
    stay as well, and so does what the loss computes from them alone, such as the number of tokens
    it divides by.

    Args:
        model: to be checked.
        recorder: says how many examples there are.
    """

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self.model, self.recorder = model, recorder
        self.done = False
        self.inputs: tuple[Any, dict[str, Any]] | None = None
        self.outputs: list[Tensor] = []
        self.kept: list[bool] = []
        self.tape: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def hooks(self) -> list[Any]:
        """Register the hooks that see the model's inputs and outputs."""
        return [self.model.register_forward_hook(self._returned, with_kwargs=True)]

    def _returned(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.done:
            self.inputs = args, kwargs
            every = _differentiable(output)
            self.kept = [_layout(t) is not None for t in every]
            self.outputs = [t for t in every if _layout(t)]
            self.tape = []

    def record(self, func: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> None:
        """Note an operation after the model's."""
        if self.outputs and not self.done:
            self.tape.append((func, args, kwargs, out))

    def before_backward(self, _: Any, __: Any, args: Sequence[Any], ___: Any) -> None:
        """Check, once, on the loss whose backward pass is about to run."""
        if self.done:
            return
        self.done = True
        loss = args[0]
        if self.inputs is None or not self.outputs:
            raise PerExampleError(
                "check_independence=True needs a call of the model itself before backward; call "
                "model(...) inside the context, or give check_independence=False"
            )
        self._refuse_packed()
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            self._check_loss(loss)
        self._check_model()
        self.outputs, self.tape, self.inputs = [], [], None

    def _refuse_packed(self) -> None:
        args, kwargs = self.inputs or ((), {})
        if any(True for _ in found_in((*args, *kwargs.values()), PackedSequence)):
            raise PerExampleError(
                "check_independence=True cannot replace examples of a PackedSequence, whose "
                "lengths differ; give the model padded sequences and pack inside, or give "
                "check_independence=False"
            )

    def _check_loss(self, loss: Tensor) -> None:
        order = _all_but_first_replaced(self.recorder.examples)
        plain = self._gradients(self.outputs, loss)
        other = self._gradients([_reordered(t, t, order) for t in self.outputs], loss)
        for t, a, b in zip(self.outputs, plain, other, strict=True):
            _compare("loss", "the gradient of its output", _first(t, a), _first(t, b))

    def _gradients(self, outputs: Sequence[Tensor], loss: Tensor) -> Sequence[Tensor]:
        fresh = [t.detach().clone().requires_grad_() for t in outputs]
        known = {id(t): f for t, f in zip(self.outputs, fresh, strict=True)}
        for func, args, kwargs, out in self.tape:
            again = func(*replaced(args, known), **replaced(kwargs, known))
            for old, new in zip(tensors_in((out,)), tensors_in((again,)), strict=True):
                known[id(old)] = new
        result = known.get(id(loss))
        if result is None or not result.requires_grad:
            raise PerExampleError(
                "check_independence=True could not run the loss again: it is computed inside the "
                "model, or in compiled code; compute it from the model's output, or give "
                "check_independence=False"
            )
        return torch.autograd.grad(result.sum(), fresh, materialize_grads=True)

    def _check_model(self) -> None:
        assert self.inputs is not None
        args, kwargs = self.inputs
        order = _all_but_first_replaced(self.recorder.examples)
        found = tensors_in((*args, *kwargs.values()))
        moved = {id(t): _reordered(t, t, order) for t in found if _layout(t)}
        plain = self._outputs(args, kwargs)
        other = self._outputs(replaced(args, moved), replaced(kwargs, moved))
        for t, a, b in zip(self.outputs, plain, other, strict=True):
            _compare("model", "its output", _first(t, a), _first(t, b))

    def _outputs(self, args: Any, kwargs: Any) -> list[Tensor]:
        state = torch.random.get_rng_state()
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        try:
            with torch._C.DisableTorchFunction(), torch.enable_grad():
                torch.manual_seed(0)
                out = _differentiable(self.model.forward(*args, **kwargs))
                return [t.detach() for t, keep in zip(out, self.kept, strict=True) if keep]
        finally:
            torch.random.set_rng_state(state)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _layout(tensor: Tensor) -> Layout | None:
    where = mark_of(tensor)
    return where if isinstance(where, Layout) else None


def _reordered(marked: Tensor, values: Tensor, order: Tensor) -> Tensor:
    """Take the examples of ``values``, which are where those of ``marked`` are, by index."""
    where = _layout(marked)
    assert where is not None
    rows = where.examples_first(values).index_select(0, order.to(values.device))
    inner = rows.shape[1] // where.outer
    parts = rows.unflatten(1, (where.outer, inner))
    back = parts.movedim((1, 0, 2), (where.dim, where.dim + 1, where.dim + 2))
    return cast(Tensor, back.flatten(where.dim, where.dim + 2))


def _first(marked: Tensor, values: Tensor) -> Tensor:
    where = _layout(marked)
    assert where is not None
    return where.examples_first(values)[0]


def _differentiable(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, dict) else (output,)
    return [t for t in tensors_in(values) if t.requires_grad]


def _all_but_first_replaced(examples: int) -> Tensor:
    """Return indices 0, 1, 1, ...: no permutation, under which a mixture may be invariant."""
    order = torch.ones(examples, dtype=torch.long)
    order[0] = 0
    return order if examples > 2 else order * 0


def _compare(what: str, which: str, before: Tensor, after: Tensor) -> None:
    bound = _TOLERANCE.get(before.dtype, 5e-2) * float(before.norm())
    if float((before - after).norm()) > bound:
        raise PerExampleError(
            f"the {what} mixes examples: {which} for the first example changed by "
            f"{float((before - after).norm()):.3g} (of {float(before.norm()):.3g}) when the other "
            "examples were replaced, so no example has a gradient of its own. Use "
            "svag.micro_batch_variance, whose groups may be mixed inside"
        )
