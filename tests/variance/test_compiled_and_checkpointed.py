"""Compiled functions and control flow inside a model, and selective checkpoints."""

import copy
import functools
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from svag.variance import within_batch_variance
from tests.variance.alone import Case, assert_own, bent, both, normal, one_by_one, warmed
from tests.variance.attribution import Calls, refused, table


@torch.compile(backend="eager")
def gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.7 * x)


@torch.compile(backend="eager")
def product(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w).tanh()


@both
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler, outside the context
def test_compiled_functions_run_as_written(verified: bool) -> None:
    """And without the compiler: it would trace svag's code, and warn that it compiles too often."""
    torch.manual_seed(0)
    model = Calls(lambda m, x: m.a(gelu(product(x, m.w))), a=nn.Linear(4, 2), w=table(4, 4))
    model = model if verified else warmed(model, normal(3, 4))
    torch._dynamo.utils.counters.clear()
    loss = torch.compile(bent, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with within_batch_variance(model):
            loss(model(normal(3, 4))).backward()
    assert not torch._dynamo.utils.counters["frames"]
    model.zero_grad()
    assert_own(Case(model, (normal(3, 4),)))


def test_compiled_functions_are_compiled_again_after_the_context() -> None:
    model = Calls(lambda m, x: m.a(gelu(x)), a=nn.Linear(4, 2))
    with within_batch_variance(model):
        bent(model(normal(3, 4))).backward()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gelu(normal(3, 4))
    assert torch._dynamo.utils.counters["frames"]["total"] == 1


def test_mixing_in_a_compiled_function_is_seen() -> None:
    centred = torch.compile(lambda x: x - x.mean(0), backend="eager")
    model = Calls(lambda m, x: m.a(centred(x)), a=nn.Linear(4, 2))
    with refused("mix"), within_batch_variance(model):
        bent(model(normal(3, 4))).backward()


def _cond(m: Any, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, m.a, lambda v: m.a(2 * v), (x,))


def _scan(m: Any, x: Tensor) -> Tensor:
    from torch._higher_order_ops.scan import scan

    def step(carry: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        after = (carry + now).tanh()
        return after, after.clone()

    return m.a(scan(step, torch.zeros_like(x[:, 0]), x.transpose(0, 1))[1].transpose(0, 1))


@pytest.mark.parametrize(("call", "name"), [(_cond, "cond"), (_scan, "scan")])
def test_control_flow_operators_are_refused_by_name(call: Any, name: str) -> None:
    """PyTorch 184528: scan once gave wrong gradients of parameters closed over."""
    model = Calls(call, a=nn.Linear(4, 2))
    with refused(name, "svag.micro_batch_variance"), within_batch_variance(model):
        bent(model(normal(3, 5, 4))).backward()


def test_control_flow_operators_are_refused_before_anything_was_compiled() -> None:
    """In a process that has not imported the compiler before the context opened."""
    code = (
        "import torch\n"
        "from torch import nn\n"
        "from svag import within_batch_variance\n"
        "from svag.errors import PerExampleError\n"
        "class Net(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return torch.cond(x.sum() > 0, super().forward, super().forward, (x,))\n"
        "net = Net(4, 2)\n"
        "try:\n"
        "    with within_batch_variance(net):\n"
        "        net(torch.randn(3, 4)).sum().backward()\n"
        "except PerExampleError as error:\n"
        "    assert 'torch.cond' in str(error)\n"
        "    print('refused')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.endswith("refused\n"), run.stderr


def _selective(m: Any, x: Tensor) -> Tensor:
    kept = [torch.ops.aten.addmm.default, torch.ops.aten.mm.default]
    contexts = functools.partial(create_selective_checkpoint_contexts, kept)
    return m.head(checkpoint(m.inner, x, use_reentrant=False, context_fn=contexts))


@pytest.mark.parametrize("check", [None, False])
@pytest.mark.parametrize("inner", ["dense", "recurrent"])
def test_selective_checkpoints_are_refused(inner: str, check: bool | None) -> None:
    """They gave a recurrent layer wrong gradients, and no second backward pass to verify."""
    parts: dict[str, nn.Module] = {"dense": nn.Linear(4, 4), "recurrent": Recurrent()}
    model = Calls(_selective, inner=parts[inner], head=nn.Linear(4, 2))
    with refused("selective checkpoint", "context_fn"), within_batch_variance(model, check=check):
        bent(model(normal(3, 5, 4))).backward()


class Recurrent(nn.GRU):
    """A GRU that returns its output alone."""

    def __init__(self) -> None:
        super().__init__(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        return super().forward(x)[0]


@both
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("around", ["forward", "both"])
def test_the_whole_model_in_a_checkpoint_and_under_autocast(
    around: str, autocast: bool, verified: bool
) -> None:
    """The second call of the model adds nothing to the checkpoint, and no weights to the cache."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model = model if verified else warmed(model, torch.randn(6, 4))
    x = torch.randn(6, 4)
    rows = one_by_one(Case(copy.deepcopy(model), (x,)))
    with within_batch_variance(model):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = bent(checkpoint(model, x, use_reentrant=False).float())
            if around == "both":
                loss.backward()
        if around == "forward":
            loss.backward()
    for name, own in rows.items():
        p = model.get_parameter(name)
        size = float(own.norm())
        bound = (0.05 if autocast else 1e-5) * size
        assert float((p.grad - own.sum(0)).norm()) <= bound
        assert float((p.grad_var - len(own) * own.var(0)).norm()) <= bound * size * 5
