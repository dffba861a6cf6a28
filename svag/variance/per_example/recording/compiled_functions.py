"""Compiled functions that the model or the loss calls: they run as written while svag follows them.

torch.compile would trace svag's own code with the function's.
"""

import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from svag.errors import PerExampleError


def as_written() -> AbstractContextManager[object]:
    """Return a context in which functions of torch.compile run as they are written."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and importing it takes long
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def refuse_failed(error: BaseException | None) -> None:
    """Raise an error of svag's instead of one of torch.compile's.

    Args:
        error: what was raised while the context was open.

    Raises:
        PerExampleError: it is an error of torch.compile's.
    """
    if error is not None and type(error).__module__.startswith("torch._dynamo"):
        raise PerExampleError(
            f"an operation that torch compiles, such as torch.cond or scan, ran inside "
            f"within_batch_variance, which cannot follow it ({type(error).__name__}); write it "
            "with torch's other operations, or use svag.micro_batch_variance"
        ) from error
