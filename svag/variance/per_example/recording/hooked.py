"""Hooks on tensors that are changed in place afterwards, and gradients of tensors inside the model.

When a tensor is changed in place, autograd drops its hooks if it is a view, else it keeps them.
svag returns views for some tensors that are none without it, and the other way round. A change of
such a tensor is refused once it has a hook.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.owners.marks import whole_of

NOTED = frozenset({Tensor.register_hook, Tensor.retain_grad})
"""Operations that :func:`note_hook` and :class:`Retained` record."""

_APART = "_svag_view_differs"
_HOOKED = "_svag_hooked"


def view_differs(tensor: Tensor) -> None:
    """Record that without svag the tensor might be a view, or might be none.

    Args:
        tensor: a tensor that the user gets instead of torch's.
    """
    setattr(tensor, _APART, True)


def note_hook(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Record a hook on a tensor of :func:`view_differs`; return whether it is one.

    Args:
        func: the operation.
        args: its arguments.
    """
    if func is not Tensor.register_hook or not getattr(args[0], _APART, False):
        return False
    setattr(whole_of(args[0]), _HOOKED, True)
    return True


def refuse_change(name: str, tensor: Any) -> None:
    """Raise if a tensor that has a hook, or shares memory with such a one, is to be changed.

    Args:
        name: name of the operation in place.
        tensor: its first argument.

    Raises:
        PerExampleError: it has a hook.
    """
    if isinstance(tensor, Tensor) and getattr(whole_of(tensor), _HOOKED, False):
        raise PerExampleError(
            f"{name} changes a tensor of shape {tuple(tensor.shape)} in place that has a hook "
            "(register_hook) and comes from the model or from a recurrent layer. autograd drops "
            "the hooks of a view that is changed, and what is a view differs under svag. Register "
            "the hook after the change, or write the change out of place"
        )


class Retained:
    """The tensors inside the model whose gradients the user wants (``retain_grad``)."""

    def __init__(self) -> None:
        self._tensors: list[weakref.ref[Tensor]] = []

    def note(self, func: Callable[..., Any], args: Sequence[Any]) -> None:
        """Record a tensor that ``retain_grad`` is called on."""
        if func is Tensor.retain_grad:
            self._tensors.append(weakref.ref(args[0]))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run a backward pass of svag's own, which must not change ``tensor.grad``."""
        tensors = [t for ref in self._tensors if (t := ref()) is not None]
        before = [None if t.grad is None else t.grad.clone() for t in tensors]
        try:
            yield
        finally:
            for tensor, grad in zip(tensors, before, strict=True):
                tensor.grad = grad
