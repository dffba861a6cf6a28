"""Refuses selective checkpoints, which keep the results of some operations.

They allow one backward pass only, and a verified pass runs several. What they keep must not be
changed in place, as the kernels of recurrent layers do inside svag's autograd functions.
"""

from torch.utils._python_dispatch import _get_current_dispatch_mode, is_in_torch_dispatch_mode

from svag.errors import PerExampleError
from svag.variance.per_example.recording.functions import Call, name_of


def refuse_selective(func: Call) -> None:
    """Raise if an operation runs in a selective checkpoint.

    Args:
        func: the operation.

    Raises:
        PerExampleError: it does.
    """
    if not is_in_torch_dispatch_mode():
        return
    if type(_get_current_dispatch_mode()).__module__ == "torch.utils.checkpoint":
        raise PerExampleError(
            f"{name_of(func)} runs in a selective checkpoint "
            "(create_selective_checkpoint_contexts), which allows one backward pass only, and "
            "svag needs a second one to verify; give checkpoint(...) no context_fn, or "
            "use svag.micro_batch_variance"
        )
