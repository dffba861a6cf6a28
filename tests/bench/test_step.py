"""``svag bench step``: what it counts, divides and prints; never how long anything takes."""

import ctypes
import re
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import svag
from svag.__main__ import main
from svag.anatomy import METHODS
from svag.bench import allocation, contestants, step
from svag.errors import InvalidOption, UnknownName

ROWS = {f"svag.{row.optimizer}": row for row in METHODS.values()}


@pytest.fixture(autouse=True)
def two_threads():
    """What the targets are for."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A layout of the name that targets know, in a size that costs nothing."""
    monkeypatch.setitem(contestants.LAYOUTS, "160 x 1,000", lambda: [torch.Size([10, 7])] * 3)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``svag bench step`` in this process; returns exit code, output and messages."""

    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "400")
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one
        monkeypatch.setattr(sys, "argv", ["svag", "bench", "step", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return run


def stepper(make, shapes=((10, 7), (5,))):
    made = step.Stepper(make, [torch.Size(shape) for shape in shapes], "cpu")
    made.prepare()
    made.run()
    return made


class Doing:
    """A runner that does as it is told."""

    def __init__(self, run):
        self.run = run

    def prepare(self):
        pass


# --- what moves and what stays


@pytest.mark.parametrize("name", contestants.OURS)
def test_bytes_are_those_of_the_anatomy_s_buffers(name):
    """Parameter and averages are read and written, the gradient is read."""
    made = stepper(contestants.OURS[name].make)
    row = ROWS[name.partition(",")[0]]
    each = 2 if name.endswith("bfloat16 state") else 4
    elements = sum(param.numel() for param in made.params)
    averages = len(row.anatomy.buffers) * each
    assert step.bytes_moved(made.optimizer) == (3 * 4 + 2 * averages) * elements
    counters = 4 * len(made.params) * bool(averages)
    assert step.bytes_kept(made.optimizer) == averages * elements + counters


@pytest.mark.parametrize(
    ("name", "moved", "kept"),
    [
        ("svag.MSVAG", 28, 8),
        ("svag.MSSD", 20, 4),
        ("svag.SSD", 12, 0),
        ("svag.Adam, bfloat16 state", 20, 4),
        ("svag.MSGD, bfloat16 state", 16, 2),
        ("torch Adam, fused", 28, 8),
        ("torch SGD momentum, fused", 20, 4),
        ("torch SGD, fused", 12, 0),
    ],
)
def test_bytes_an_element_as_in_the_issue(name, moved, kept):
    made = stepper({**contestants.OURS, **contestants.PEERS}[name].make, [(100_000,)])
    assert step.bytes_moved(made.optimizer) / 100_000 == moved
    assert step.bytes_kept(made.optimizer) / 100_000 == pytest.approx(kept, abs=1e-3)


@pytest.mark.parametrize("moved", [28 * 1000, 12 * 7, 16 * 1001])
def test_a_copy_moves_as_many_bytes(moved):
    copy = step.Copy(moved, "cpu")
    copy.prepare()
    copy.run()
    assert copy._source.nbytes + copy._target.nbytes == pytest.approx(moved, abs=8)
    assert torch.equal(copy._source, copy._target)


def test_nobody_shares_a_tensor_and_gradients_move():
    one, other = (stepper(svag.MSVAG) for _ in range(2))
    assert not {p.data_ptr() for p in one.params} & {p.data_ptr() for p in other.params}
    seen = []
    for _ in range(3):
        one.prepare()
        seen.append([param.grad.data_ptr() for param in one.params])
        for param in one.params:
            assert param.grad.shape == param.shape
            assert param.grad.is_contiguous()
    assert seen[0] == seen[2]
    assert all(a != b and (a - b) % 64 == 0 for a, b in zip(*seen[:2], strict=True))


# --- what a step allocates


def in_c():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    memory = libc.malloc(8_000_000)
    libc.memset(memory, 1, 8_000_000)
    libc.free(memory)


@pytest.mark.parametrize(
    "run",
    [
        lambda: torch.ones(2_000_000),
        lambda: np.ones(1_000_000),
        lambda: bytes(bytearray(8_000_000)),
        in_c,
    ],
    ids=["torch", "NumPy", "Python", "C"],
)
def test_allocations_are_seen_whoever_makes_them(run):
    if (nothing := allocation.bytes_allocated(Doing(lambda: None), "cpu")) is None:
        pytest.skip("this C library has no malloc_trim")
    assert nothing < 100_000
    assert allocation.bytes_allocated(Doing(run), "cpu") > 7_900_000


@pytest.mark.parametrize("name", contestants.OURS)
def test_a_fused_step_has_no_temporaries(name):
    """Whatever the size: 4 MB of parameters here."""
    pytest.importorskip("numba")
    made = stepper(contestants.OURS[name].make, [(1_000_000,)])
    allocated = allocation.bytes_allocated(made, "cpu")
    assert allocated is None or allocated < contestants.ALLOCATED_AT_MOST


# --- the order of a contest, and its arithmetic


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 20])
def test_nobody_follows_the_same_one_all_the_time(count):
    rounds = [step.order(count, turn) for turn in range(2 * count)]
    assert all(sorted(turn) == list(range(count)) for turn in rounds)
    for begin in (0, count) if count % 2 == 0 else ():
        followed = [pair for turn in rounds[begin : begin + count] for pair in pairwise(turn)]
        assert len(followed) == len(set(followed)) == count * (count - 1)
    followed = Counter(pair for turn in rounds for pair in pairwise(turn))
    assert len(followed) == count * (count - 1)
    assert set(followed.values()) <= {2}


def test_every_round_times_everybody_once_and_the_first_does_not_count():
    log = []

    class Runner:
        def __init__(self, name):
            self.name = name

        def prepare(self):
            log.append(("prepare", self.name))

        def run(self):
            log.append(("run", self.name))

    def clock(run):
        run()
        return float(len(log))

    names = ["a", "b", "c"]
    times = step.interleave({name: Runner(name) for name in names}, 4, clock)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys(names, 4)
    assert min(min(values) for values in times.values()) > 6
    assert len(log) == 2 * 3 * 5
    for ready, ran in zip(log[::2], log[1::2], strict=True):
        assert (ready[0], ran[0], ready[1]) == ("prepare", "run", ran[1])


def test_ratios_are_of_the_same_round():
    """A machine that becomes ten times slower changes none."""
    peer = [1.0, 10.0, 2.0, 20.0, 4.0]
    own = [0.5, 6.0, 1.4, 16.0, 3.6]
    assert step.ratios(own, peer) == pytest.approx((0.6, 0.7, 0.8))
    assert step.ratios(peer, peer) == (1, 1, 1)
    assert step.ratios([1.0, 3.0], [2.0, 2.0]) == pytest.approx((0.75, 1.0, 1.25))


def row(**changes):
    made = step.Timing("40 x 500,000", "svag.MSVAG", 25.0, 20_000_000, 28.0)
    return replace(made, **changes)


def test_bandwidth():
    assert row().bandwidth == pytest.approx(28 * 20e6 / 25e-3 / 1e9)


def test_goals_are_met_or_missed_at_their_bounds():
    assert row().goals == {}
    close = step.Quartiles(0.5, 1.0, 1.5)
    assert row(ratio=close).goals == {"ratio": (1.0, True)}
    assert row(ratio=close._replace(median=1.0001)).goals == {"ratio": (1.0, False)}
    assert row(share=close).goals == {"share": (0.85, True)}
    assert row(share=close._replace(median=0.84)).goals == {"share": (0.85, False)}
    assert row(allocated=999_999).goals == {"allocated": (1e6, True)}
    assert row(allocated=1_000_000).goals == {"allocated": (1e6, False)}
    assert row(layout="character LSTM", ratio=close, share=close).goals == {}
    assert row(name="torch Adam, foreach", ratio=close, share=close, allocated=9**9).goals == {}


def test_targets_are_of_what_is_measured():
    for table in (contestants.RATIO_AT_MOST, contestants.SHARE_AT_LEAST):
        assert table.keys() <= contestants.LAYOUTS.keys()
        assert all(of_layout.keys() <= contestants.OURS.keys() for of_layout in table.values())
    peers = {contestant.peer for contestant in contestants.OURS.values()}
    assert peers <= contestants.PEERS.keys() | contestants.OURS.keys()


# --- the command


def test_the_whole_command(command):
    code, out, err = command("--rounds", 2, "--layout", "160 x 1,000")
    assert code == 0
    assert not [line for line in err.splitlines() if "compiling the fused step" not in line]
    head, *lines = out.splitlines()
    assert head.startswith(f"cpu, 2 threads, torch {torch.__version__}")
    shown = [line for line in lines if line.startswith("160 x 1,000")]
    names = [re.split(r"  +", line)[1] for line in shown]
    entrants, missing = contestants.contestants()
    assert [name for name in names if not name.startswith("copy, ")] == list(entrants)
    assert names[len(entrants) :] == [f"copy, {b} bytes an element" for b in (12, 16, 20, 28)]
    assert all(name in head for name in missing)
    for name, line in zip(names, shown, strict=True):
        columns = re.split(r"  +", line)
        assert float(columns[2]) > 0
        if name in contestants.OURS:
            assert columns[3] == contestants.OURS[name].peer
            median, low, high = map(float, re.findall(r"[\d.]+", columns[4]))
            assert low <= median <= high
            assert "kB" in line or allocation.bytes_allocated(Doing(int), "cpu") is None
    if step.has_targets("cpu"):
        judged = {n for n, line in zip(names, shown, strict=True) if re.search("met|missed", line)}
        assert judged == contestants.RATIO_AT_MOST["160 x 1,000"].keys()
        assert lines[-1].startswith("targets missed: ")


def test_no_targets_for_other_numbers_of_threads(command):
    code, out, _ = command("--rounds", 2, "--layout", "160 x 1,000", "--threads", 1)
    assert code == 0
    assert out.startswith("cpu, 1 threads")
    assert not re.search(r"\bmet\b|missed", out)
    if not isinstance(step.support.engine("cpu"), str):
        assert "the targets are those of a CPU and two threads" in out


def test_what_is_not_installed_is_left_out_and_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    code, out, _ = command("--rounds", 2, "--layout", "160 x 1,000")
    assert code == 0
    assert out.count("pytorch_optimizer.MSVAG") == 1
    assert "its package is not installed: pytorch_optimizer.MSVAG" in out.splitlines()[0]


def test_without_a_fused_engine_that_is_said(monkeypatch):
    monkeypatch.setattr(step.support, "engine", lambda device: "there is none")
    assert not step.has_targets("cpu")
    assert "the eager engine's, because there is none" in "; ".join(step.remarks("cpu"))


def test_layouts_are_chosen_by_name():
    assert step.choose(["2c2d", "WRN-40-4"], "cpu") == ["2c2d", "WRN-40-4"]
    assert step.choose([], "cpu") == list(contestants.LAYOUTS)[:-1]
    assert sum(shape.numel() for shape in contestants.LAYOUTS["40 x 2,500,000"]()) == 1e8
    with pytest.raises(UnknownName, match=r"'2c2'; known: .*Did you mean '2c2d'"):
        step.choose(["2c2"], "cpu")


def test_optimizers_come_with_their_peers():
    narrow = "svag.MSVAG, bfloat16 state"
    assert list(step.entrants([narrow])) == ["svag.MSVAG", narrow, contestants.TORCH_ADAM]
    assert list(step.entrants([])) == list(contestants.contestants()[0])
    with pytest.raises(UnknownName, match=r"'svag.MSVG'; known: .*Did you mean 'svag.MSVAG'"):
        step.entrants(["svag.MSVG"])


def test_the_command_times_what_it_is_asked_for(command):
    code, out, _ = command("--rounds", 2, "--layout", "160 x 1,000", "--optimizer", "svag.SSD")
    assert code == 0
    names = re.findall(r"^160 x 1,000\s+(.*?)\s{2,}", out, re.MULTILINE)
    assert names == ["svag.SSD", "torch SGD, fused", "copy, 12 bytes an element"]


def test_a_device_that_is_not_there(monkeypatch, command):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidOption, match=r"--device cuda: .* --device cpu"):
        step.choose([], "cuda")
    code, out, err = command("--device", "cuda")
    assert (code, out) == (2, "")
    assert err.startswith("error: --device cuda")


def test_the_first_step_is_taken_in_processes_of_their_own(monkeypatch, command):
    """Two for each optimizer, with one folder of compiled code that is new to the first."""
    calls = []

    def run(arguments, *, env, **options):
        calls.append((arguments[-1], env["NUMBA_CACHE_DIR"]))
        return type("Done", (), {"stdout": f"{len(calls)}.25\n"})

    monkeypatch.setattr(step.subprocess, "run", run)
    code, out, _ = command("--first-step")
    assert code == 0
    names = ["svag.MSVAG", "svag.Adam", "svag.MSSD", "svag.MSGD", "torch Adam, fused"]
    assert [name for name, _ in calls] == [name for name in names for _ in range(2)]
    assert [a == b for (_, a), (_, b) in pairwise(calls)] == [True, False] * 4 + [True]
    shown = [re.split(r"  +", line.strip()) for line in out.splitlines()[-5:]]
    assert shown == [[n, f"{2 * i + 1}.25", f"{2 * i + 2}.25"] for i, n in enumerate(names)]


def test_a_first_step_in_a_process_of_its_own():
    (first, later) = (step.time_first_step("torch Adam, fused") for _ in range(2))
    assert first > 0
    assert later > 0
