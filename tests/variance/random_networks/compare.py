"""Training with svag against training without: what may differ, and by how much."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.variance.random_networks.oracle import Answer

_LOSS, _GRAD, _VARIANCE = 1e-12, 1e-9, 1e-9  # relative, in float64


class Differs(Exception):
    """Training with svag was other than training without."""


def surroundings(loss: Tensor, leaf: Tensor | None, known: Answer) -> None:
    """Compare the loss, the gradient of the input and the generator after one backward pass."""
    if not torch.allclose(loss.detach(), known.loss, rtol=_LOSS, atol=1e-14):
        raise Differs(f"loss {float(loss)!r} for {float(known.loss)!r}")
    if (leaf is None) != (known.leaf is None):
        raise Differs("gradient of the input: there or not")
    if leaf is not None and known.leaf is not None and _apart(leaf, known.leaf) > _GRAD:
        raise Differs(f"gradient of the input by {_apart(leaf, known.leaf):.1e}")
    if not torch.equal(torch.get_rng_state(), known.rng):
        raise Differs("state of the random generator")


def buffers(net: nn.Module, known: Answer) -> None:
    """Compare what the model keeps of its calls."""
    for (name, found), right in zip(net.named_buffers(), known.buffers, strict=True):
        if not torch.allclose(found, right, rtol=_LOSS, atol=1e-14, equal_nan=True):
            raise Differs(f"buffer {name}")


def gradients(net: nn.Module, answers: Sequence[Answer]) -> list[bool]:
    """Compare the gradients that the passes added up; return which are equal bit for bit."""
    same = []
    sizes = [float(g.abs().max()) for a in answers for g in a.grads if g is not None and g.numel()]
    floor = 1e-14 * max(sizes, default=0.0)  # a gradient that cancels is rounding of others
    every = zip(net.named_parameters(), *(a.grads for a in answers), strict=True)
    for (name, p), *grads in every:
        some = [g for g in grads if g is not None]
        if bool(some) != (p.grad is not None):
            raise Differs(f"gradient of {name}: {'none' if some else 'one'} where there is")
        if p.grad is not None:
            known = some[0] if len(some) == 1 else some[0] + some[1]
            same.append(bool(torch.equal(p.grad, known)))
            if not torch.allclose(p.grad, known, rtol=0, atol=floor) and (
                not _apart(p.grad, known) <= _GRAD
            ):
                raise Differs(f"gradient of {name} by {_apart(p.grad, known):.1e}")
    return same


def variances(net: nn.Module, answers: Sequence[Answer]) -> None:
    """Compare the variances that the passes added up."""
    largest = max(size for a in answers for size in a.sizes)
    for place, (name, p) in enumerate(net.named_parameters()):
        if p.grad is None:
            continue
        if not isinstance(getattr(p, "grad_var", None), Tensor):
            raise Differs(f"variance of {name}: there is none")
        known = torch.stack([a.variances[place] for a in answers]).sum(0)
        bound = _VARIANCE * sum(a.sizes[place] for a in answers) + 1e-17 * largest
        error = float((p.grad_var - known).abs().max())
        if not error <= bound:
            share = error / (float(known.abs().max()) + bound)
            raise Differs(f"variance of {name} by {share:.1e}")


def single_precision(
    net: nn.Module,
    exact: Sequence[Tensor | None],
    plain: Sequence[Tensor | None],
) -> list[bool]:
    """Compare float32 gradients: off by at most twice what torch's own are off, and a floor."""
    same = []
    floor = 1e-6 * max(float(g.abs().max()) for g in exact if g is not None)  # 8 roundings
    for (name, p), right, torchs in zip(net.named_parameters(), exact, plain, strict=True):
        if right is None or torchs is None or p.grad is None:
            continue
        same.append(bool(torch.equal(p.grad, torchs)))
        allowed = 2 * float((torchs - right).abs().max()) + floor
        error = float((p.grad - right).abs().max())
        if not error <= allowed:
            raise Differs(f"float32 gradient of {name} by {error:.1e}, torch's {allowed / 2:.1e}")
    return same


def _apart(found: Tensor, known: Tensor) -> float:
    """Largest difference relative to the largest entry, with an absolute floor."""
    if not found.numel():
        return 0.0
    return float((found - known).abs().max()) / (float(known.abs().max()) + 1e-6)
