"""The right answer: one backward pass an example in float64, and whether examples stand alone."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tests.variance.random_networks.build import Network
from tests.variance.random_networks.data import others_replaced

COUPLED = 1e-7  # a change of a gradient, relative to the largest, that is no rounding
Grads = list[Tensor]


class Invalid(Exception):
    """The network cannot be trained without svag either, or has no finite gradient."""


@dataclass(frozen=True)
class Answer:
    """What autograd says without svag.

    Attributes:
        loss: its value.
        grads: ``p.grad``, None where autograd leaves none.
        leaf: gradient of the first input, where it is asked for.
        variances: the unbiased variance of each gradient's entries, from one backward an example.
        sizes: the largest entry that the variance of each parameter is a difference of.
        independent: "alone", "permuted" (a term depends on one example, but another) or "coupled".
        buffers: of the model after the pass.
        rng: state of the generator after the pass.
    """

    loss: Tensor
    grads: list[Tensor | None]
    leaf: Tensor | None
    variances: Grads
    sizes: list[float]
    independent: str
    buffers: Grads
    rng: Tensor


def answer(
    network: Network, code: SimpleNamespace, net: nn.Module, x: list[Tensor], y: Tensor, seed: int
) -> Answer:
    """Train one pass without svag, and look at each example's gradient."""
    plain = copy.deepcopy(net)
    fed = prepared(network, x)
    torch.manual_seed(seed)
    loss = code.loss(plain, fed, y)
    loss.backward()
    rng = torch.get_rng_state()
    rows = one_by_one(code, net, x, y, seed)
    _refuse_strange(network, rows, plain)
    variances, sizes = zip(*map(_variance, map(torch.stack, zip(*rows, strict=True))), strict=True)
    return Answer(
        loss.detach(),
        [p.grad for p in plain.parameters()],
        fed[0].grad,
        list(variances),
        list(sizes),
        _independence(network, code, net, x, y, seed, rows),
        [b.clone() for b in plain.buffers()],
        rng,
    )


def prepared(network: Network, x: list[Tensor]) -> list[Tensor]:
    """Copy the inputs; the first needs a gradient where the network says so."""
    fed = [u.clone() for u in x]
    if network.leaf and fed[0].is_floating_point():
        fed[0].requires_grad_()
    return fed


def one_by_one(
    code: SimpleNamespace, net: nn.Module, x: list[Tensor], y: Tensor, seed: int
) -> list[Grads]:
    """Return each example's gradients: those of its own term, from the whole batch."""
    net = copy.deepcopy(net)
    params = list(net.parameters())
    torch.manual_seed(seed)
    terms = code.terms(net, [u.clone() for u in x], y)
    found = []
    for term in terms:
        grads = [None] * len(params)
        if term.requires_grad:
            grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
        found.append(
            [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
        )
    return found


def _variance(c: Tensor) -> tuple[Tensor, float]:
    """(B sum c_k^2 - (sum c_k)^2) / (B - 1), by way of the mean, and the size of its first term."""
    batch = len(c)
    size = float((batch * c.square().sum(0) / (batch - 1)).max()) if c.numel() else 0.0
    return batch * (c - c.mean(0)).square().sum(0) / (batch - 1), size


def _refuse_strange(network: Network, rows: list[Grads], plain: nn.Module) -> None:
    """Discard gradients that are not finite, vanish, or are no sum of the terms' gradients."""
    largest = _largest(rows)
    if not 1e-9 < largest < 1e6:
        raise Invalid(f"gradients of size {largest:.1e}")
    penalty = 0.2 if network.loss.name == "penalty" else 0.0
    for p, *own in zip(plain.parameters(), *rows, strict=True):
        total = sum(own) + penalty * p.detach()
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        if not torch.allclose(total, grad, rtol=1e-6, atol=1e-7 * largest):
            raise Invalid("the terms' gradients do not sum to the gradient of the loss")


def _largest(rows: list[Grads]) -> float:
    return max(float(g.abs().max()) for own in rows for g in own if g.numel())


def _independence(
    network: Network,
    code: SimpleNamespace,
    net: nn.Module,
    x: list[Tensor],
    y: Tensor,
    seed: int,
    rows: list[Grads],
) -> str:
    """Replace all but one example, and see whether the gradient of its term stays."""
    batch, bound = len(rows), COUPLED * _largest(rows)
    stays = torch.ones(batch, batch, dtype=torch.bool)  # term, kept example
    for kept in range(batch):
        for again in range(2):
            other = others_replaced(network, x, kept, 1000 * seed + 10 * kept + again)
            try:
                changed = one_by_one(code, net, other, y, seed)
            except RuntimeError:  # such as a count of tokens that no longer fits
                return "coupled"
            for term in range(batch):
                pairs = zip(rows[term], changed[term], strict=True)
                apart = max(float((a - b).abs().max()) for a, b in pairs if a.numel())
                stays[term, kept] &= apart <= bound
    if bool(stays.diagonal().all()):
        return "alone"
    return "permuted" if bool(stays.any(1).all()) else "coupled"
