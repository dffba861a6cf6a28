"""The within-batch variance of gradients, from the gradients of single examples."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from svag.errors import InvalidOption, PerExampleError
from svag.variance import bags, cells, layers, recurrent
from svag.variance.contributions import DEFAULT_MAX_BYTES, refuse_one
from svag.variance.generic import otherwise
from svag.variance.independence import IndependenceCheck
from svag.variance.interception import Call, Interception, Rule, found_in, tensors_in
from svag.variance.layout import (
    CONSTANT,
    Layout,
    Packed,
    depends_on_batch,
    forget_marks,
    mark,
    mark_of,
)
from svag.variance.recorder import Recorder

_RULES = {**layers.RULES, **recurrent.RULES, **cells.RULES, **bags.RULES}
_open: list["within_batch_variance"] = []


class within_batch_variance(AbstractContextManager["within_batch_variance"]):  # noqa: N801
    """Leave ``p.grad_var``, the unbiased variance of each entry of ``p.grad``, beside ``p.grad``.

    With c_k what example k of B contributes to p.grad = sum_k c_k, whatever the loss divides by:

        grad_var = (B sum_k c_k^2 - p.grad^2) / (B - 1)        (supplement, section 4)

    Forward and backward pass both run inside, any number of them. Gradients that accumulate over
    several backward passes are sums over independent batches, so their variances add up; a
    gradient that had no variance before counts as fixed. Frozen parameters cost nothing.

    Every torch operation on a parameter is seen, in whatever module it stands: dense,
    convolution, embedding, normalisation and recurrent layers have closed forms; others, and
    functional uses such as ``h @ embedding.weight.T``, go by broadcasting or by ``torch.func.vmap``
    of the operation. Uses in a custom ``autograd.Function``, in scripted code or under reentrant
    checkpointing are not seen; ``check`` finds them. Second derivatives do not pass. Sequences of
    several lengths are told apart in a ``PackedSequence``.

    Memory beyond plain training: ``max_bytes`` of per-example gradients, on a CPU no more than
    4 MiB a thread, which fits the caches; the copies of one layer's input and output gradient that
    they are made from; and for a parameter used more than once its inputs and output gradients
    until the end of the backward pass.

    Args:
        model: whose parameters get a variance. Call it, or its submodules, inside.
        batch_dim: dimension of the inputs that holds the examples.
        max_bytes: for per-example gradients held at once; at least one example is. None is 256 MiB.
        check: compare contributions and gradient in each parameter's first backward pass.
        check_independence: before the first backward pass, run model and loss again with all but
            one example replaced, and see that this one's gradients stay: finds a loss or a model
            that mixes examples, which ``check`` cannot. Costs two forward passes.
        second_moments: also collect sum_k c_k^2, in :attr:`second_moments`.
        per_example: names of parameters whose c_k are kept, in :attr:`per_example`.

    Attributes:
        second_moments: sum_k c_k^2 of the last backward pass, by parameter name.
        per_example: c_k of the last backward pass, ``(B, *shape)``, by parameter name.

    Raises:
        InvalidOption: (a ValueError) an option is out of range, or a name is not a parameter's.
        PerExampleError: (a RuntimeError) contexts are nested, gradients are off, no backward pass
            ran inside; or single examples have no gradient, as with batch normalisation in
            training mode; or a use of a parameter was not seen.
        TooFewSamples: (a RuntimeError) the mini-batch has one example.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from svag.variance import within_batch_variance
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.zeros(2, 1)
        >>> _ = nn.init.ones_(model.weight)
        >>> with within_batch_variance(model):
        ...     nn.functional.mse_loss(model(x), y).backward()
        >>> model.weight.grad, model.weight.grad_var
        (tensor([[16., 10.]]), tensor([[196., 100.]]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_dim: int = 0,
        max_bytes: int | None = None,
        check: bool = True,
        check_independence: bool = False,
        second_moments: bool = False,
        per_example: Sequence[str] = (),
    ) -> None:
        if batch_dim < 0:
            raise InvalidOption(f"batch_dim={batch_dim}: count from the front, 0 or more")
        if max_bytes is not None and max_bytes < 1:
            raise InvalidOption(f"max_bytes={max_bytes}: give at least 1, or None for 256 MiB")
        self._model, self._batch_dim, self._check = model, batch_dim, check
        self._kept = _known(model, per_example)
        self._max_bytes = DEFAULT_MAX_BYTES if max_bytes is None else max_bytes
        self._independence = check_independence
        self._squares = second_moments
        self._handles: list[Any] = []
        self._recorder: Recorder | None = None
        self._mode: Interception | None = None
        self._independent: IndependenceCheck | None = None

    @property
    def second_moments(self) -> dict[str, Tensor]:
        """sum_k c_k^2 of the last backward pass, by parameter name."""
        return self._recorder.second_moments if self._recorder else {}

    @property
    def per_example(self) -> dict[str, Tensor]:
        """c_k of the last backward pass, by parameter name."""
        return self._recorder.per_example if self._recorder else {}

    def start(self) -> Self:
        """Begin to follow the model; forward and backward passes count from here on."""
        self._refuse_start()
        forget_marks()
        recorder = Recorder(self._model, self._max_bytes, self._check, self._kept, self._squares)
        always: dict[Call, Rule] = {nn.functional.batch_norm: layers.refuse_training}
        if self._independence:
            self._independent = IndependenceCheck(self._model, recorder)
            always[Tensor.backward] = self._independent.before_backward
        self._recorder = recorder
        self._mode = Interception(recorder, _RULES, otherwise, always, self._independent)
        for buffer in self._model.buffers():
            mark(buffer, CONSTANT)
        self._handles = [*recorder.hooks(), *self._entries()]
        if self._independent is not None:
            self._handles += self._independent.hooks()
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        _open.append(self)
        return self

    def stop(self) -> None:
        """Stop following the model and remove every hook."""
        if self not in _open:
            return
        _open.remove(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        recorder = self._recorder
        if kind is None and recorder and recorder.examples and not recorder.backwards:
            raise PerExampleError(
                "the model ran inside within_batch_variance, but no backward pass did; call "
                "loss.backward() before the context closes"
            )

    def _refuse_start(self) -> None:
        if _open:
            raise PerExampleError(
                "within_batch_variance is already open, and two of them would count every "
                "example twice; close the outer one first"
            )
        if not torch.is_grad_enabled():
            raise PerExampleError(
                "gradients are switched off (torch.no_grad or inference_mode), so there will be "
                "none to take the variance of; open within_batch_variance outside of it"
            )

    def _entries(self) -> list[Any]:
        """Hook every module, so that whatever comes in from outside is marked."""
        return [
            module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
            for module in self._model.modules()
        ]

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Mark the tensors that come from outside: the model's inputs, and unmarked ones."""
        recorder = self._recorder
        if recorder is None:
            return
        packs = list(found_in((*args, *kwargs.values()), PackedSequence))
        apart = {id(t) for pack in packs for t in pack}
        given = [t for t in tensors_in((*args, *kwargs.values())) if id(t) not in apart]
        outermost = module is self._model
        counts = [count for count in map(_mark_packed, packs) if count]
        if counts and (outermost or not recorder.examples):
            recorder.examples = counts[0]
        fresh = (None, CONSTANT) if outermost else (None,)
        new = [t for t in given if mark_of(t) in fresh and recorder.source_of(t) is None]
        if outermost:
            self._refuse_ragged((*args, *kwargs.values()))
        if new and not counts and (outermost or not recorder.examples):
            recorder.examples = self._count(module, new)
            if recorder.examples == 0:
                refuse_one(0)
        for tensor in new:
            size = tensor.shape[self._batch_dim] if tensor.dim() > self._batch_dim else None
            ours = size == recorder.examples
            mark(tensor, Layout(self._batch_dim, recorder.examples) if ours else CONSTANT)

    def _refuse_ragged(self, values: Any) -> None:
        """Refuse a list with one tensor for each example, as far as that can be told."""
        for value in values:
            if isinstance(value, list):
                tensors = [t for t in value if isinstance(t, Tensor) and t.dim() > self._batch_dim]
                if len({t.shape[self._batch_dim] for t in tensors}) > 1:
                    raise InvalidOption(
                        f"the model was given a list of tensors of which dimension "
                        f"{self._batch_dim} differs in size, so it cannot be the one that holds "
                        "the examples; give one tensor, padded, or a PackedSequence"
                    )

    def _count(self, module: nn.Module, tensors: Sequence[Tensor]) -> int:
        sizes = [t.shape[self._batch_dim] for t in tensors if t.dim() > self._batch_dim]
        if sizes:
            return sizes[0]
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise InvalidOption(
            f"batch_dim={self._batch_dim}: {type(module).__name__} was given tensors of shape "
            f"{shapes}, none of which has that dimension; give the one that holds the examples"
        )


def _mark_packed(sequences: PackedSequence) -> int:
    """Mark sequences of several lengths; return how many there are if they are new."""
    where = mark_of(sequences.data)
    fresh = not depends_on_batch(sequences.data)
    if fresh:
        sorted_by_torch = sequences.unsorted_indices is not None
        where = Packed(sequences.batch_sizes, int(sorted_by_torch))
        mark(sequences.data, where)
    if isinstance(where, Packed):
        where.sort_out(sequences.unsorted_indices)
    for rest in (sequences.batch_sizes, sequences.sorted_indices, sequences.unsorted_indices):
        if rest is not None:
            mark(rest, CONSTANT)
    return where.examples if fresh and isinstance(where, Packed) else 0


def _known(model: nn.Module, names: Sequence[str]) -> Sequence[str]:
    known = {name for name, p in model.named_parameters() if p.requires_grad}
    for name in names:
        if name not in known:
            raise InvalidOption(
                f"per_example: {name!r} is no trainable parameter of the model; there are "
                f"{', '.join(sorted(known))}"
            )
    return tuple(names)
