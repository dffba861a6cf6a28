"""What a user of torch.optim.Adam relies on, for every method of the family."""

import copy
import inspect
import io
import math
import pickle
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import svag
from svag import METHODS, Anatomy, Dissected
from svag.errors import SvagError

Make = Callable[..., Dissected]

CLASSES = {key: getattr(svag, row.optimizer) for key, row in METHODS.items()}
STATEFUL = {key: make for key, make in CLASSES.items() if METHODS[key].anatomy.buffers}


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype))


def run(optimizer: Dissected, steps: int, seed: int = 1) -> None:
    """Take steps along random gradients, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


every_method = pytest.mark.parametrize("key", CLASSES)
every_stateful = pytest.mark.parametrize("key", STATEFUL)


@every_method
def test_state_is_what_the_anatomy_needs(key: str) -> None:
    p = parameter(5, dtype=torch.bfloat16)
    optimizer = CLASSES[key]([p])
    run(optimizer, 3)
    buffers = METHODS[key].anatomy.buffers
    assert set(optimizer.state[p]) == ({"step", *buffers} if buffers else set())
    for name in buffers:
        assert optimizer.state[p][name].dtype == p.dtype
        assert optimizer.state[p][name].shape == p.shape


@every_method
def test_defaults_are_those_of_the_table(key: str) -> None:
    group = CLASSES[key]([parameter(2)]).param_groups[0]
    row = METHODS[key]
    assert group["lr"] == row.lr
    betas = tuple(group.get("betas", ())) or ((group["beta"],) if "beta" in group else ())
    assert betas == row.betas


def test_adam_has_torchs_signature_in_torchs_order() -> None:
    ours = inspect.signature(svag.Adam.__init__).parameters
    theirs = inspect.signature(torch.optim.Adam.__init__).parameters
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(positional)] == positional
    assert set(ours) == {*theirs, "state_dtype", "stochastic_rounding", "seed"}
    assert {n: ours[n].default for n in theirs} == {n: p.default for n, p in theirs.items()}


@every_method
def test_resuming_from_a_checkpoint_is_bit_exact(key: str) -> None:
    straight, first = parameter(7), parameter(7)
    optimizer = CLASSES[key]([straight])
    run(optimizer, 4)
    run(optimizer, 3, seed=2)

    before = CLASSES[key]([first], lr=0.7)
    before.param_groups[0]["lr"] = METHODS[key].lr
    run(before, 4)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = CLASSES[key]([first], lr=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after.load_state_dict(torch.load(file, weights_only=True))
    run(after, 3, seed=2)
    assert torch.equal(first, straight)


@every_method
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alike(key: str, clone: Callable[[Dissected], Dissected]) -> None:
    p = parameter(6)
    optimizer = CLASSES[key]([p])
    run(optimizer, 3)
    twin = clone(optimizer)
    assert twin.anatomy == optimizer.anatomy
    run(optimizer, 3)
    run(twin, 3)
    assert torch.equal(twin.param_groups[0]["params"][0], p)


def adam_checkpoint(make: Make | type[torch.optim.Adam], p: nn.Parameter) -> dict[str, object]:
    optimizer = make([p], lr=0.05, betas=(0.9, 0.999))
    run(optimizer, 5)  # type: ignore[arg-type]
    return optimizer.state_dict()


def test_torchs_adam_loads_into_ours_and_goes_on_alike() -> None:
    theirs, ours = parameter(8), parameter(8)
    reference = torch.optim.Adam([theirs], lr=0.05)
    run(reference, 5)  # type: ignore[arg-type]
    optimizer = svag.Adam([ours])
    with torch.no_grad():
        ours.copy_(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.05
    run(reference, 5, seed=3)  # type: ignore[arg-type]
    run(optimizer, 5, seed=3)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [torch.optim.Adam, svag.Adam])
def test_adams_state_in_m_svag_keeps_the_moments_and_its_own_options(make: Make) -> None:
    p = parameter(8)
    saved = adam_checkpoint(make, p)
    optimizer = svag.MSVAG([p], lr=0.2, beta=0.8)
    with pytest.warns(UserWarning, match="keeps its own options"):
        optimizer.load_state_dict(saved)
    group, state = optimizer.param_groups[0], optimizer.state[p]
    assert (group["lr"], group["beta"]) == (0.2, 0.8)
    assert "betas" not in group
    old = saved["state"][0]  # type: ignore[index]
    assert float(state["step"]) == 5
    for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
        debiased = old[name] / (1 - beta**5)
        torch.testing.assert_close(state[name] / (1 - 0.8**5), debiased, rtol=1e-12, atol=0)
    run(optimizer, 1)
    assert p.isfinite().all()


def test_a_state_without_second_moment_starts_at_zero_variance() -> None:
    p = parameter(8)
    donor = svag.MSGD([p])
    run(donor, 5)
    optimizer = svag.MSVAG([p])
    with pytest.warns(UserWarning, match="keeps its own options"):
        optimizer.load_state_dict(donor.state_dict())
    state = optimizer.state[p]
    mean, second = (state[name] / (1 - 0.9**5) for name in ("exp_avg", "exp_avg_sq"))
    torch.testing.assert_close(second, mean**2, rtol=1e-12, atol=0)


def test_a_state_without_averages_starts_afresh() -> None:
    p = parameter(8)
    donor = svag.SSD([p])
    run(donor, 5)
    optimizer = svag.MSVAG([p])
    with pytest.warns(UserWarning, match="afresh"):
        optimizer.load_state_dict(donor.state_dict())
    assert not optimizer.state[p]
    run(optimizer, 1)
    assert float(optimizer.state[p]["step"]) == 1


@every_method
def test_gradients_are_left_as_they_are(key: str) -> None:
    p = parameter(9)
    optimizer = CLASSES[key]([p], weight_decay=0.1, maximize=True)
    p.grad = torch.arange(9.0, dtype=p.dtype)
    optimizer.step()
    assert torch.equal(p.grad, torch.arange(9.0, dtype=p.dtype))


@every_method
def test_flags_change_how_not_what(key: str) -> None:
    reference = parameter(5000, dtype=torch.float32)
    run(CLASSES[key]([reference]), 4)
    for flags in ({"foreach": True}, {"foreach": False}, {"capturable": True}):
        p = parameter(5000, dtype=torch.float32)
        run(CLASSES[key]([p], **flags), 4)
        torch.testing.assert_close(p, reference, rtol=1e-5, atol=1e-6)


@every_method
def test_a_tensor_step_size_is_a_step_size(key: str) -> None:
    p, q = parameter(6), parameter(6)
    run(CLASSES[key]([p], lr=torch.tensor(0.25)), 4)
    run(CLASSES[key]([q], lr=0.25), 4)
    torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-14)


@every_method
def test_complex_parameters_are_pairs_of_reals(key: str) -> None:
    real = parameter(6, 2)
    compound = nn.Parameter(torch.view_as_complex(real.detach().clone()))
    one, other = CLASSES[key]([real]), CLASSES[key]([compound])
    for seed in range(4):
        real.grad = parameter(6, 2, seed=seed).detach()
        compound.grad = torch.view_as_complex(real.grad.clone())
        one.step()
        other.step()
    assert torch.equal(torch.view_as_real(compound.detach()), real)


@every_method
def test_non_contiguous_parameters(key: str) -> None:
    plain = parameter(4, 3, 90, 130, dtype=torch.float32)
    last = nn.Parameter(plain.detach().to(memory_format=torch.channels_last, copy=True))
    run(CLASSES[key]([plain]), 3)
    run(CLASSES[key]([last]), 3)
    torch.testing.assert_close(last.contiguous(), plain.data, rtol=1e-5, atol=1e-6)


@every_method
def test_differentiable_steps_have_the_derivative_of_the_step(key: str) -> None:
    weights = torch.linspace(0.5, 2, 4, dtype=torch.float64)

    def end(lr: Tensor) -> Tensor:
        p = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True).clone()
        optimizer = Dissected([p], lr, anatomy=METHODS[key].anatomy, differentiable=True)
        for n in range(3):
            p.grad = (weights + n * weights.flip(0)) * (p + 2)
            optimizer.step()
        return p.sum()

    assert torch.autograd.gradcheck(end, torch.tensor(0.1, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("factor", ["svag", "sqrt", "erf"])
def test_factors_differentiate_to_finite_values_at_zero_variance(factor: str) -> None:
    anatomy = Anatomy("momentum", factor=factor)  # type: ignore[arg-type]
    p = torch.ones(2, dtype=torch.float64, requires_grad=True).clone()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = Dissected([p], 0.1, anatomy=anatomy, differentiable=True)
    for _ in range(3):
        p.grad = torch.ones(2, dtype=torch.float64) * scale
        optimizer.step()
    (slope,) = torch.autograd.grad(p.sum(), scale)
    assert slope.item() == pytest.approx(-0.6)


@pytest.mark.parametrize("key", ["ssd", "m-svag", "adam"])
def test_compiled_steps_equal_eager_ones_without_recompiling_each(key: str) -> None:
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    p, q = parameter(12, 5, dtype=torch.float32), parameter(12, 5, dtype=torch.float32)
    one, other = CLASSES[key]([p]), CLASSES[key]([q])
    counter = CompileCounter()
    step = torch.compile(one.step, backend=counter)
    for seed in range(10):
        p.grad = parameter(12, 5, seed=seed, dtype=torch.float32).detach()
        q.grad = p.grad.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()
        other.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 2


@every_method
def test_closures_schedulers_hooks_and_scalers(key: str) -> None:
    p = parameter(3)
    optimizer = CLASSES[key]([p], lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *args: calls.append("hook"))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    expected = (p.detach() ** 2).sum().item()
    assert optimizer.step(closure) == pytest.approx(expected)
    scheduler.step()
    assert calls == ["hook"]
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_steps_are_counted_per_parameter() -> None:
    early, late = parameter(3, seed=1), parameter(3, seed=2)
    alone = nn.Parameter(late.detach().clone())
    optimizer, reference = svag.MSVAG([early, late]), svag.MSVAG([alone])
    for n in range(6):
        early.grad = torch.ones_like(early)
        if n >= 3:
            late.grad = parameter(3, seed=10 + n).detach()
            alone.grad = late.grad.clone()
            reference.step()
        optimizer.step()
    assert torch.equal(late, alone)
    assert [float(optimizer.state[p]["step"]) for p in (early, late)] == [6, 3]


def test_mixed_dtypes_and_empty_tensors_share_an_optimizer() -> None:
    params = [parameter(n, dtype=d) for n in (0, 4) for d in (torch.float32, torch.float64)]
    optimizer = svag.MSVAG(params)
    run(optimizer, 3)
    alone = parameter(4, dtype=torch.float64)
    single = svag.MSVAG([alone])
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for p in params:
            grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        alone.grad = grad
        single.step()
    assert torch.equal(alone, params[-1])


ERRORS = {
    "negative lr": (lambda p: svag.MSVAG([p], lr=-1), ValueError, "Invalid learning rate: -1"),
    "NaN lr": (lambda p: svag.MSVAG([p], lr=math.nan), ValueError, "Invalid learning rate: nan"),
    "beta of 1": (
        lambda p: svag.MSVAG([p], beta=1.0), ValueError, "Invalid beta parameter at index 0: 1.0",
    ),
    "second beta": (
        lambda p: svag.Adam([p], betas=(0.9, 1.5)), ValueError,
        "Invalid beta parameter at index 1: 1.5",
    ),
    "eps": (lambda p: svag.Adam([p], eps=-1), ValueError, "Invalid epsilon value: -1"),
    "weight decay": (
        lambda p: svag.SSD([p], weight_decay=-1), ValueError, "Invalid weight_decay value: -1",
    ),
    "in a group": (
        lambda p: svag.MSGD([{"params": [p], "beta": 2}]), ValueError,
        "Invalid beta parameter at index 0: 2",
    ),
    "unknown keyword": (
        lambda p: svag.MSVAG([p], wieght_decay=0.1), TypeError, "Did you mean 'weight_decay'",
    ),
    "beta of SGD": (lambda p: svag.SGD([p], beta=0.9), TypeError, "'beta'"),
    "foreach and differentiable": (
        lambda p: svag.MSVAG([p], foreach=True, differentiable=True), ValueError, "foreach=None",
    ),
    "fused and differentiable": (
        lambda p: svag.MSVAG([p], fused=True, differentiable=True), RuntimeError, "fused=None",
    ),
    "fused and foreach": (
        lambda p: svag.MSVAG([p], fused=True, foreach=True), RuntimeError, "choose one",
    ),
    "state dtype": (
        lambda p: svag.MSVAG([p], state_dtype=torch.float16), ValueError, "torch.bfloat16",
    ),
    "rounding and differentiable": (
        lambda p: svag.MSVAG([p], stochastic_rounding=True, differentiable=True), RuntimeError,
        "no derivative",
    ),
    "seed": (lambda p: svag.MSVAG([p], seed=-1), ValueError, "[0, 2^32)"),
    "lr of two elements": (
        lambda p: svag.MSVAG([p], lr=torch.ones(2)), ValueError, "1-element",
    ),
    "beta of a raw row": (
        lambda p: Dissected([p], anatomy=METHODS["adam"].anatomy, beta=0.9), TypeError, "betas",
    ),
    "betas of a corrected row": (
        lambda p: Dissected([p], anatomy=METHODS["m-svag"].anatomy, betas=(0.9, 0.9)), TypeError,
        "it takes lr, beta",
    ),
    "no anatomy": (lambda p: Dissected([p], anatomy="adam"), ValueError, "svag.Anatomy"),
    "a factor out of its set": (
        lambda p: Anatomy(factor="cube"), ValueError, "'none', 'svag', 'sqrt', 'erf'",
    ),
    "a direction out of its set": (
        lambda p: Anatomy("nesterov"), ValueError, "'gradient', 'momentum'",
    ),
    "a sign out of its set": (lambda p: Anatomy(sign="yes"), ValueError, "True, False"),
    "raw variance of a mini-batch": (
        lambda p: Anatomy(factor="sqrt", relative_variance="raw", variance="within-batch"),
        ValueError, "relative_variance='corrected'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_quote_the_value_and_the_remedy(case: str) -> None:
    make, kind, words = ERRORS[case]
    with pytest.raises(kind) as caught:
        make(parameter(2))
    assert isinstance(caught.value, SvagError)
    assert words in str(caught.value)


@every_method
def test_sparse_gradients_are_refused(key: str) -> None:
    p = parameter(4)
    p.grad = torch.sparse_coo_tensor([[0]], [1.0], (4,), dtype=p.dtype, check_invariants=True)
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*sparse=False"):
        CLASSES[key]([p]).step()


def test_a_group_may_have_options_of_its_own() -> None:
    first, second = parameter(4), parameter(4)
    optimizer = svag.MSVAG(
        [{"params": [first], "lr": 0.5, "beta": 0.5}, {"params": [second], "maximize": True}]
    )
    alone, apart = parameter(4), parameter(4)
    for p, q, options in ((first, alone, {"lr": 0.5, "beta": 0.5}), (second, apart, {})):
        single = svag.MSVAG([q], maximize=q is apart, **options)
        for seed in range(3):
            q.grad = parameter(4, seed=seed).detach()
            single.step()
        del p
    for seed in range(3):
        first.grad = second.grad = parameter(4, seed=seed).detach()
        optimizer.step()
    assert torch.equal(first, alone)
    assert torch.equal(second, apart)


@pytest.mark.parametrize("key", ["ssd", "m-ssd", "adam-star", "m-svag", "adam"])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_nan_gradient_shows(key: str, foreach: bool) -> None:
    p = parameter(4)
    optimizer = CLASSES[key]([p], foreach=foreach)
    run(optimizer, 2)
    p.grad = torch.tensor([1.0, math.nan, 1.0, 1.0], dtype=p.dtype)
    optimizer.step()
    assert p.isnan().tolist() == [False, True, False, False]


GROUPS = {
    "another row's decays": {"betas": (0.5, 0.9)},
    "another row's eps": {"eps": 1e-3},
    "another row's amsgrad": {"amsgrad": True},
    "a misspelt option": {"weigth_decay": 0.1},
    "an anatomy": {"anatomy": Anatomy("gradient")},
}


@pytest.mark.parametrize("case", GROUPS)
def test_a_group_with_a_foreign_option_is_refused(case: str) -> None:
    (name,) = GROUPS[case]
    with pytest.raises(TypeError, match=name):
        svag.MSVAG([{"params": [parameter(2)], **GROUPS[case]}])


def test_a_group_may_carry_notes() -> None:
    optimizer = svag.MSVAG([{"params": [parameter(2)], "name": "head", "lr_scale": 0.5}])
    assert optimizer.param_groups[0]["name"] == "head"


def test_checkpoints_of_older_torch_load() -> None:
    p, q = parameter(5), parameter(5)
    saved = adam_checkpoint(svag.Adam, p)
    group = saved["param_groups"][0]  # type: ignore[index]
    old = {k: group[k] for k in ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")}
    state = {**saved["state"][0], "step": 5}  # type: ignore[index]
    optimizer = svag.Adam([q])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict({"state": {0: state}, "param_groups": [old]})
    run(optimizer, 1)
    assert float(optimizer.state[q]["step"]) == 6
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("make", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax])
def test_other_optimizers_are_not_taken_for_adam(make: type[torch.optim.Optimizer]) -> None:
    p = parameter(5)
    donor = make([p])
    p.grad = torch.ones_like(p)
    donor.step()
    optimizer = svag.Adam([p], lr=0.2)
    with pytest.warns(UserWarning, match="another optimizer"):
        optimizer.load_state_dict(donor.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.2
    run(optimizer, 1)


@every_stateful
def test_every_method_takes_over_from_every_other(key: str) -> None:
    for other, make in CLASSES.items():
        for dtype in (torch.float32, torch.complex64, torch.bfloat16):
            p = parameter(5, dtype=dtype)
            donor = make([p])
            run(donor, 3)
            optimizer = STATEFUL[key]([p])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if other != key else "error")
                optimizer.load_state_dict(donor.state_dict())
            run(optimizer, 2)
            assert torch.view_as_real(p).isfinite().all() if p.is_complex() else p.isfinite().all()
            taken = METHODS[other].anatomy.buffers
            assert float(optimizer.state[p]["step"]) == (5 if taken else 2)


@pytest.mark.parametrize("decoupled", [False, True])
def test_hyperparameters_are_differentiable(decoupled: bool) -> None:
    def end(lr: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
        p = torch.linspace(-1, 1, 3, dtype=torch.float64, requires_grad=True).clone()
        optimizer = svag.Adam([p], lr, (beta, beta * 0.9), weight_decay=decay, differentiable=True)
        for n in range(2):
            p.grad = (p + n + 1) ** 2
            optimizer.step()
        return p.sum()

    values = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.8, 0.05))
    assert torch.autograd.gradcheck(end, tuple(values))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"betas": 0.9}, "Invalid betas: 0.9"),
        ({"betas": (0.9,)}, "give two decays"),
        ({"betas": ("0.9", 0.9)}, "Invalid beta parameter at index 0: '0.9'"),
        ({"lr": "0.1"}, "Invalid learning rate: '0.1'"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        svag.Adam([parameter(2)], **options)  # type: ignore[arg-type]
