"""Whether a scheduler brings back the step size of the optimizer that a state was loaded from.

A scheduler's state holds ``base_lrs``. Restored beside a state of Adam, it would make M-SVAG's step
size Adam's at its next step, and nothing would look wrong: the optimizer sees it and says so.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch


class StepSizeChange:
    """The step sizes of an optimizer and of the state of another one that it has loaded.

    Args:
        groups: of the optimizer, after loading.
        saved: of the state.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], saved: Sequence[dict[str, Any]]) -> None:
        self._pairs = [(g["lr"], s.get("lr")) for g, s in zip(groups, saved, strict=True)]
        self._base_lrs = [_base(group) for group in groups]
        self._saved_base_lrs = [_base(group) for group in saved]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def are_decided(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether a step size has changed since; warn if it is the saved one now."""
        for number, (group, (own, saved)) in enumerate(zip(groups, self._pairs, strict=False)):
            now = group["lr"]
            if now is own or now == own:
                continue
            ended = own == 0 or saved == 0  # a schedule that ended at 0 says nothing by its ratio
            bases = self._saved_base_lrs[number], self._base_lrs[number]
            if _leads_to(*(bases if ended else (saved, own)), now):
                warnings.warn(
                    f"the step size of this optimizer has changed from {own} to {now}, after the "
                    f"state of an optimizer with lr={saved} was loaded: a scheduler whose state "
                    "was loaded as well computes it from that one's; set its base_lrs to this "
                    f"optimizer's, scheduler.base_lrs = {self._base_lrs}, and the group's lr "
                    "(docs/from-adam.md)",
                    UserWarning,
                    stacklevel=4,
                )
            return True
        return False


def _base(group: dict[str, Any]) -> Any:
    """Return the step size that a scheduler's factor multiplies."""
    return group.get("initial_lr", group.get("lr"))


def _leads_to(saved: Any, own: Any, now: Any) -> bool:
    """Whether a step size is nearer to the saved one, by its ratio, than to the optimizer's own."""
    numbers = (saved, own, now)
    if not all(isinstance(number, float | int) and number > 0 for number in numbers):
        return False
    return abs(math.log(now / saved)) < abs(math.log(now / own))
