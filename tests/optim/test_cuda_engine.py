"""The CUDA engine: its arithmetic in Triton's interpreter, its compilation, and the rest on a GPU.

The interpreter runs the kernel on CPU tensors, program after program. A private copy of the engine
is imported for it and given to the optimizers as the engine of CPUs, so that they drive it as they
do on a GPU: with fused=True, through plan and tables. What the interpreter cannot show, that the
kernel is typed right and loads 16 bytes at once, is seen by compiling for an H100, without one.
"""

import copy
import importlib
import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from measured import assert_within
from reference import error
from torch import Tensor, nn

import svag
import svag.optim.engines
from svag.errors import EngineUnavailable
from svag.optim import rounding
from svag.optim.engines import support
from svag.optim.engines.kernel_spec import Kernel
from svag.optim.rule import Settings, Switches
from svag.variance.grad_var import attach

from .cases import CASES, EVERY_KIND, FEW, WITHIN_BATCH, Case, by_name, descend, flat, named
from .data import conformance_gradients
from .stepping import assert_all_equal, step

pytest.importorskip("triton", reason="Triton is not installed (Linux only, extra dev)")

import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, interpreter

# Every fourth coordinate of the conformance set, steps 1 to 10: the interpreter is slow.
GRADIENTS = np.ascontiguousarray(conformance_gradients()[:10, ::4])
SIZE = GRADIENTS.shape[1]
BLOCK = 128
STEPS = (1, 2, 10)
BOUND = {torch.float32: 2e-5, torch.float64: 1e-12}
HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
TWICE = [*FEW, *named("adam-amsgrad")]

both_precisions = pytest.mark.parametrize("dtype", BOUND, ids=["float32", "float64"])
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module")
def interpreted():
    """A copy of the engine whose kernel is interpreted; the engine itself is left alone."""
    with pytest.MonkeyPatch.context() as patch, knobs.runtime.scope():
        forget(patch)
        knobs.runtime.interpret = True
        engine = importlib.import_module("svag.optim.engines.cuda")
    engine._BLOCK = engine._SMALLEST = engine._LARGEST = BLOCK  # a whole and a masked block
    return engine


def forget(patch: pytest.MonkeyPatch) -> None:
    """Make the engine be imported anew, until the patch is undone."""
    for name in ("triton_kernel", "cuda"):
        if f"svag.optim.engines.{name}" in sys.modules:
            patch.delitem(sys.modules, f"svag.optim.engines.{name}")
        else:
            patch.setitem(sys.modules, f"svag.optim.engines.{name}", ModuleType(name))
            del sys.modules[f"svag.optim.engines.{name}"]
        patch.setattr(svag.optim.engines, name, None, raising=False)


@pytest.fixture
def engine(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """The interpreted engine in place of the CPU's."""
    monkeypatch.setattr(support, "engine", lambda device_type: interpreted)

    # Functions called by a kernel patch triton.language once more at every call, nine tenths of
    # the time.
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    # Triton 3.5 makes an index of an array of one number, which NumPy 2.4 no longer does.
    make_interpreted = interpreter._patch_lang_tensor

    def with_index(tensor: type, *scope: Any) -> None:
        make_interpreted(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)
    with np.errstate(all="ignore"), restored(*INTERPRETED):
        yield interpreted


# What the interpreter replaces; Triton 3.5 leaves it so, and a later compilation fails.
INTERPRETED = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)


@contextmanager
def restored(*owners: Any) -> Iterator[None]:
    """Undo what happens to the attributes of modules and classes."""
    before = [dict(vars(owner)) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes in zip(owners, before, strict=True):
            for name, member in list(vars(owner).items()):
                if name not in attributes:
                    delattr(owner, name)
                elif member is not attributes[name]:
                    setattr(owner, name, attributes[name])


@pytest.fixture
def several_blocks(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make chunks of three blocks."""
    monkeypatch.setattr(interpreted, "_SMALLEST", 3 * BLOCK)
    monkeypatch.setattr(interpreted, "_LARGEST", 3 * BLOCK)
    return 3 * BLOCK


def parameter(values: Any, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values).to(dtype, copy=True))


def follow(case: Case, gradients: Any, start: Any, dtype: torch.dtype, **options: Any):
    """Theta after each step of one parameter."""
    param = parameter(start, dtype)
    steps = [[torch.as_tensor(g).to(dtype)] for g in gradients]
    return [theta for (theta,) in descend(case.build([param], **options), [param], steps)]


def assert_conforms(name: str, dtype: torch.dtype, ours: Any, case: Case, **options: Any) -> None:
    reference = list(case.reference(GRADIENTS, np.zeros(SIZE), **options))
    errors = {t: error(ours[t - 1], reference[t - 1].theta) for t in STEPS}
    assert_within(f"Triton, {name}, {dtype}", max(errors.values()), BOUND[dtype], errors)


# The rule is the text that the CPU's engine has, and its twin below takes every row: here it is
# seen that Triton reads it right, by a row of each kind.
@both_precisions
@by_name([*EVERY_KIND, *named("adam-amsgrad")])
def test_a_row_of_each_kind_conforms(engine, case, dtype):
    options = {"lr": case.lr, **case.decay(0.9)}
    history = follow(case, GRADIENTS, np.zeros(SIZE), dtype, fused=True, **options)
    assert_conforms("reference", dtype, history, case, **options)


@pytest.mark.parametrize("beta", [0.0, 0.999, 0.9999])
@by_name(EVERY_KIND)
def test_the_start_is_debiased_to_rounding(engine, case, beta):
    """1 - beta^step without expm1 is off by 65 eps at beta = 0.999 and step 2."""
    gradients = np.ones((3, 8)) * np.linspace(0.5, 8.0, 8)
    options = {"lr": case.lr, **case.decay(beta, beta)}
    history = follow(case, gradients, np.zeros(8), torch.float64, fused=True, **options)
    reference = case.reference(gradients, np.zeros(8), **options)
    for theta, expected in zip(history, reference, strict=True):
        np.testing.assert_allclose(theta, expected.theta, rtol=16 * np.finfo(np.float64).eps)


# The square of 1e-4 is a variance beside a gradient of float16, and nothing in float16.
ODD = [torch.nan, torch.inf, -torch.inf, 0.0, 1e-30, -1e-30, 1e30, 1e-40, 1e-4, 3.0]
# As numbers are stored, and what they are made into, do not meet: of halves, each set of averages.
TWINS: list[tuple[Case, torch.dtype]] = [
    *((case, torch.float32) for case in CASES + WITHIN_BATCH),
    *((case, torch.float64) for case in TWICE),
    *itertools.product(named("sgd", "m-svag", "adam-amsgrad", "m-svag/batch"), HALF),
]


def groups_of(case: Case) -> list[dict[str, Any]]:
    """Options that differ from group to group, and the two branches of beta."""
    decay = {"weight_decay": 0.01, "decoupled_weight_decay": True}
    groups: list[dict[str, Any]] = [
        {"lr": case.lr, **case.decay(0.9, 0.99), **decay},
        {"lr": case.lr / 2, **case.decay(0.1, 0.95), "maximize": True, "weight_decay": 0.01},
        {"lr": 2 * case.lr, **case.decay(0.0)},
    ]
    for group, eps in zip(groups if case.raw else [], (1e-8, 1e-3, 0.0), strict=False):
        group["eps"] = eps
    return groups


@pytest.mark.parametrize(("case", "dtype"), TWINS, ids=str)
def test_it_is_the_cpu_engines_twin(engine, several_blocks, case, dtype, monkeypatch):
    """To the bit where there is no erf, also for NaN, inf and squares out of range.

    Gradients may be late or missing: each tensor has its own step, and an empty one counts it too.
    """
    cpu = pytest.importorskip("svag.optim.engines.cpu", reason="Numba is not installed")
    odd = np.array([ODD, [1.0] * len(ODD), ODD[::-1]], np.float32)
    first = torch.from_numpy(np.hstack([GRADIENTS[:3], GRADIENTS[3:6], odd])).to(dtype)
    assert first.shape[1] > several_blocks
    present = ((True,) * 3, (False, True, True), (True, False, True))
    pieces = [first, first[:, :7], first[:, :0]]
    wide = torch.promote_types(dtype, torch.float32)
    histories = []
    for fused_by in (engine, cpu):
        monkeypatch.setattr(support, "engine", lambda device_type, found=fused_by: found)
        starts = [torch.linspace(-2.0, 2.0, piece.shape[1]) for piece in pieces]
        params = [parameter(start, dtype) for start in starts]
        groups = [{"params": [p], **g} for p, g in zip(params, groups_of(case), strict=True)]
        optimizer, history = case.build(groups, fused=True), []
        for t in range(3):
            for param, piece, there in zip(params, pieces, present, strict=True):
                param.grad = piece[t].clone() if there[t] else None
                if there[t] and case.within_batch:
                    attach(param, 0.5 * piece[t].to(wide).square())
            optimizer.step()
            history += [flat(param) for param in params]
        for param in params:
            history += [flat(value) for value in optimizer.state[param].values()]
        histories.append(history)
    # In float64 the numbers of a step, too, are what Triton makes of them.
    near = {torch.float32: 2**-20, torch.float64: 1e-13}.get(dtype, 2 * HALF.get(dtype, 0))
    exact = "erf" not in case.name and dtype != torch.float64
    for a, b in zip(*histories, strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else near, atol=0 if exact else near / 99)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_nothing_beside_a_tensor_is_touched(engine, several_blocks, dtype, shift):
    chunk = several_blocks
    sizes = (1, BLOCK - 1, BLOCK, BLOCK + 1, chunk - 1, chunk, chunk + 1, 2 * chunk + BLOCK + 3)
    room = [64 * (-(-n // 64) + 1) for n in sizes]
    starts = np.cumsum([64, *room[:-1]]) + shift
    memory = torch.full((sum(room) + 128,), 7.0, dtype=dtype)
    inside = torch.zeros(len(memory), dtype=torch.bool)
    params = []
    for start, size in zip(starts, sizes, strict=True):
        params.append(nn.Parameter(memory[start : start + size]))
        inside[start : start + size] = True
    step(svag.MSGD(params, lr=1.0, fused=True), 0.5)
    assert torch.equal(memory, torch.where(inside, 6.5, 7.0).to(dtype))


def test_an_empty_tensor_does_not_keep_others_from_being_read_four_at_a_time(engine):
    params = [nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(0))]
    optimizer = svag.MSVAG(params, fused=True)
    step(optimizer, 1.0)
    assert optimizer._plan is not None
    assert optimizer._plan.fused[0]._table._aligned
    assert optimizer.state[params[1]]["step"] == 1


@pytest.mark.parametrize("size", [1, SIZE])
@by_name(named("m-ssd", "adam-amsgrad", "m-svag/batch"))
def test_stochastic_rounding_draws_the_same(engine, case, size):
    """Bit-equal, since with these numbers float32 arithmetic is exact before the rounding."""
    generator = torch.Generator().manual_seed(8)
    dtype = torch.bfloat16 if case.name == "m-ssd" else torch.float32
    steps, variances = (
        [
            [torch.randint(low, 10, (size,), generator=generator).to(dtype) / 8 for _ in range(2)]
            for _ in range(6)
        ]
        for low in (-9, 1)
    )
    options = {**case.decay(0.5, 0.5), "state_dtype": torch.bfloat16, "seed": 2**32 - 5}
    ends = []
    for fused in (True, False):
        params = [parameter(torch.linspace(1, 2, size), dtype) for _ in range(2)]
        stochastic = dtype == torch.bfloat16
        flags = {"stochastic_rounding": stochastic, "fused": fused}
        optimizer = case.build(params, lr=2**-10, **options, **flags)
        descend(optimizer, params, steps, variances if case.within_batch else None)
        ends.append((params, [optimizer.state[p] for p in params]))
    for ours, theirs in zip(*(params for params, _ in ends), strict=True):
        assert not stochastic or torch.equal(ours, theirs)
    assert not stochastic or size == 1 or not torch.equal(*ends[0][0])
    for ours, theirs in zip(*(states for _, states in ends), strict=True):
        for column in ours.keys() - {"step"}:
            assert ours[column].dtype == torch.bfloat16
            assert torch.equal(ours[column], theirs[column]), column


@pytest.mark.parametrize("dithered", [True, False], ids=["stochastic", "nearest"])
def test_nan_stays_nan_whatever_its_bits(engine, dithered):
    """A GPU's own NaN is 0x7FFFFFFF, which noise would carry into the sign: -0."""
    param = parameter(torch.zeros(64), torch.float32)
    param.grad = torch.full((64,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    tensors = {"param": param.data, "grad": param.grad, "step": torch.zeros(())}
    states = {name: torch.zeros(64, dtype=torch.bfloat16) for name in ("exp_avg", "exp_avg_sq")}
    which = m_svag()._replace(state=torch.bfloat16, dither_state=dithered)
    launch(settings(0.1), table(engine, which, {**tensors, **states}))
    for tensor in (param, *states.values()):
        assert tensor.isnan().all()


def test_rounding_goes_up_and_down_and_keeps_what_is_not_finite(engine):
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0, 0.0]).repeat(64)
    param = nn.Parameter(torch.zeros(320, dtype=torch.bfloat16))
    step(svag.MSGD([param], lr=0.1, beta=0.9, stochastic_rounding=True, fused=True), values)
    inf, less, nan, ordinary, zero = param.detach().float().view(64, 5).T
    assert (inf == -torch.inf).all()
    assert (less == torch.inf).all()
    assert nan.isnan().all()
    assert (zero == 0).all()
    # Between two neighbours, 2^-11 apart; the mean of 64 is within a quarter of that.
    assert len(ordinary.unique()) == 2
    assert abs(float(ordinary.mean()) + 0.1) < 2**-13


@pytest.mark.parametrize("name", ["ssd", "m-svag", "adam"])
def test_scaled_losses(engine, name):
    """Gradients are divided by the scale in registers; found_inf leaves everything as it is."""
    (case,), gradients = named(name), [torch.from_numpy(g) for g in GRADIENTS]
    plain = follow(case, GRADIENTS, np.zeros(SIZE), torch.float32, fused=True, lr=case.lr)
    param = parameter(np.zeros(SIZE))
    optimizer: Any = case.build([param], lr=case.lr, fused=True)
    optimizer.grad_scale = torch.tensor(1024.0)
    for t, gradient in enumerate(gradients):
        param.grad = torch.full_like(param, torch.nan)
        optimizer.found_inf = torch.tensor(1.0)
        before = [x.clone() for x in (param, *optimizer.state.get(param, {}).values())]
        optimizer.step()
        after = [param, *optimizer.state[param].values()]
        assert all(x.equal(y) for x, y in zip(before, after, strict=False))
        param.grad = 1024.0 * gradient
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        assert torch.equal(param.grad, 1024.0 * gradient)
        np.testing.assert_array_equal(param.detach().numpy(), plain[t])
    assert all(float(s["step"]) == len(gradients) for s in optimizer.state.values() if s)


def test_the_noise_is_that_of_the_rounding_module():
    """What the kernel's constant is compared with elsewhere only through rounded numbers."""
    engine = importlib.import_module("svag.optim.engines.triton_kernel")
    assert engine.NEXT.value == rounding._NEXT


class Launches:
    """What an engine's kernel is launched with."""

    kernel: Any

    def __init__(self) -> None:
        self.all: list[Any] = []

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.all.append((grid, args, kwargs))
            self.replay(-1)

        return launch

    def replay(self, which: int) -> None:
        grid, args, kwargs = self.all[which]
        self.kernel[grid](*args, **kwargs)


@pytest.fixture
def launches(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Launches:
    launches = Launches()
    bind = engine._bound

    def watched(*args: Any) -> Any:
        bound = bind(*args)
        launches.kernel = bound.step
        return bound._replace(step=launches)

    monkeypatch.setattr(engine, "_bound", watched)
    return launches


def test_one_launch_a_step_and_no_upload_without_a_change(engine, launches, monkeypatch):
    uploads: list[torch.Size] = []
    fill = engine._Mirror._filled
    monkeypatch.setattr(
        engine._Mirror, "_filled", lambda self, host: uploads.append(host.shape) or fill(self, host)
    )
    params = [parameter(torch.ones(10)) for _ in range(40)]
    optimizer = svag.MSVAG(params, fused=True)
    step(optimizer, 1.0)
    assert uploads == [(40, 8), (1, 8)]
    optimizer.step()
    assert len(uploads) == 2
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    assert uploads[2:] == [(1, 8)]
    params[3].grad = torch.ones(10)
    optimizer.step()
    assert uploads[3:] == [(40, 8)]
    assert len(launches.all) == 4
    torch.testing.assert_close(params[3], torch.full((10,), 1 - 0.1 - 0.1 - 0.01 - 0.01))


def table(engine: ModuleType, which: Kernel, tensors: dict[str, Tensor]) -> Any:
    table = engine.Table(
        which, torch.device("cpu"), sizes=[tensors["param"].numel()], groups=[0], streams=[0]
    )
    for column, tensor in tensors.items():
        table.place(column, [tensor.data_ptr()])
    return table


def kernel(case: Case, dtype: torch.dtype, *, alters: bool = False) -> Kernel:
    switches = Switches.of(case.anatomy, amsgrad=case.amsgrad, decays=alters, alters=alters)
    return Kernel(switches, dtype, dtype, dither_param=False, dither_state=False)


def m_svag(dtype: torch.dtype = torch.float32) -> Kernel:
    return kernel(*named("m-svag"), dtype)


def launch(settings: Settings, *tables: Any, grad: Tensor | None = None) -> None:
    for table in tables:
        if grad is not None:
            table.place("grad", [grad.data_ptr()])
        table.launch([settings], None, None)


def settings(lr: Any, decay: Any = 0.0) -> Settings:
    return Settings(lr, 0.9, 0.9, 0.0, 0.0, decay, gradient=1.0, seed=0)


def fresh() -> dict[str, Tensor]:
    tensors = {name: torch.zeros(9) for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
    tensors["grad"] += torch.linspace(1, 2, 9)
    return {**tensors, "step": torch.zeros(())}


def test_a_tensor_step_size_is_read_by_the_device(engine, launches):
    """The rule then holds tensors; a number that comes after one is not taken for it."""
    ours, theirs = fresh(), fresh()
    lr, decay = torch.tensor(0.1), torch.tensor(0.0, dtype=torch.float64)
    of_tensors, of_numbers = table(engine, m_svag(), ours), table(engine, m_svag(), theirs)
    for value in (0.1, 0.2, 0.3):
        lr.fill_(value), decay.fill_(value / 10)
        launch(settings(lr, decay), of_tensors)
        launch(settings(float(lr), value / 10), of_numbers)
    for value in (0.0, 0.1):
        launch(settings(value), of_tensors, of_numbers)
    assert_all_equal(ours.values(), theirs.values())


def test_a_captured_step_and_others_do_not_meet(engine, launches, monkeypatch):
    """Replayed, it has its own gradients and options; so has a step between the replays."""
    tensors, twin = fresh(), fresh()
    ours, theirs = table(engine, m_svag(), tensors), table(engine, m_svag(), twin)
    kept = len(engine._CAPTURED)
    with monkeypatch.context() as capturing:
        capturing.setattr(engine.Table, "_captures", lambda self: True)
        launch(settings(0.1), ours)
    captured = launches.all[-1]
    assert len(engine._CAPTURED) == kept + 3
    launch(settings(0.1), theirs)
    other = -torch.linspace(1, 2, 9)
    launch(settings(0.2), ours, theirs, grad=other)
    launches.all.append(captured)
    launches.replay(-1)
    launch(settings(0.1), theirs, grad=twin["grad"])
    launch(settings(0.2), ours, theirs, grad=other)
    assert float(tensors["step"]) == 4
    assert_all_equal(tensors.values(), twin.values())


def test_tables_are_made_before_a_capture(engine, monkeypatch):
    monkeypatch.setattr(engine.Table, "_captures", lambda self: True)
    with pytest.raises(EngineUnavailable, match="take a few steps"):
        table(engine, m_svag(), fresh())


# ------------------------------------------------------------------------- compiled for an H100


COMPILED = [*EVERY_KIND, *named("adam-amsgrad")]


class H100:
    """What Triton asks a driver for before it launches; the number is no real device's."""

    def get_current_device(self) -> int:
        return 90

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    """Return the machine code (PTX) of a launch, up to which all is done as on a GPU."""
    engine = importlib.import_module("svag.optim.engines.cuda")
    launched: list[str] = []

    class Warmup:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *args, **kwargs: launched.append(
                self.kernel.warmup(*args, grid=grid, **kwargs).asm["ptx"]
            )

    def warmed(*args: Any) -> Any:
        bound = bind(*args)
        return bound._replace(step=Warmup(bound.step))

    def launch(which: Kernel, address: int = 4096) -> str:
        table = engine.Table(which, torch.device("cpu"), sizes=[5000], groups=[0], streams=[0])
        for column in ("param", "grad", *which.columns):
            table.place(column, [address])
        table.launch([settings(0.1)], None, None)
        return launched[-1]

    bind = engine._bound
    monkeypatch.setattr(engine, "_bound", warmed)
    monkeypatch.setattr(driver, "_active", H100())
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield launch


@by_name(COMPILED)
def test_the_kernel_compiles(case, compiled):
    which = kernel(case, torch.float32, alters=True)
    code = compiled(which)
    tensors = 2 + len(set(which.columns) - {"step"})
    assert len(re.findall(r"ld\.global\.v4\.b32", code)) == 2 * tensors
    assert len(re.findall(r"st\.global\.v4\.b32", code)) == 2 * (tensors - 1)
    # IEEE arithmetic: nothing fused, no approximate quotients or roots.
    assert not re.search(r"div\.(full|approx)|sqrt\.approx", code)
    assert bool(re.search(r"fma\.rn\.(ftz\.)?f32", code)) == ("erf" in case.name)  # CUDA's own erff
    assert ("atom.global" in code) == ("step" in which.columns)
    if "atom.global" in code:
        # All threads have read the step when one of them says that this chunk is finished.
        assert "bar.sync" in code[: code.index("atom.global")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_compile(dtype, compiled):
    code = compiled(m_svag(dtype))
    assert re.search(r"ld\.global\.v2\.b64" if dtype == torch.float64 else r"\.v4\.b32", code)


def test_unaligned_tensors_are_read_one_by_one(compiled):
    assert not re.search(r"global\.v\d", compiled(m_svag(), address=4104))


# ------------------------------------------------------------------------------ where it is absent


def test_without_triton_there_is_no_engine(monkeypatch):
    forget(monkeypatch)
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError):
        importlib.import_module("svag.optim.engines.cuda")
    found = support.engine.__wrapped__("cuda")
    assert isinstance(found, str)
    assert "Triton is not installed" in found


def test_without_a_compiler_there_is_no_engine(monkeypatch):
    forget(monkeypatch)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    found = support.engine.__wrapped__("cuda")
    assert isinstance(found, str)
    assert "install gcc or clang, or set CC" in found


# ---------------------------------------------------------------------------------------- on a GPU


def on_cuda(case: Case, steps: Any, dtype: torch.dtype, **options: Any) -> list[Any]:
    param = nn.Parameter(torch.zeros(SIZE, dtype=dtype, device="cuda"))
    optimizer = case.build([param], lr=case.lr, fused=True, **options)
    history = []
    for gradient in steps:
        param.grad = torch.from_numpy(gradient).to("cuda", dtype)
        optimizer.step()
        history.append(param.detach().cpu().double().numpy().copy())
    return history


@on_a_gpu
@both_precisions
@by_name(CASES)
def test_a_gpu_conforms(case, dtype):
    decay = case.decay(0.9)
    history = on_cuda(case, GRADIENTS, dtype, **decay)
    assert_conforms("GPU", dtype, history, case, lr=case.lr, **decay)


@on_a_gpu
@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
def test_a_gpu_rounds_as_the_interpreter_does(engine, dtype):
    (case,) = named("m-ssd")
    ours = on_cuda(case, GRADIENTS, dtype, stochastic_rounding=dtype == torch.bfloat16)
    options = {"lr": case.lr, "stochastic_rounding": dtype == torch.bfloat16}
    theirs = follow(case, GRADIENTS, np.zeros(SIZE), dtype, fused=True, **options)
    np.testing.assert_array_equal(ours, theirs)


class Twins:
    """One model twice, trained alike: one step captured in a graph, the other as it is."""

    def __init__(self, name: str, **options: Any) -> None:
        torch.manual_seed(0)
        (self.case,) = named(name)
        net = nn.Sequential(nn.Linear(30, 700), nn.Tanh(), nn.Linear(700, 9)).cuda()
        self.models = [net, copy.deepcopy(net)]
        self.lrs = [torch.tensor(self.case.lr, device="cuda") for _ in range(2)]
        self.optimizers = [
            self.case.build(model.parameters(), lr=lr, fused=True, capturable=True, **options)
            for model, lr in zip(self.models, self.lrs, strict=True)
        ]
        self.data = torch.randn(50, 30, device="cuda")
        self.graph = torch.cuda.CUDAGraph()

    def step(self, which: int) -> None:
        self.optimizers[which].zero_grad(set_to_none=True)
        self.models[which](self.data).square().mean().backward()
        self.optimizers[which].step()

    def capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(0)
        torch.cuda.current_stream().wait_stream(stream)
        for _ in range(3):
            self.step(1)
        with torch.cuda.graph(self.graph):
            self.step(0)

    def assert_equal(self) -> None:
        for ours, theirs in zip(*(model.parameters() for model in self.models), strict=True):
            assert torch.equal(ours, theirs)
            states = (o.state[p] for o, p in zip(self.optimizers, (ours, theirs), strict=True))
            for a, b in zip(*(state.values() for state in states), strict=True):
                assert torch.equal(a, b)


@on_a_gpu
@pytest.mark.parametrize("name", ["ssd", "m-svag", "adam"])
def test_replays_equal_steps_to_the_bit(name):
    """Also when the step size changes, and when an uncaptured step comes between."""
    twins = Twins(name)
    twins.capture()
    for lr in (1.0, 0.5, 0.25):
        for tensor in twins.lrs:
            tensor.fill_(lr * twins.case.lr)
        twins.data.normal_()
        twins.graph.replay()
        twins.step(1)
        twins.assert_equal()
        twins.data.normal_()
        twins.step(0), twins.step(1)
        twins.assert_equal()


@on_a_gpu
def test_a_graph_outlives_its_optimizer_s_tables():
    twins = Twins("m-svag")
    twins.capture()
    twins.optimizers[0]._plan = None
    junk = [torch.full((4096,), 7, dtype=torch.int64, device="cuda") for _ in range(64)]
    pinned = [torch.full((4096,), 7, dtype=torch.int64, pin_memory=True) for _ in range(64)]
    for _ in range(3):
        twins.graph.replay()
        twins.step(1)
    twins.assert_equal()
    assert all(int(x.sum()) == 7 * 4096 for x in (*junk, *pinned))


@on_a_gpu
def test_the_scaler_leaves_out_a_step_with_inf():
    param = nn.Parameter(torch.ones(5, device="cuda"))
    optimizer = svag.MSVAG([param], fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0, growth_interval=1000)
    for factor, counted in ((1.0, 1), (torch.inf, 1), (1.0, 2)):
        before = param.detach().clone()
        optimizer.zero_grad()
        scaler.scale((factor * param).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert float(optimizer.state[param]["step"]) == counted
        assert torch.equal(before, param) == (factor == torch.inf)
    torch.testing.assert_close(param.detach(), torch.full_like(param, 0.8))
    assert scaler.get_scale() == 2.0


@on_a_gpu
def test_more_elements_than_32_bits_count():
    size = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 5 * size:
        pytest.skip("needs 11 GB of GPU memory")
    param = nn.Parameter(torch.zeros(size, dtype=torch.bfloat16, device="cuda"))
    param.grad = torch.ones_like(param)
    svag.SGD([param], lr=1.0, fused=True).step()
    assert bool((param == -1).all())
