"""timm: the family under names of its own in timm's registry of optimizers."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

import svag
from svag.anatomy import METHODS
from svag.errors import InvalidOption, MissingPackage

_PREFIX = "svag-"


def register() -> tuple[str, ...]:
    """Make every method known to timm, and return the names.

    The names are ``svag-`` and the method's key: ``svag-m-svag``, ``svag-adam``. With a ``w`` at
    the end weight decay is decoupled, as in timm's ``adamw``: ``svag-m-svagw``; without, it is
    added to the gradient, as in ``torch.optim.Adam``.

        svag.integrations.timm.register()
        optimizer = timm.optim.create_optimizer_v2(model, "svag-m-svagw", lr=0.1, weight_decay=0.05)

    In timm's ``train.py``: ``--opt svag-m-svagw --momentum 0.9``, after a call of this function at
    its top. ``--momentum`` is ``beta``, and so is ``--opt-betas`` with one value; Adam takes two.
    Registering twice changes nothing.

    Raises:
        MissingPackage: (an ImportError) timm is not installed.
    """
    try:
        from timm.optim._optim_factory import OptimInfo, default_registry
    except ImportError as error:
        raise MissingPackage("this needs timm; pip install 'svag[timm]'") from error
    names = []
    known = set(default_registry.list_optimizers())
    for key, method in METHODS.items():
        for decoupled in (False, True):
            name = f"{_PREFIX}{key}{'w' if decoupled else ''}"
            names.append(name)
            if name in known:
                continue
            betas = len(method.betas)
            default_registry.register(
                OptimInfo(
                    name=name,
                    opt_class=_builder(key, decoupled=decoupled),
                    description=f"svag: {method.name}",
                    has_eps=key == "adam",
                    has_momentum=betas == 1,
                    has_betas=betas > 0,
                    num_betas=max(betas, 1),
                )
            )
    return tuple(names)


def _builder(key: str, *, decoupled: bool) -> Callable[..., Optimizer]:
    """Return a function that builds a method from timm's options."""
    kind, count = getattr(svag, METHODS[key].optimizer), len(METHODS[key].betas)

    def build(
        params: Any,
        *,
        momentum: float | None = None,
        betas: Sequence[float] | None = None,
        **options: Any,
    ) -> Optimizer:
        if count == 2 and betas is not None:
            options["betas"] = tuple(betas)
        if count == 1 and (beta := _beta(key, momentum, betas)) is not None:
            options["beta"] = beta
        return kind(params, decoupled_weight_decay=decoupled, **options)  # type: ignore[no-any-return]

    return build


def _beta(key: str, momentum: float | None, betas: Sequence[float] | None) -> float | None:
    if betas is None:
        return momentum
    if len(set(betas)) != 1:
        raise InvalidOption(
            f"betas={tuple(betas)}: {METHODS[key].name} has one beta for all its averages; give "
            "one value, or momentum="
        )
    return betas[0]
