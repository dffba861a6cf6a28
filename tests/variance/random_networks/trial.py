"""Train one network with svag and without, and name what came of it."""

import copy
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from svag import within_batch_variance
from svag.errors import SvagError
from tests.variance.random_networks import compare
from tests.variance.random_networks.build import Network
from tests.variance.random_networks.data import compiled, inputs, targets
from tests.variance.random_networks.oracle import Answer, Invalid, answer, prepared

RIGHT, REFUSED, WRONG, CRASH, INVALID = "right", "refused", "WRONG", "CRASH", "invalid"
_KINDS = ("alone", "permuted", "coupled")
Batch = tuple[list[Tensor], Tensor]


@dataclass
class Trial:
    """What came of one network.

    Attributes:
        network: that was tried.
        outcome: right, refused, WRONG, CRASH or invalid.
        reason: message of the error, or what differs by how much.
        independent: what the oracle says of the examples: alone, permuted or coupled.
        same: for each gradient whether it is bit-equal to plain training's.
    """

    network: Network
    outcome: str = RIGHT
    reason: str = ""
    independent: str = "alone"
    same: list[bool] = field(default_factory=list)


def attempt(network: Network) -> Trial:
    """Train a network for its steps with svag, and compare with the oracle."""
    trial = Trial(network)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        try:
            _train(trial)
        except Invalid as error:
            trial.outcome, trial.reason = INVALID, str(error)
        except compare.Differs as error:
            trial.outcome, trial.reason = WRONG, str(error)
        except SvagError as error:
            trial.outcome, trial.reason = REFUSED, f"{type(error).__name__}: {error}"
        except Exception as error:
            trial.outcome, trial.reason = CRASH, _in_short(error)
    return trial


def watched(network: Network, net: nn.Module) -> within_batch_variance:
    """Open the context under test; of its options only those that say where examples are."""
    return within_batch_variance(net, batch_dim=network.batch_dim, examples=network.examples)


def _train(trial: Trial) -> None:
    """Two steps in two contexts, or one or two passes in one, and one in float32."""
    network, seed = trial.network, trial.network.plan.seed
    code = compiled(network)
    net = _fresh(network, code)
    batches = [_batch(network, code, net, step) for step in range(1 + (network.mode != "one"))]
    if network.mode == "two":
        for step, batch in enumerate(batches):
            _step(trial, code, net, [batch], seed + step)
            _descend(net)
    else:
        _step(trial, code, net, batches, seed)
    if network.float32:
        _train_in_float32(trial, code, batches[0])


def _fresh(network: Network, code: SimpleNamespace) -> nn.Module:
    torch.manual_seed(network.plan.seed)
    net: nn.Module = code.Net().double().train(network.training)
    return net


def _batch(network: Network, code: SimpleNamespace, net: nn.Module, step: int) -> Batch:
    """Draw a mini-batch, of the second size if it is the second and the network can take it."""
    for size in (network.batches[step], network.batches[0]):
        try:
            return _drawn(network, code, copy.deepcopy(net), size, step)
        except Exception as error:  # nothing of svag is at work here
            reason = f"{type(error).__name__}: {error}"
    raise Invalid(reason)


def _drawn(network: Network, code: SimpleNamespace, net: nn.Module, size: int, step: int) -> Batch:
    """Draw a mini-batch and see that the network can be trained on it."""
    x = inputs(network, size, network.plan.seed + 100 * step)
    with torch.no_grad():
        out = net(*x)
    y = targets(network, out, code.rows, network.plan.seed + step)
    code.loss(net, prepared(network, x), y).backward()
    return x, y


def _step(
    trial: Trial, code: SimpleNamespace, net: nn.Module, batches: Sequence[Batch], seed: int
) -> None:
    """Run mini-batches in one context, and compare what adds up with the oracle."""
    answers = _answers(trial, code, copy.deepcopy(net), batches, seed)
    with watched(trial.network, net):
        for step, ((x, y), known) in enumerate(zip(batches, answers, strict=True)):
            fed = prepared(trial.network, x)
            torch.manual_seed(seed + step)
            loss = code.loss(net, fed, y)
            loss.backward()
            compare.surroundings(loss, fed[0].grad, known)
    compare.buffers(net, answers[-1])
    trial.same += compare.gradients(net, answers)
    if trial.independent == "coupled":
        raise compare.Differs("silence about coupled examples")
    compare.variances(net, answers)


def _answers(
    trial: Trial, code: SimpleNamespace, net: nn.Module, batches: Sequence[Batch], seed: int
) -> list[Answer]:
    """Ask the oracle; the model's buffers move on from pass to pass."""
    answers = []
    for step, (x, y) in enumerate(batches):
        try:
            answers.append(answer(trial.network, code, net, x, y, seed + step))
        except (RuntimeError, ValueError) as error:  # nothing of svag is at work here
            raise Invalid(f"{type(error).__name__}: {error}") from error
        for buffer, after in zip(net.buffers(), answers[-1].buffers, strict=True):
            buffer.copy_(after)
        kinds = trial.independent, answers[-1].independent
        trial.independent = max(kinds, key=_KINDS.index)
    return answers


def _train_in_float32(trial: Trial, code: SimpleNamespace, batch: Batch) -> None:
    """Take the first pass again: in float64 and in float32 without svag, in float32 with it."""
    exact = _fresh(trial.network, code)
    plain, ours = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    try:
        _pass(trial.network, code, exact, batch, torch.float64)
        _pass(trial.network, code, plain, batch, torch.float32)
    except RuntimeError:  # some operations of the grammar know float64 only
        return
    with watched(trial.network, ours):
        _pass(trial.network, code, ours, batch, torch.float32)
    known = [[p.grad for p in net.parameters()] for net in (exact, plain)]
    trial.same += compare.single_precision(ours, *known)


def _pass(
    network: Network, code: SimpleNamespace, net: nn.Module, batch: Batch, dtype: torch.dtype
) -> None:
    x, y = batch
    fed = [u.to(dtype) if u.is_floating_point() else u for u in x]
    torch.manual_seed(network.plan.seed)
    code.loss(net, fed, y.to(dtype) if y.is_floating_point() else y).backward()


def _descend(net: nn.Module) -> None:
    """Take a small step, so that the second pass is another model's."""
    with torch.no_grad():
        for p in net.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-3 / (1 + float(p.grad.abs().max())))
            p.grad = None


def _in_short(error: Exception) -> str:
    """Say what was raised and where, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = "/".join(last.filename.split("/")[-2:])
    return f"{type(error).__name__} in {place}:{last.lineno}: {' '.join(str(error).split())[:150]}"
