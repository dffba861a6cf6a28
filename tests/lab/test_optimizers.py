"""Building what is compared: svag's own as by hand, optimizers from outside, and their errors."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import svag
from svag.anatomy import METHODS
from svag.entrants import SYMBOLS, entrant
from svag.errors import ProblemError, SvagError, UnknownOption
from svag.lab.optimizers import build, check, code_version
from svag.variance.grad_var import attach

STEPS = 4


def trained(make, *, variances: bool = False) -> list[Tensor]:
    """Parameters after some steps with gradients of many scales."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]
    optimizer = make(params)
    for _ in range(STEPS):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
            if variances:
                attach(p, torch.rand(p.shape, generator=generator))
        optimizer.step()
    return [p.detach() for p in params]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


BY_HAND = {
    "sgd": lambda p: svag.SGD(p, lr=0.01),
    "m-sgd": lambda p: svag.MSGD(p, lr=0.01),
    "ssd": lambda p: svag.SSD(p, lr=0.01),
    "m-ssd": lambda p: svag.MSSD(p, lr=0.01),
    "svag": lambda p: svag.SVAG(p, lr=0.01),
    "m-svag": lambda p: svag.MSVAG(p, lr=0.01),
    "adam": lambda p: svag.Adam(p, lr=0.01),
    "adam-star": lambda p: svag.AdamStar(p, lr=0.01),
    "m-svag(beta=0.5)": lambda p: svag.MSVAG(p, lr=0.01, beta=0.5),
    "m-svag@within-batch": lambda p: svag.MSVAG(p, lr=0.01, variance="within-batch"),
    "svag@within-batch": lambda p: svag.SVAG(p, lr=0.01, variance="within-batch"),
    "adam-star@within-batch(beta=0)": lambda p: svag.AdamStar(
        p, lr=0.01, beta=0.0, variance="within-batch"
    ),
    "adam(beta=0.5, eps=0.1, amsgrad)": lambda p: svag.Adam(
        p, lr=0.01, betas=(0.5, 0.999), eps=0.1, amsgrad=True
    ),
    "adam(beta2=0.5, weight_decay=0.1, decoupled)": lambda p: torch.optim.AdamW(
        p, lr=0.01, betas=(0.9, 0.5), weight_decay=0.1
    ),
    "m-sgd(weight_decay=0.1)": lambda p: svag.MSGD(p, lr=0.01, weight_decay=0.1),
    "torch.optim.SGD(momentum=0.9, nesterov)": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True
    ),
}


@pytest.mark.parametrize("key", BY_HAND)
def test_methods_step_as_those_built_by_hand(key: str) -> None:
    one = entrant(key)
    built = trained(lambda p: build(one, p, lr=0.01), variances=one.within_batch)
    by_hand = trained(BY_HAND[key], variances=one.within_batch)
    if key.startswith("adam(beta2"):  # torch's own arithmetic, in another order
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(built, by_hand, strict=True))
    else:
        assert same(built, by_hand)


def test_every_row_is_among_them() -> None:
    assert BY_HAND.keys() >= METHODS.keys()


@pytest.mark.parametrize("symbols", SYMBOLS)
def test_symbols_step_as_their_anatomy(symbols: str) -> None:
    anatomy = SYMBOLS[symbols]
    one = entrant(symbols)

    def by_hand(params: list[nn.Parameter]) -> Optimizer:
        return svag.Dissected(params, lr=0.01, anatomy=anatomy)

    built = trained(lambda p: build(one, p, lr=0.01), variances=anatomy.within_batch)
    assert same(built, trained(by_hand, variances=anatomy.within_batch))


def test_options_change_the_step() -> None:
    plain = trained(lambda p: build(entrant("m-svag"), p, lr=0.01))
    assert not same(plain, trained(lambda p: build(entrant("m-svag(beta=0.5)"), p, lr=0.01)))


@pytest.mark.parametrize("key", ["m-svag", "adam(weight_decay=0.5)", "torch.optim.AdamW"])
def test_groups_keep_what_they_state(key: str) -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    built = build(entrant(key), (group for group in groups), lr=0.3)
    assert [group["weight_decay"] for group in built.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in built.param_groups] == [0.3, 0.3]


MINE = """
import torch

def make(params, lr, momentum=0.0):
    return torch.optim.SGD(params, lr=lr, momentum=momentum)

class Mine(torch.optim.SGD):
    pass

def scaled(params, lr):
    return torch.optim.SGD([{"params": [p], "lr": lr * p.numel()} for p in params], lr=lr)

def anything(params, **options):
    return torch.optim.SGD(params, **options)
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(source: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(source)
        return path

    return write


def test_ones_own(write) -> None:
    path = write(MINE)
    texts = ("make(momentum=0.9)", "Mine(momentum=0.9)", "anything(momentum=0.9)")
    by_hand = trained(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
    for text in texts:
        one = entrant(f"{path}:{text}")
        check(one)
        assert same(trained(lambda p, one=one: build(one, p, lr=0.01)), by_hand)


def test_step_sizes_of_groups_stay(write) -> None:
    one = entrant(f"{write(MINE)}:scaled")
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(5))]
    assert [g["lr"] for g in build(one, params, lr=0.5).param_groups] == [1.0, 2.5]
    check(one, params)


BAD = """import torch
from torch.optim import SGD, Optimizer

def none(params, lr):
    pass

def no_lr(params):
    return SGD(params, lr=1.0)

def deaf(params, lr):
    return SGD(params, lr=1.0)

def raises(params, lr):
    return SGD(params, lr=lr, momentum=-1.0)

def divides(params, lr):
    return 1 / 0

def leaves(params, lr):
    return torch.optim.Muon([p for p in params if p.ndim == 2], lr=lr)

def needs(params, lr, rank):
    return SGD(params, lr=lr)

ONE = SGD([torch.ones(1)], lr=1.0)

def shared(params, lr):
    return ONE

class NoLr(Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {})

class NoDecay(Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        pass

class Breaks(Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        self.state["missing"]["key"]

value = 3
"""


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("none", "is NoneType; make a torch.optim.Optimizer", "def none"),
        ("no_lr", "takes no lr; it is called as no_lr(params, lr=lr)", "def no_lr"),
        ("deaf", "has the step size 1 whatever lr", "def deaf"),
        ("raises", "ValueError: Invalid momentum value: -1.0", "momentum=-1.0"),
        ("divides", "ZeroDivisionError", "1 / 0"),
        ("leaves", "leaves out 1 of 2 parameters", "def leaves"),
        ("needs", "missing a required argument: 'rank'", "def needs"),
        ("shared", "leaves out 2 of 2 parameters", "def shared"),
        ("NoLr", "has groups without 'lr'", "class NoLr"),
        ("Breaks", "cannot take a step: KeyError", '["key"]'),
    ],
)
def test_what_is_wrong_with_ones_own(write, text: str, said: str, line: str) -> None:
    path = write(BAD)
    with pytest.raises(ProblemError) as caught:
        check(entrant(f"{path}:{text}"), nn.Linear(2, 2).parameters())
    number = next(n for n, source in enumerate(BAD.splitlines(), 1) if line in source)
    assert said in str(caught.value)
    assert str(caught.value).endswith(f"({path}:{number})")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("torch.optim.Admaw", ProblemError, "Did you mean 'Adam"),
        ("torch.optim.SGD(momentm=1)", UnknownOption, "Did you mean 'momentum'"),
        ("torch.optim.SGD(momentum=-1)", ProblemError, "Invalid momentum value: -1"),
        ("torch.optim.LBFGS", ProblemError, "its step() needs closure"),
        ("torch.optim.SparseAdam", ProblemError, "does not support dense gradients"),
        ("torch.optim.Muon", ProblemError, "Muon only supports 2D parameters"),
        ("torch.nn.Linear", ProblemError, "takes no lr"),
        ("json.dumps", ProblemError, "could not be built"),
        ("no_such_package.module:x", ProblemError, "there is no module 'no_such_package'"),
        ("no_such_file.py:make", ProblemError, "there is no file"),
    ],
)
def test_what_is_wrong_with_others(text: str, error: type[SvagError], said: str) -> None:
    with pytest.raises(error) as caught:
        check(entrant(text), nn.Linear(2, 2).parameters())
    assert said in str(caught.value)
    assert "site-packages/torch/optim/_muon" not in str(caught.value)


def test_what_a_file_has_not(write) -> None:
    path = write(BAD)
    with pytest.raises(ProblemError, match=r"'deef' does not exist.*Did you mean 'deaf'"):
        check(entrant(f"{path}:deef"))
    with pytest.raises(ProblemError, match="'value' is not a function"):
        check(entrant(f"{path}:value"))


def test_weight_decay_is_not_ignored(write) -> None:
    one = entrant(f"{write(BAD)}:NoDecay")
    weight = nn.Parameter(torch.ones(2, 2))
    build(one, [{"params": [weight], "weight_decay": 0.0}], lr=0.1)
    with pytest.raises(ProblemError, match=r"has no weight_decay.*0\.1.*--weight-decay 0"):
        build(one, [{"params": [weight], "weight_decay": 0.1}], lr=0.1)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adafactor", "RMSprop", "NAdam", "Rprop", "SGD"])
def test_torchs_own(name: str) -> None:
    check(entrant(f"torch.optim.{name}"), nn.Linear(2, 2).parameters())


def test_a_check_changes_no_parameter() -> None:
    model = nn.Linear(2, 2)
    before = [p.detach().clone() for p in model.parameters()]
    check(entrant("torch.optim.SGD"), model.parameters())
    assert same(before, [p.detach() for p in model.parameters()])
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_may_be_left_out(write) -> None:
    path = write(
        "import torch\n"
        "def make(params, lr):\n"
        "    return torch.optim.SGD([p for p in params if p.requires_grad], lr=lr)\n"
    )
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    one = entrant(f"{path}:make")
    check(one, model.parameters())
    assert len(build(one, model.parameters(), lr=0.1).param_groups[0]["params"]) == 1


@pytest.mark.parametrize(
    "key", [*METHODS, "m-svag@within-batch(beta=0.5)", "m * 1/sqrt(1 + rho s/m^2)"]
)
def test_own_methods_need_no_check_and_have_no_code_version(key: str) -> None:
    check(entrant(key))
    assert code_version(entrant(key)) == ""


def test_code_version_of_an_installed_one() -> None:
    version = metadata.version("torch").partition("+")[0]
    assert code_version(entrant("torch.optim.SGD")) == f"torch=={version}"
    assert code_version(entrant("torch.optim.SGD(momentum=0.9)")) == f"torch=={version}"


def version_in_a_process_of_its_own(text: str) -> str:
    code = (
        "import sys\nfrom svag.entrants import entrant\n"
        "from svag.lab.optimizers import code_version\n"
        "print(code_version(entrant(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, text]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_code_version_of_ones_own_changes_with_the_code(write) -> None:
    imports = "from helper_of_mine import MOMENTUM\n"
    write("MOMENTUM = 0.5\n", "helper_of_mine.py")
    text = f"{write(imports + MINE)}:make"
    before = code_version(entrant(text))
    assert re.fullmatch("[0-9a-f]{12}", before)
    assert before == version_in_a_process_of_its_own(text)
    write("# a comment\n" + imports + MINE)
    assert code_version(entrant(text)) == before
    assert code_version(entrant(f"{text}(momentum=0.9)")) == before  # the key has the options
    write(imports + MINE.replace("momentum=0.0", "momentum=0.1"))
    changed = code_version(entrant(text))
    write("MOMENTUM = 0.6\n", "helper_of_mine.py")
    assert len({before, changed, version_in_a_process_of_its_own(text)}) == 3
