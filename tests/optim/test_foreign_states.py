"""States of other optimizers: what is taken over, what is said of it, and the step size after."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

import svag

from .cases import METHODS, by_name, named
from .stepping import parameter, step, train

Make = Callable[..., torch.optim.Optimizer]


def trained(make: Make, steps: int = 40, **options: Any) -> tuple[nn.Parameter, Any, list[Tensor]]:
    """A parameter, its optimizer after some steps, and the gradients it has seen."""
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = make([param], **options)
    gradients = [torch.randn(6, generator=generator, dtype=torch.float64) + 1 for _ in range(steps)]
    for gradient in gradients:
        step(optimizer, gradient)
    return param, optimizer, gradients


def load(taker: torch.optim.Optimizer, state: dict[str, Any], match: str = "own options") -> str:
    """The words of the one warning."""
    with pytest.warns(UserWarning, match=match) as caught:
        taker.load_state_dict(copy.deepcopy(state))
    (warning,) = caught
    return str(warning.message)


# ------------------------------------------------------------------------ the buffer of torch's SGD


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
@pytest.mark.parametrize("maximize", [(False, False), (True, True), (True, False), (False, True)])
def test_a_momentum_buffer_is_an_average(maximize, dampening, nesterov):
    """b = g + mu b sums what m~ weighs by 1 - mu; maximize averages the negated gradient."""
    if nesterov and dampening:
        pytest.skip("torch has no such SGD")
    options = {"momentum": 0.9, "dampening": dampening, "nesterov": nesterov, "lr": 0.01}
    param, donor, gradients = trained(torch.optim.SGD, 400, maximize=maximize[0], **options)
    taker = svag.MSGD([param], beta=0.9, maximize=maximize[1])
    words = load(taker, donor.state_dict(), "torch.optim.SGD")
    assert "momentum_buffer taken over" in words
    expected = torch.zeros(6, dtype=torch.float64)
    for gradient in gradients:
        expected.lerp_(-gradient if maximize[1] else gradient, 0.1)
    torch.testing.assert_close(taker.state[param]["exp_avg"], expected, rtol=1e-6, atol=1e-9)
    assert float(taker.state[param]["step"]) > 100  # debiased as after a long run


def test_a_momentum_buffer_gives_m_svag_a_mean_and_no_variance():
    param, donor, _ = trained(torch.optim.SGD, momentum=0.8, lr=0.01)
    taker = svag.MSVAG([param], beta=0.9)
    words = load(taker, donor.state_dict())
    assert "exp_avg_sq starts at exp_avg^2" in words
    state = taker.state[param]
    buffer = donor.state[param]["momentum_buffer"]
    weight = 1 - 0.9 ** float(state["step"])
    mean = state["exp_avg"] / weight
    torch.testing.assert_close(mean, buffer * 0.2, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(state["exp_avg_sq"] / weight, mean**2, rtol=1e-6, atol=1e-9)
    step(taker, 1.0)
    assert bool(param.isfinite().all())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=1.0),
        lambda p: torch.optim.RMSprop(p, momentum=0.9),
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.Rprop,
        svag.SSD,
    ],
)
def test_what_has_no_average_of_gradients_is_said_to_start_afresh(make):
    param, donor, _ = trained(make)
    taker = svag.MSVAG([param])
    words = load(taker, donor.state_dict())
    assert "afresh" in words
    assert "taken over, rescaled" not in words
    assert not taker.state.get(param)
    train(taker, steps=1)
    assert float(taker.state[param]["step"]) == 1


def test_parameters_of_one_state_are_told_apart():
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    donor = torch.optim.Adam([first, second])
    step(donor, 1.0, None)
    words = load(svag.MSVAG([first, second]), donor.state_dict())
    assert re.search(r"For 1 of the parameters: exp_avg and exp_avg_sq taken over", words)
    assert re.search(r"For 1 of the parameters: the saved optimizer has no state", words)


# ------------------------------------------------------------------------------- torch's Adam


@pytest.mark.parametrize("older", [False, True], ids=["today's", "older torch's"])
def test_adams_state_loads_into_ours_and_goes_on_alike(older):
    """An older torch has fewer options, and a step that is a number."""
    theirs, donor, _ = trained(torch.optim.Adam, 5, lr=0.05)
    saved = copy.deepcopy(donor.state_dict())
    if older:
        (group,), names = saved["param_groups"], ("lr", "betas", "eps", "weight_decay", "amsgrad")
        saved["param_groups"] = [{name: group[name] for name in (*names, "params")}]
        saved["state"][0]["step"] = 5
    ours = nn.Parameter(theirs.detach().clone())
    optimizer = svag.Adam([ours])
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.05
    train(donor, optimizer, steps=5)
    assert float(optimizer.state[ours]["step"]) == 10
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [torch.optim.Adam, svag.Adam])
def test_adams_state_in_m_svag_keeps_the_moments_and_its_own_options(make):
    param, donor, _ = trained(make, 5, betas=(0.9, 0.999))
    taker = svag.MSVAG([param], lr=0.2, beta=0.8)
    load(taker, donor.state_dict())
    group, state, old = taker.param_groups[0], taker.state[param], donor.state[param]
    assert (group["lr"], group["beta"]) == (0.2, 0.8)
    assert "betas" not in group
    assert float(state["step"]) == 5
    for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
        debiased = old[name] / (1 - beta**5)
        torch.testing.assert_close(state[name] / (1 - 0.8**5), debiased, rtol=1e-12, atol=0)
    train(taker, steps=1)
    assert param.isfinite().all()


@pytest.mark.parametrize("source", ["moving-average", "within-batch"])
def test_a_state_without_second_moment_starts_at_zero_variance(source):
    param, donor, _ = trained(svag.MSGD, 5)
    taker = svag.MSVAG([param], variance=source)
    load(taker, donor.state_dict())
    state = taker.state[param]
    if source == "within-batch":
        assert not state["exp_avg_var"].any()
    else:
        mean, second = (state[name] / (1 - 0.9**5) for name in ("exp_avg", "exp_avg_sq"))
        torch.testing.assert_close(second, mean**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax])
def test_other_optimizers_are_not_taken_for_adam(make):
    param, donor, _ = trained(make, 1)
    optimizer = svag.Adam([param], lr=0.2)
    load(optimizer, donor.state_dict(), "another optimizer")
    assert optimizer.param_groups[0]["lr"] == 0.2
    train(optimizer, steps=1)


@by_name([case for case in METHODS if case.averages])
def test_every_method_takes_over_from_every_other(case):
    for other in METHODS:
        for dtype in (torch.float32, torch.complex64, torch.bfloat16):
            p = parameter(5, dtype=dtype)
            donor, optimizer = other.build([p], foreach=False), case.build([p], foreach=False)
            train(donor, steps=3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if other != case else "error")
                optimizer.load_state_dict(donor.state_dict())
            train(optimizer, steps=2)
            assert torch.view_as_real(p).isfinite().all() if p.is_complex() else p.isfinite().all()
            assert float(optimizer.state[p]["step"]) == (5 if other.averages else 2)


@by_name(named("m-svag", "adam"))
def test_averages_are_taken_over_in_the_dtype_of_this_optimizers_state(case, engine):
    """Here options stay this optimizer's own; there and back, rounded once to nearest."""
    (p,) = params = [parameter(300)]
    donor = svag.AdamStar(params)
    train(donor, steps=3)
    saved = copy.deepcopy(donor.state_dict())
    if case.name == "m-svag":
        saved["param_groups"][0]["anatomy"] = "something else"
    optimizer = case.build([p], state_dtype=torch.bfloat16, **engine)
    load(optimizer, saved)
    state = optimizer.state[p]
    assert optimizer.param_groups[0]["state_dtype"] == torch.bfloat16
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    mean = donor.state[p]["exp_avg"]
    torch.testing.assert_close(state["exp_avg"].float(), mean, rtol=2.0**-8, atol=0)
    train(optimizer, steps=1)
    back = svag.MSVAG([p]) if case.name == "adam" else svag.Adam([p])
    load(back, optimizer.state_dict())
    assert back.state[p]["exp_avg"].dtype == torch.float32
    train(back, steps=1)
    assert bool(p.isfinite().all())


# --------------------------------------------------------------------------- other libraries' names


class CountingByGroup(torch.optim.Optimizer):
    """M-SVAG as published ports have it: one step a group, moments by Adam's names."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            group["step"] += 1
            for param in group["params"]:
                state = self.state[param]
                for name, value in (("exp_avg", param.grad), ("exp_avg_sq", param.grad**2)):
                    state.setdefault(name, torch.zeros_like(param)).lerp_(value, 1 - group["beta"])
                param.sub_(param.grad, alpha=group["lr"])


@pytest.mark.parametrize("beta", [0.9, 0.5])
def test_a_step_that_is_the_groups_debiases(beta):
    param, donor, _ = trained(CountingByGroup, 7, beta=0.9)
    taker = svag.MSVAG([param], beta=beta)
    words = load(taker, donor.state_dict(), "another optimizer")
    assert "exp_avg and exp_avg_sq taken over" in words
    state = taker.state[param]
    assert float(state["step"]) == 7
    for name in ("exp_avg", "exp_avg_sq"):
        debiased = donor.state[param][name] / (1 - 0.9**7)
        torch.testing.assert_close(state[name] / (1 - beta**7), debiased, rtol=1e-12, atol=0)


def test_another_librarys_m_svag_goes_on_as_it_would_have():
    library = pytest.importorskip("pytorch_optimizer")
    generator = torch.Generator().manual_seed(1)
    param = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    donor = library.MSVAG([param], lr=0.1, beta=0.9)
    gradients = torch.randn(9, 6, generator=generator, dtype=torch.float64) + 1
    for gradient in gradients[:6]:
        step(donor, gradient)
    own = nn.Parameter(param.detach().clone())
    taker = svag.MSVAG([own], lr=0.1, beta=0.9)
    assert "taken over" in load(taker, donor.state_dict())
    for gradient in gradients[6:]:
        for optimizer in (donor, taker):
            step(optimizer, gradient)
    torch.testing.assert_close(own, param, rtol=1e-9, atol=1e-12)


def test_an_average_of_unknown_decay_and_step_is_that_of_a_long_run():
    param = nn.Parameter(torch.zeros(2))
    group = {"lr": 0.1, "params": [0]}
    state = {"state": {0: {"exp_avg": torch.tensor([0.5, -1.0])}}, "param_groups": [group]}
    taker = svag.MSVAG([param])
    load(taker, state)
    weight = 1 - 0.9 ** float(taker.state[param]["step"])
    torch.testing.assert_close(taker.state[param]["exp_avg"] / weight, torch.tensor([0.5, -1.0]))


# ---------------------------------------------------------------------- the step size and schedules


def warmed_up(n: int) -> float:
    return min(1.0, (n + 1) / 4) * 0.9**n


def scheduled(optimizer: torch.optim.Optimizer, kind: str) -> Any:
    if kind == "LambdaLR":
        return LambdaLR(optimizer, warmed_up)
    return StepLR(optimizer, step_size=3, gamma=0.5)


def adam_run(kind: str, steps: int = 5) -> tuple[nn.Parameter, dict[str, Any], dict[str, Any]]:
    param = nn.Parameter(torch.zeros(3))
    donor = torch.optim.Adam([param], lr=0.001)
    scheduler = scheduled(donor, kind)
    for _ in range(steps):
        one_step(donor, scheduler)
    return param, donor.state_dict(), scheduler.state_dict()


def one_step(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    step(optimizer, 1.0)
    scheduler.step()


@pytest.mark.parametrize("kind", ["LambdaLR", "StepLR"])
def test_the_schedule_goes_on_at_this_optimizers_step_size(kind):
    """The state of a scheduler brings base_lrs; the recipe of docs/from-adam.md sets them."""
    param, saved, of_scheduler = adam_run(kind)
    optimizer = svag.MSVAG([param], lr=0.3)
    scheduler = scheduled(optimizer, kind)
    words = load(optimizer, saved)
    assert "set its base_lrs" in words
    share = saved["param_groups"][0]["lr"] / 0.001
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * share)
    own = scheduler.base_lrs
    scheduler.load_state_dict(of_scheduler)
    scheduler.base_lrs = own
    whole = svag.MSVAG([nn.Parameter(torch.zeros(3))], lr=0.3)
    straight = scheduled(whole, kind)
    for _ in range(5):
        one_step(whole, straight)
    for _ in range(4):
        lr = whole.param_groups[0]["lr"]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
        one_step(optimizer, scheduler)
        one_step(whole, straight)


def test_a_scheduler_that_brings_the_saved_step_size_back_is_warned_of_once():
    param, saved, of_scheduler = adam_run("LambdaLR")
    optimizer = svag.MSVAG([param], lr=0.3)
    scheduler = scheduled(optimizer, "LambdaLR")
    load(optimizer, saved)
    scheduler.load_state_dict(of_scheduler)
    one_step(optimizer, scheduler)  # with the step size that was loaded
    with pytest.warns(UserWarning, match=r"from 0\.\d+ to 0\.000\d+.*base_lrs = \[0\.3\]"):
        step(optimizer, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            one_step(optimizer, scheduler)


def test_a_schedule_that_had_ended_at_zero_is_warned_of_when_it_goes_on() -> None:
    """Trainer's linear schedule ends at 0; a longer run restores Adam's base_lrs."""
    param = nn.Parameter(torch.zeros(3))
    donor = torch.optim.Adam([param], lr=0.001)
    ended = torch.optim.lr_scheduler.LambdaLR(donor, lambda n: max(0.0, 1 - n / 3))
    for _ in range(3):
        one_step(donor, ended)
    assert donor.param_groups[0]["lr"] == 0
    optimizer = svag.MSVAG([param], lr=0.3)
    longer = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / 9)
    load(optimizer, donor.state_dict())
    longer.load_state_dict(ended.state_dict())
    one_step(optimizer, longer)
    with pytest.warns(UserWarning, match=r"from 0\.0 to 0\.000\d+.*base_lrs = \[0\.3\]"):
        step(optimizer, 1.0)


@pytest.mark.parametrize("after", [0.03, 0.5, 0.3])
def test_a_step_size_of_the_users_own_is_not_warned_of(after):
    param, saved, _ = adam_run("StepLR")
    optimizer = svag.MSVAG([param], lr=0.3)
    load(optimizer, saved)
    assert optimizer.param_groups[0]["lr"] == 0.3  # there is no schedule here
    assert "initial_lr" not in optimizer.param_groups[0]
    optimizer.param_groups[0]["lr"] = after
    for _ in range(2):
        step(optimizer, 1.0)


def test_a_state_of_the_same_method_brings_its_step_size_as_in_torch():
    param, saved, _ = adam_run("StepLR")
    optimizer = svag.Adam([param], lr=0.3)
    optimizer.load_state_dict(saved)
    step(optimizer, 1.0)
    optimizer.param_groups[0]["lr"] = 1.0
    step(optimizer, 1.0)
    assert optimizer.param_groups[0]["initial_lr"] == 0.001


def test_the_watch_on_the_step_size_does_not_outlive_a_copy_or_another_state():
    param, saved, _ = adam_run("StepLR")
    optimizer = svag.MSVAG([param], lr=0.3)
    load(optimizer, saved)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.001
    step(optimizer, 1.0)
