"""What only the compiled engine has: memory that it walks through, threads, and code on disk.

That the engines agree with the oracle and with each other is in test_conformance.py and
test_generated.py.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from measured import assert_within
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import svag
from svag.compiled import threads
from svag.errors import EngineUnavailable

from .cases import EVERY_KIND, Case, by_name, named
from .stepping import assert_all_equal, drawn, parameter, step, train

pytest.importorskip("numba", reason="the engine compared with is Numba's (extra fast)")


# Around a vector of 16, the smallest and the largest chunk; 300,000 is three chunks.
SIZES = (0, 1, 15, 16, 17, 8191, 8192, 8193, 131071, 131072, 131073, 300_000)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_element_is_left_out_or_taken_twice(dtype):
    """Whole numbers, so that any other result than this one is seen."""
    for size in SIZES:
        p = nn.Parameter(torch.arange(size, dtype=torch.float64).remainder(100).to(dtype))
        p.grad = torch.arange(size, dtype=torch.float64).remainder(7).to(dtype)
        expected = p.detach() - p.grad
        svag.SGD([p], lr=1.0, fused=True).step()
        assert torch.equal(p, expected), size


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "middle first": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@by_name(named("ssd", "m-svag"))
def test_dense_layouts_step_as_contiguous_ones_to_the_bit(case, layout):
    ends = []
    for arrange in (LAYOUTS[layout], torch.clone):
        p = nn.Parameter(arrange(parameter(3, 4, 90, 130).detach()))
        optimizer = case.build([p], fused=True)
        for n in range(3):
            p.grad = arrange(drawn([p], n)[0])
            optimizer.step()
        for name in case.anatomy.buffers:
            assert optimizer.state[p][name].stride() == p.stride()
        ends.append(p)
    assert ends[0].stride() != ends[1].stride()
    assert torch.equal(*ends)


GAPS = {
    "a gradient laid out in another way": (lambda: torch.zeros(6, 4), lambda: torch.ones(4, 6).T),
    "every other element": (lambda: torch.zeros(6, 8)[:, ::2], lambda: torch.ones(6, 8)[:, ::2]),
    "one element for all": (lambda: torch.zeros(6, 4), lambda: torch.ones(()).expand(6, 4)),
}


@pytest.mark.parametrize("kind", GAPS)
def test_what_the_fused_engine_cannot_walk_through_is_left_to_the_eager_one(kind):
    make, gradient = GAPS[kind]
    p, other = nn.Parameter(make()), nn.Parameter(torch.zeros(5))
    p.grad, other.grad = gradient(), torch.ones(5)
    svag.SGD([p, other], lr=0.5).step()
    assert bool((p == -0.5).all())
    assert bool((other == -0.5).all())
    with pytest.raises(EngineUnavailable, match=r"parameter 0.*fused=None"):
        svag.SGD([p, other], lr=0.5, fused=True).step()
    assert bool((p == -0.5).all())
    assert bool((other == -0.5).all())


# ------------------------------------------------------------------------ tensors that meet


WAYS = pytest.mark.parametrize(
    "flags",
    [{}, {"fused": True}, {"fused": False}, {"foreach": False}, {"foreach": True}],
    ids=str,
)


@WAYS
@pytest.mark.parametrize(("size", "count"), [(131_072, 100), (1000, 2000)])
@pytest.mark.usefixtures("two_threads")
def test_parameters_in_one_memory_step_one_after_the_other(size, count, flags):
    """As torch's do: ``decoder.weight.data = encoder.weight.data`` is how weights are tied."""
    memory = torch.zeros(size)
    params = [nn.Parameter(memory) for _ in range(count)]
    optimizer = svag.SGD(params, lr=1.0, **flags)
    for _ in range(5):
        step(optimizer, -1.0)
    assert memory.unique().tolist() == [5 * count]


@WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
def test_parameters_in_one_memory_step_one_after_the_other_in_every_dtype(dtype, flags):
    memory = torch.zeros(20, dtype=dtype)
    params = [nn.Parameter(memory), nn.Parameter(memory[::2]), nn.Parameter(memory[12:])]
    flags = {} if flags.get("fused") else flags  # which refuses the gaps
    optimizer = svag.SGD(params, lr=1.0, **flags)
    for _ in range(3):
        step(optimizer, -1.0)
    assert memory.real.tolist() == [6.0, 3.0] * 6 + [9.0, 6.0] * 4


@pytest.mark.filterwarnings(
    "ignore:optimizer contains a parameter group with duplicate:UserWarning"
)
@WAYS
@by_name(named("sgd", "m-svag", "adam"))
def test_a_parameter_that_is_listed_twice_steps_twice(case, flags):
    """As torch's for-loop has it; its lists count both steps first."""
    p, q = (nn.Parameter(torch.ones(4)) for _ in range(2))
    twice, once = case.build([p, p], lr=0.1, **flags), case.build([q], lr=0.1, foreach=False)
    for n in range(3):
        step(twice, 1.0 + n)
        step(once, 1.0 + n)
        once.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
@WAYS
@by_name(named("m-ssd", "m-svag"))
def test_parameters_that_overlap_step_as_torch_would_step_them(case, flags, decoupled):
    """The second one sees what the first has done."""
    decay = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    memory, alone = torch.linspace(0.5, 2.0, 40), torch.linspace(0.5, 2.0, 40)
    pieces = [slice(0, 30), slice(10, 40), slice(3, 17)]
    params = [nn.Parameter(memory[piece]) for piece in pieces]
    singles = [alone[piece] for piece in pieces]
    optimizer = case.build(params, **decay, **flags)
    apart = [case.build([p], **decay, foreach=False) for p in map(nn.Parameter, singles)]
    for n in range(3):
        gradients = [torch.linspace(1.0 + i, 2.0 + n, len(p)) for i, p in enumerate(params)]
        step(optimizer, *gradients)
        for one, gradient in zip(apart, gradients, strict=True):
            step(one, gradient)
    torch.testing.assert_close(memory, alone, rtol=2e-5, atol=2e-6)


# ----------------------------------------------------------------------------------- threads


def ends_after_three_steps(case: Case, **options: Any) -> list[Tensor]:
    """Parameters and state of tensors that take many chunks, and of some that take one."""
    params = [parameter(size) for size in (1_000_003, 5, 131_073, 8_193)]
    optimizer = case.build(params, fused=True, **options)
    train(optimizer, steps=3)
    buffers = [optimizer.state[p][name] for p in params for name in case.anatomy.buffers]
    return [p.detach() for p in params] + buffers


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.bfloat16}], ids=["", "bfloat16"])
@by_name(named("m-ssd", "adam"))
def test_neither_the_number_of_threads_nor_whose_they_are_changes_a_bit(case, options, monkeypatch):
    expected = ends_after_three_steps(case, **options)
    for count in (1, 3):
        torch.set_num_threads(count)
        assert_all_equal(ends_after_three_steps(case, **options), expected)
    monkeypatch.setattr(threads, "parallel", lambda: None)
    assert_all_equal(ends_after_three_steps(case, **options), expected)
    assert any(thread.name.startswith("svag") for thread in threading.enumerate())


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("openmp", [True, False], ids=["OpenMP", "Python"])
def test_every_thread_is_given_the_argument_and_waited_for(count, openmp, monkeypatch):
    if not openmp:
        monkeypatch.setattr(threads, "parallel", lambda: None)
    caller, calls = threading.get_ident(), []

    def call(argument: int) -> None:
        if threading.get_ident() != caller:
            time.sleep(0.02)  # the caller is through before the others
        calls.append((argument, threading.get_ident()))

    function = threads._Function(call)
    threads.run(ctypes.cast(function, ctypes.c_void_p).value, 12345, count)
    assert {argument for argument, _ in calls} == {12345}
    assert len(calls) == count
    assert caller in {thread for _, thread in calls}


def test_torchs_openmp_is_found():
    """Linux builds of torch bring one along; without it the engine would run a second pool."""
    assert sys.platform != "linux" or threads.parallel() is not None


# ------------------------------------------------------------------------------------ memory


def allocated_by(step: Any) -> tuple[int, int]:
    """Bytes that torch and that Python and NumPy allocate in a call, at most at once in theirs."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        step()
    ours = sum(max(event.self_cpu_memory_usage, 0) for event in profiler.key_averages())
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return ours, peak - before


@by_name(EVERY_KIND)
def test_a_fused_step_allocates_next_to_nothing(case):
    """40 tensors of 10,000: 1.6 megabytes of gradients."""
    params = [nn.Parameter(torch.ones(10_000)) for _ in range(40)]
    fused, eager = case.build(params, fused=True), case.build(params, foreach=True)
    for optimizer in (fused, eager):
        step(optimizer, 1.0)  # which makes the state
    by_torch, by_python = allocated_by(fused.step)
    assert_within("bytes allocated in a fused step, by torch", by_torch, 1e6)
    assert_within("bytes allocated in a fused step, by Python", by_python, 1e6)
    if case.anatomy.sign or case.anatomy.factor != "none":
        assert allocated_by(eager.step)[0] > 1e6  # the profiler sees what there is to see


# -------------------------------------------------------------------- Numba, and code on disk


def python(code: str, *, cwd: Path | None = None, **environment: str | Path) -> str:
    """Run a program in a process of its own; its output."""
    root = Path(svag.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(root), **{k: str(v) for k, v in environment.items()}},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


WITHOUT_NUMBA = """
    import sys
    sys.modules["numba"] = None
    import torch, svag
    from svag.errors import EngineUnavailable

    def end(**flags):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(5000))]
        optimizer = svag.MSVAG(params, **flags)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in params])

    print(torch.equal(end(), end(fused=False)))
    before = torch.nn.Parameter(torch.ones(3))
    before.grad = torch.ones(3)
    try:
        svag.MSVAG([before], fused=True).step()
    except EngineUnavailable as error:
        print(error)
    print(before.tolist())
"""


def test_without_numba_the_eager_engine_steps_and_fused_true_says_what_to_install():
    equal, refusal, untouched = python(WITHOUT_NUMBA).splitlines()
    assert equal == "True"
    assert "Numba is not installed" in refusal
    assert "pip install 'svag[fast]'" in refusal
    assert untouched == "[1.0, 1.0, 1.0]"


STEP = """
    import torch, svag
    from svag.compiled import machine_code
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = getattr(svag, svag.METHODS["{key}"].optimizer)([p], lr=0.5, fused=True)
    for _ in range(2):
        p.grad = torch.tensor([1.0, -2.0, 4.0, 0.0])
        optimizer.step()
    print(p.tolist(), [code.cache_hits for code in machine_code._KEPT])
"""
PIECES = 2  # the loop and what precedes it

# Two steps along one gradient, of which only the sign counts in ssd.
ENDS = {"sgd": [-1.0, 2.0, -4.0, 0.0], "ssd": [-1.0, 1.0, -1.0, 0.0]}


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, Path]:
    """Folders with the code that a process has left, each of one method."""
    folders = {key: tmp_path_factory.mktemp(key) for key in ("sgd", "ssd")}
    for key, folder in folders.items():
        assert python(STEP.format(key=key), NUMBA_CACHE_DIR=folder) == f"{ENDS[key]} {[0] * PIECES}"
    return folders


def test_a_second_process_compiles_nothing(compiled):
    written = files_in(compiled["ssd"])
    assert sum(name.endswith(".nbc") for name in written) == PIECES
    end = python(STEP.format(key="ssd"), NUMBA_CACHE_DIR=compiled["ssd"])
    assert end == f"{ENDS['ssd']} {[1] * PIECES}"
    assert files_in(compiled["ssd"]) == written


def test_processes_that_compile_at_once_do_not_get_each_others_code(compiled, tmp_path):
    """What two of them leave on disk if the first to write its index is the last to write its code.

    Where both number their files alike, the code under the one's entry is then the other's.
    """
    both = shutil.copytree(compiled["sgd"], tmp_path / "both")
    for path in compiled["ssd"].rglob("*.nbc"):
        shutil.copy(path, both / path.relative_to(compiled["ssd"]))
    end = python(STEP.format(key="sgd"), NUMBA_CACHE_DIR=both)
    assert end.startswith(str(ENDS["sgd"]))


SEVERAL = """
    import torch, svag
    from svag.compiled import machine_code
    differences = []
    for key in {keys}:
        ends = []
        for fused in (True, False):
            p = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 9, dtype=torch.float64))
            optimizer = getattr(svag, svag.METHODS[key].optimizer)([p], lr=0.5, fused=fused)
            for n in range(3):
                p.grad = torch.linspace(-1.0, 2.0, 9, dtype=torch.float64) * (n + 1)
                optimizer.step()
            ends.append(p.detach())
        differences.append(float((ends[0] - ends[1]).abs().max()))
    print(max(differences) < 1e-14, {{code.cache_hits for code in machine_code._KEPT}})
"""


def test_methods_that_processes_of_their_own_have_compiled_stay_apart_in_one(tmp_path):
    """Functions made by one factory are linked by name, and each process counts names from 0."""
    keys = ["sgd", "adam"]
    for key in keys:
        assert python(SEVERAL.format(keys=[key]), NUMBA_CACHE_DIR=tmp_path).startswith("True")
    assert python(SEVERAL.format(keys=keys), NUMBA_CACHE_DIR=tmp_path) == "True {1}"


def test_functions_of_one_factory_are_linked_by_names_of_their_own():
    """Numba's names end in a count, which another process gives to another function."""
    numba_loop = pytest.importorskip("svag.optim.engines.numba_loop")

    def made(key: str) -> str:
        def gamma(x):
            return x

        return numba_loop._bound(key)(gamma).py_func.__qualname__

    assert made("sgd") != made("adam")
    assert made("sgd") == made("sgd")


def test_a_damaged_index_is_no_reason_to_stop(compiled, tmp_path):
    damaged = shutil.copytree(compiled["ssd"], tmp_path / "damaged")
    for path in damaged.rglob("*.nbi"):
        path.write_bytes(b"")  # as a machine that lost power leaves it
    assert python(STEP.format(key="ssd"), NUMBA_CACHE_DIR=damaged).startswith(str(ENDS["ssd"]))


def test_without_a_folder_to_write_to_it_compiles_in_memory(tmp_path):
    """Folders that cannot be made, which holds for root too: their parents are files."""
    package = tmp_path / "site" / "svag"
    shutil.copytree(
        Path(svag.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("not a folder")
    nowhere = tmp_path / "file"
    nowhere.write_text("not a folder either")
    code = STEP.format(key="ssd") + "    print(svag.__file__)\n"
    end, place = python(
        code,
        cwd=tmp_path,
        PYTHONPATH=tmp_path / "site",
        NUMBA_CACHE_DIR=nowhere / "numba",
        XDG_CACHE_HOME=nowhere / "cache",
        HOME=nowhere / "home",
    ).splitlines()
    assert end == f"{ENDS['ssd']} {[0] * PIECES}"
    assert Path(place).is_relative_to(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"site", "file"}


def test_a_full_disk_is_no_reason_to_stop(tmp_path):
    """No file may grow beyond 100 bytes, which is how a full disk looks to who writes one."""
    pytest.importorskip("resource", reason="Windows has no limits of this kind")
    limit = """
    import resource
    import svag.optim.methods  # torch 2.9 writes a file of its own when this imports torch._dynamo
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    """
    end = python(limit + STEP.format(key="ssd"), NUMBA_CACHE_DIR=tmp_path)
    assert end.startswith(str(ENDS["ssd"]))
