"""Makes torch differentiate a loss twice, and refuses losses for which it cannot.

Fused kernels have no second derivative: scaled dot-product attention other than its ``math``
backend, the recurrent layers of cuDNN and oneDNN, and graphs of ``torch.compile``. The second
derivative of weight norm is wrong (torch 2.13). The plain kernels, which are used instead, compute
the same function; only dropout inside attention may draw other masks.
"""

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from svag.errors import DissectionError

TWICE = "the loss cannot be differentiated twice, so its curvature is unknown"
FORWARD = "the forward pass fails with the plain kernels that second derivatives need"

_ONCE = once_differentiable(lambda *_: None).__code__
"""Code of every function that ``@once_differentiable`` returns."""


@contextlib.contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Switch fused kernels off that have no second derivative, and restore all switches at the end.

    cuDNN and oneDNN are switched off only for models with recurrent layers, since convolutions are
    slow without them.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with contextlib.ExitStack() as stack:
            if recurrent:
                stack.enter_context(_without_libraries())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_PlainWeightNorm())
            if "torch._dynamo" in sys.modules:  # slow to import, and nothing is compiled without it
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def _without_libraries() -> Iterator[None]:
    """Switch cuDNN and oneDNN off, by contexts: torch may forbid to set the flags themselves."""
    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn torch's errors into a DissectionError: what fails, and torch's reason, one sentence."""
    try:
        yield
    except DissectionError:
        raise
    except torch.OutOfMemoryError as error:
        raise DissectionError(
            f"second derivatives do not fit into memory: {_sentence(error)}. Give smaller batches"
        ) from error
    except RuntimeError as error:
        raise DissectionError(f"{what}: {_sentence(error)}") from error


def hidden_constants(loss: Tensor) -> list[str]:
    """Names of the custom Functions in a loss' graph that may keep tensors they have computed.

    What the forward pass of an ``autograd.Function`` computes has no graph, so torch takes it for
    constant when it differentiates the backward pass. Saved inputs that need no gradient cannot be
    told from such tensors.

    Raises:
        DissectionError: the backward pass of a Function is marked ``@once_differentiable``. torch
            itself raises only for gradients of all leaves, not for those of given parameters.
    """
    names = set()
    for node in _custom_nodes(loss):
        name = node.name().removesuffix("Backward")
        if getattr(node._forward_cls.backward, "__code__", None) is _ONCE:
            raise DissectionError(f"{TWICE}: {name}.backward is marked @once_differentiable")
        if _keeps_computed(node):
            names.add(name)
    return sorted(names)


def _custom_nodes(loss: Tensor) -> Iterator[Any]:
    """Yield the nodes of custom Functions in a loss' graph."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [earlier for earlier, _ in node.next_functions]
            if isinstance(node, BackwardCFunction):
                yield node


class _PlainWeightNorm(TorchFunctionMode):
    """Computes weight norm by operations whose second derivatives are right."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _keeps_computed(node: BackwardCFunction) -> bool:
    kept = [*node.saved_tensors, *vars(node).values()]
    return any(
        isinstance(t, Tensor) and t.is_floating_point() and not t.requires_grad for t in kept
    )


def _sentence(error: BaseException) -> str:
    """Return the first sentence of an error's message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[^.])\.\s", text, maxsplit=1)[0].rstrip(".")
