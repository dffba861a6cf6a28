"""The context manager: :class:`within_batch_variance`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from svag.errors import InvalidOption, PerExampleError, SvagError
from svag.variance.per_example.contributions.base import DEFAULT_MAX_BYTES
from svag.variance.per_example.inputs import Choice, Inputs
from svag.variance.per_example.operations import embedding_bag, layers, recurrent, rnn_cells
from svag.variance.per_example.operations.custom_functions import CustomFunctions
from svag.variance.per_example.operations.fallback import otherwise
from svag.variance.per_example.owners.marks import forget_marks
from svag.variance.per_example.passes import Passes
from svag.variance.per_example.recording.compiled_functions import as_written, refuse_failed
from svag.variance.per_example.recording.functions import Call
from svag.variance.per_example.recording.interception import Interception, Rule
from svag.variance.per_example.recording.recorder import Recorder
from svag.variance.per_example.schedule import CHECK_EVERY, forget_passes
from svag.variance.rescaling import follow_torch

_RULES = {**layers.RULES, **recurrent.RULES, **rnn_cells.RULES, **embedding_bag.RULES}
_ALWAYS: dict[Call, Rule] = {nn.functional.batch_norm: layers.refuse_training}
_open: list["within_batch_variance"] = []


class within_batch_variance(AbstractContextManager["within_batch_variance"]):  # noqa: N801
    """Set ``p.grad_var`` to the unbiased variance of each entry of ``p.grad``.

    With c_k the contribution of example k of B to p.grad = sum_k c_k, for any scaling of the loss:

        grad_var = (B sum_k c_k^2 - p.grad^2) / (B - 1)        (supplement, section 4)

    Forward and backward pass have to run inside; there may be several of them. If gradients
    accumulate over several backward passes, the batches count as independent and their variances
    add up; a gradient from before without a variance counts as a constant. Frozen parameters cost
    nothing.

    **What is guaranteed.** ``p.grad`` is the same as outside the context, bit for bit, except that
    layers with a closed form sum over examples in another order. ``grad_var`` is right, or an error
    names the operation. For every tensor svag keeps track of which example each row belongs to,
    through views, masks, indices, sorts and scatters. It does not guess by shape, and refuses
    operations that mix examples.

    **How it is checked.** The first pass for each model, mode and kind of input, and every
    ``check_every``-th after it, is verified in three ways. A backward pass with the output gradient
    of one random example alone must give svag's contribution of that example to every parameter. If
    the loss is computed again with the other examples' outputs replaced, the example's output
    gradient must not change; this is also checked when the operations of the loss are new. The
    contributions must add up to ``p.grad``, which in a verified pass is autograd's, bit for bit. In
    the first pass, with ``check=True``, and where the model reads numbers from tensors in a line of
    code that is new, the model is also called again with the other examples replaced; attributes,
    buffers and generators are restored. A verified pass costs one to two plain passes more. If the
    model returns the loss itself, only the first and the third check are possible. ``check=False``
    skips verification; operations that are known to mix examples are still refused.

    Checkpointing (``use_reentrant=False``) works, and so do custom ``autograd.Function`` classes.
    Uses of a parameter in scripted code are invisible to svag; the contributions then do not add
    up, which is an error in every pass. Second derivatives are refused, and so are gradients that
    add up over several backward passes of one forward pass.

    Memory beyond plain training: ``max_bytes`` of per-example gradients, on a CPU no more than
    4 MiB per thread, which fits the caches; copies of one layer's input and output gradient, from
    which they are computed; and for a parameter that is used more than once, its inputs and output
    gradients until the end of the backward pass.

    Args:
        model: the model whose parameters get a variance. Call it, or its submodules, inside.
        batch_dim: dimension of the inputs that holds the examples.
        max_bytes: most bytes of per-example gradients at a time, but at least one example's. None
            is 256 MiB.
        check: True verifies every pass, False none, None the first and every ``check_every``-th.
        check_every: passes between two verified ones, counted over all contexts for each model,
            mode and kind of input.
        examples: which arguments hold the examples: a position, a name, a list of these, or a
            function of (position or name, tensor) that returns whether it does. None: all tensors,
            which then have to agree in the number of examples.
        second_moments: whether to collect sum_k c_k^2 in :attr:`second_moments`.
        per_example: names of parameters whose c_k are kept in :attr:`per_example`.

    Attributes:
        second_moments: sum_k c_k^2 of the last backward pass, by parameter name.
        per_example: c_k of the last backward pass, ``(B, *shape)``, by parameter name.

    Raises:
        InvalidOption: (a ValueError) an option is out of range, a name is not a parameter's, or
            the inputs disagree in the number of examples.
        PerExampleError: (a RuntimeError) contexts are nested, gradients are off, or no backward
            pass ran inside; or per-example gradients do not exist, as with batch normalisation in
            training mode; or svag did not see a use of a parameter.
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
        check: bool | None = None,
        check_every: int = CHECK_EVERY,
        examples: Choice = None,
        second_moments: bool = False,
        per_example: Sequence[str] = (),
    ) -> None:
        if batch_dim < 0:
            raise InvalidOption(f"batch_dim={batch_dim}: count from the front, 0 or more")
        if max_bytes is not None and max_bytes < 1:
            raise InvalidOption(f"max_bytes={max_bytes}: give at least 1, or None for 256 MiB")
        if check_every < 1:
            raise InvalidOption(f"check_every={check_every}: give 1 or more, or check=False")
        if not isinstance(model, nn.Module):
            raise InvalidOption(
                f"within_batch_variance follows a model, a torch.nn.Module, not a "
                f"{type(model).__name__}; svag.micro_batch_variance takes parameters"
            )
        _refuse_compiled(model)
        self._model, self._check, self._check_every = model, check, check_every
        self._inputs = Inputs(batch_dim, examples)
        self._kept = _known(model, per_example)
        self._max_bytes = DEFAULT_MAX_BYTES if max_bytes is None else max_bytes
        self._squares = second_moments
        self._handles: list[Any] = []
        self._recorder: Recorder | None = None
        self._mode: Interception | None = None
        self._custom: CustomFunctions | None = None
        self._as_written: AbstractContextManager[object] | None = None

    @property
    def second_moments(self) -> dict[str, Tensor]:
        """sum_k c_k^2 of the last backward pass, by parameter name."""
        return self._recorder.second_moments if self._recorder else {}

    @property
    def per_example(self) -> dict[str, Tensor]:
        """c_k of the last backward pass, by parameter name."""
        return self._recorder.per_example if self._recorder else {}

    def start(self) -> Self:
        """Open the context: follow forward and backward passes of the model from here on."""
        self._refuse_start()
        follow_torch()
        forget_marks()
        recorder = self._recorder = Recorder(
            self._model,
            self._max_bytes,
            self._kept,
            self._squares,
            check=self._check is not False,
        )
        passes = Passes(self._model, recorder, self._inputs, self._check, self._check_every)
        self._mode = Interception(recorder, _RULES, otherwise, _ALWAYS, passes)
        self._handles = passes.hooks()
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        self._custom = CustomFunctions(self._mode)
        self._custom.start()
        self._as_written = as_written()
        self._as_written.__enter__()
        _open.append(self)
        return self

    def stop(self) -> None:
        """Close the context: stop following the model and remove all hooks."""
        if self not in _open:
            return
        _open.remove(self)
        if self._as_written is not None:
            self._as_written.__exit__(None, None, None)
        recorder = self._recorder
        for handle in (*(recorder.handles if recorder else ()), *self._handles):
            handle.remove()
        self._handles.clear()
        if self._custom is not None:
            self._custom.stop()
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
        if isinstance(error, SvagError):
            forget_passes(self._model)
        refuse_failed(error)
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


def _refuse_compiled(model: nn.Module) -> None:
    """Raise if the model is compiled, so that svag cannot see its operations."""
    for name, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or "_orig_mod" in module._modules:
            what = f"submodule {name!r}" if name else "model"
            raise PerExampleError(
                f"the {what} is compiled (torch.compile), so its operations cannot be seen; give "
                "the model as it was before, and compile the step of the optimizer alone, or use "
                "svag.micro_batch_variance, which works for compiled models"
            )


def _known(model: nn.Module, names: Sequence[str]) -> Sequence[str]:
    known = {name for name, p in model.named_parameters() if p.requires_grad}
    for name in names:
        if name not in known:
            raise InvalidOption(
                f"per_example: {name!r} is no trainable parameter of the model; there are "
                f"{', '.join(sorted(known))}"
            )
    return tuple(names)
