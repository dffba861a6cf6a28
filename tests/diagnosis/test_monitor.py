"""When the monitor reads, where records go, what it leaves alone and what it refuses."""

import copy
import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import svag
from svag import Monitor
from svag.diagnosis.monitoring import allowance
from svag.errors import InvalidOption, RecordError

from .watching import Make

# --------------------------------------------------------------------------- when it reads


class Clock:
    """A clock that only the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(allowance, "perf_counter", own)
    return own


def one_parameter() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    param = nn.Parameter(torch.zeros(4))
    param.grad = torch.ones(4)
    return param, svag.MSVAG([param], lr=0.0)


def test_without_a_budget_every_nth_step_is_read() -> None:
    _, optimizer = one_parameter()
    steps: list[int] = []
    with Monitor(optimizer, 3, None, by_layer=False, to=lambda r: steps.append(r["step"])) as m:
        for _ in range(10):
            optimizer.step()
    optimizer.step()
    assert steps == [3, 6, 9]
    assert m.readings == 3


def test_readings_take_at_most_the_budget(clock: Clock) -> None:
    _, optimizer = one_parameter()
    costs = iter([0.5, 0.5, 2.0, *[0.01] * 1000])
    taken: list[tuple[float, float]] = []

    def sink(record: dict[str, Any]) -> None:
        cost = next(costs)
        taken.append((clock.now, cost))
        clock.now += cost

    with Monitor(optimizer, 1, 0.02, by_layer=False, to=sink) as monitor:
        for _ in range(4000):
            clock.now += 0.1
            optimizer.step()
            elapsed = clock.now - taken[0][0]
            paid = sum(cost for at, cost in taken[:-1])
            assert paid <= 0.02 * (taken[-1][0] - taken[0][0]) + 1e-9
    gaps = np.diff([at for at, _ in taken])
    assert gaps[:3] == pytest.approx([25, 25, 100], abs=0.2)
    assert gaps[3:].max() == pytest.approx(0.5, abs=0.2)
    assert monitor.spent == pytest.approx(sum(cost for _, cost in taken))
    assert monitor.overhead == pytest.approx(monitor.spent / elapsed)
    assert monitor.overhead < 0.021


def test_probes_have_half_of_the_budget_and_take_turns(clock: Clock) -> None:
    _, optimizer = one_parameter()
    called: list[str] = []

    def probe(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            called.append(name)
            clock.now += 1.0
            return {"sharpness": 2.5, "lost": math.inf}

        return run

    records: list[dict[str, Any]] = []
    probes = {"one": probe("one"), "two": probe("two")}
    with Monitor(optimizer, 2, 0.1, probes=probes, to=records.append, by_layer=False) as monitor:
        for _ in range(500):
            clock.now += 0.2
            optimizer.step()
    assert called[:4] == ["one", "two", "one", "two"]
    assert monitor.spent == pytest.approx(len(called))
    assert 4 <= len(called) <= 0.05 * 130 + 1
    found = [r for r in records if "probe" in r]
    assert found[0] == {
        "kind": "monitor",
        "step": 2,
        "layer": "all",
        "sharpness": 2.5,
        "lost": None,
        "probe": "one",
    }
    assert len(records) - len(found) == 250  # the clock stands still while the averages are read


def test_the_schedule_is_the_users_own_without_a_hook() -> None:
    _, optimizer = one_parameter()
    with Monitor(optimizer, 2, None, hook=False) as monitor:
        for _ in range(5):
            optimizer.step()
        assert monitor.last == []
        for _ in range(3):
            monitor.observe()
    assert monitor.readings == 1
    assert monitor.last[0]["step"] == 5  # of the averages


def test_before_the_first_step_there_is_no_record() -> None:
    param, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = svag.MSVAG([param, other])
    monitor = Monitor(optimizer, 1, None)
    assert monitor.read() == []
    param.grad = torch.ones(2)
    optimizer.step()
    assert [r["layer"] for r in monitor.last] == ["all", "param0"]
    monitor.close()


# ------------------------------------------------------------------- training is left alone


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int = 6) -> list[Tensor]:
    torch.manual_seed(4)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("make", [svag.MSVAG, svag.Adam, torch.optim.AdamW])
def test_training_is_the_same_to_the_bit(make: Make) -> None:
    plain = net()
    expected = train(plain, make(plain.parameters(), lr=0.01))
    model = net()
    optimizer = make(model.parameters(), lr=0.01)
    with Monitor(optimizer, 1, None, model=model, coordinates=5) as monitor:
        assert all(map(torch.equal, train(model, optimizer), expected))
    assert monitor.readings == 6


def test_an_optimizer_is_copied_and_pickled_without_its_monitor() -> None:
    _, optimizer = one_parameter()
    with Monitor(optimizer, 1, None) as monitor:
        for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            copied.step()
        assert monitor.readings == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_step_has_no_more_graphs_and_is_observed() -> None:
    from torch._dynamo.testing import CompileCounter

    frames = {}
    for kind in (svag.MSVAG, torch.optim.AdamW):
        for monitored in (False, True):
            torch._dynamo.reset()
            model = net()
            optimizer = kind(model.parameters(), lr=0.01)
            counter = CompileCounter()
            stepped = torch.compile(optimizer.step, backend=counter)
            monitor = Monitor(optimizer, 2, None, hook=monitored)
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.ones(2, 4)).square().mean().backward()
                stepped()
            monitor.close()
            assert monitor.readings == (2 if monitored else 0)
            frames[kind, monitored] = counter.frame_count, counter.op_count
        assert frames[kind, True] == frames[kind, False]
    assert frames[svag.MSVAG, True][1] > 0


def test_a_compiled_model_keeps_its_one_graph() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = net(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizer = svag.MSVAG(model.parameters())
    with Monitor(optimizer, 1, None, model=model) as monitor:
        train(compiled, optimizer, steps=3)
    assert counter.frame_count == 1
    assert monitor.readings == 3
    torch._dynamo.reset()


def test_a_step_in_one_graph_is_observed_from_outside() -> None:
    from torch._dynamo.testing import CompileCounter

    _, optimizer = one_parameter()
    optimizer.step()
    torch._dynamo.reset()
    counter = CompileCounter()
    stepped = torch.compile(lambda: optimizer.step(), backend=counter, fullgraph=True)
    with Monitor(optimizer, 1, None, hook=False) as monitor:
        for _ in range(3):
            stepped()
            monitor.observe()
    assert counter.frame_count == 1
    assert monitor.last[0]["step"] == 4
    torch._dynamo.reset()


# ----------------------------------------------------------------------- names and records


def test_layers_have_the_models_names() -> None:
    def layers(optimizer: torch.optim.Optimizer, **options: Any) -> list[str]:
        with Monitor(optimizer, 1, None, **options) as monitor:
            train(model, optimizer, steps=1)
        return [record["layer"] for record in monitor.last[1:]]

    model = net()
    names = [name for name, _ in model.named_parameters()]
    renamed = [(f"body.{name}", p) for name, p in model.named_parameters()]
    assert layers(svag.MSVAG(model.parameters()), model=model) == names
    assert layers(svag.MSVAG(model.parameters()), named_parameters=renamed) == [
        f"body.{name}" for name in names
    ]
    assert layers(svag.MSVAG(model.named_parameters())) == names
    assert layers(torch.optim.AdamW(model.parameters())) == ["param0", "param1", "param2", "param3"]
    backwards = [{"params": [p]} for p in reversed(list(model.parameters()))]
    assert layers(svag.MSVAG(backwards), model=model) == names[::-1]


def test_json_lines_are_appended_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "new" / "monitor.jsonl"
    for _ in range(2):
        _, optimizer = one_parameter()
        with Monitor(optimizer, 1, None, to=path) as monitor:
            optimizer.step()
            assert len(path.read_text().splitlines()) % 2 == 0
            optimizer.step()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2] * 2
    assert lines[-2:] == monitor.last
    assert lines[0]["variance"] is None


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    _, optimizer = one_parameter()
    with (
        Monitor(optimizer, 1, to=str(tmp_path)),
        pytest.raises(RecordError, match=re.escape(f"cannot write {tmp_path}")),
    ):
        optimizer.step()


def test_tensorboard_and_functions_get_the_same_figures(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="no tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records: list[dict[str, Any]] = []
    _, optimizer = one_parameter()
    writer = tensorboard.SummaryWriter(str(tmp_path))
    with Monitor(optimizer, 2, None, to=[writer, records.append]):
        for _ in range(4):
            optimizer.step()
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("svag/param0/gamma_mean")]
    expected = [(r["step"], r["gamma_mean"]) for r in records if r["layer"] == "param0"]
    assert [step for step, _ in scalars] == [step for step, _ in expected] == [2, 4]
    assert [x for _, x in scalars] == pytest.approx([x for _, x in expected])
    assert "svag/overhead" in events.Tags()["scalars"]


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: svag.SGD(p), "SGD, g, keeps no average of squared gradients"),
        (lambda p: svag.MSSD(p), r"MSSD, sign\(m\), keeps no average"),
        (lambda p: torch.optim.SGD(p), r"torch\.optim\.sgd\.SGD are not known"),
        (lambda p: torch.optim.RMSprop(p), r"use an optimizer of svag .* or torch\.optim\.Adam"),
    ],
)
def test_optimizers_that_keep_no_variance_are_refused(make: Make, words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        Monitor(make([nn.Parameter(torch.zeros(1))]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every=0 is not a number of steps"),
        ({"every": 2.5}, r"every=2\.5"),
        ({"every": None}, "every=None is not a number of steps"),
        ({"every": math.nan}, "every=nan"),
        ({"every": math.inf}, "every=inf"),
        ({"budget": "2%"}, "budget='2%' is a share"),
        ({"batch_size": "64"}, "batch_size='64' is not a number of examples"),
        ({"coordinates": "all"}, "coordinates='all' is not an integer"),
        ({"coordinates": True}, "coordinates=True"),
        ({"seed": 0.5}, r"seed=0\.5 is not an integer"),
        ({"seed": 2**70}, "seed=1180591620717411303424"),
        ({"model": 5}, r"model=5 is no torch\.nn\.Module"),
        ({"named_parameters": [3]}, r"has 3, not a pair"),
        ({"probes": [1]}, r"probes=\[1\] are no functions by name"),
        ({"probes": {"noise": 3}}, "are no functions by name"),
        ({"budget": 0}, "budget=0 is a share of the wall time"),
        ({"budget": 1.5}, r"budget=1\.5"),
        ({"batch_size": 0}, "batch_size=0 is not a number of examples"),
        ({"coordinates": 0}, "coordinates=0"),
        ({"to": 3}, "to=3 is no place for records"),
        ({"to": [{}]}, r"to=\{\} is no place"),
        ({"model": nn.Linear(1, 1), "named_parameters": []}, "not both"),
    ],
)
def test_options_outside_their_sets_are_refused(options: dict[str, Any], words: str) -> None:
    _, optimizer = one_parameter()
    with pytest.raises(InvalidOption, match=words):
        Monitor(optimizer, **options)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("found", [5, {"noise": "much"}, {"noise": torch.zeros(2)}])
def test_what_a_probe_may_not_return(found: Any) -> None:
    _, optimizer = one_parameter()
    with (
        Monitor(optimizer, 1, None, probes={"own": lambda: found}),
        pytest.raises(InvalidOption, match=r"the probe 'own' returned .*dictionary of numbers"),
    ):
        optimizer.step()


def test_numbers_of_other_packages_are_numbers() -> None:
    _, optimizer = one_parameter()
    options: dict[str, Any] = {"batch_size": np.float32(8), "coordinates": np.int64(2)}
    probes = {"own": lambda: {"of numpy": np.float32(1), "of torch": torch.tensor([2.0])}}
    records: list[dict[str, Any]] = []
    with Monitor(
        optimizer, np.int64(1), None, seed=np.int32(3), to=records.append, probes=probes, **options
    ):
        optimizer.step()
    assert (records[-1]["of numpy"], records[-1]["of torch"]) == (1.0, 2.0)


def test_a_wrapped_optimizer_is_read_inside_its_wrapper() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inside: torch.optim.Optimizer) -> None:
            self.optimizer = inside

        def step(self) -> None:  # type: ignore[override]
            self.optimizer.step()

    _, optimizer = one_parameter()
    wrapper = Wrapper(Wrapper(optimizer))
    with Monitor(wrapper, 1, None) as monitor:
        wrapper.step()
    assert monitor.readings == 1
