"""Plans carried out for real: the same choices on any number of workers and scale of loss."""

import pytest
from torch import nn
from torch.nn import functional

from lab.made import classification, points, write_task
from svag import problems
from svag.lab import search_starts
from svag.lab.base_run import base_run
from svag.lab.execution import carry_out
from svag.lab.executors.contract import WorkPlace
from svag.lab.executors.local import InProcess, Pool
from svag.lab.protocol import Outcome, plan
from svag.lab.search import StepSizes
from svag.lab.studies import Study


def outcomes(study, executor, folder):
    found = {key: Outcome(key) for key in study.methods}
    plans = {key: plan(study, key, found[key]) for key in study.methods}
    try:
        carry_out(plans, executor, folder)
    finally:
        executor.close()
    return found


def test_any_number_of_workers_makes_the_same_choices(tmp_path):
    """Idle workers carry out ahead what may be needed; it decides nothing."""
    spec = write_task(tmp_path)
    problem = problems.get(spec)
    data = problems.load(problem)
    base = base_run(problem, data, steps=10)
    study = Study(base=base, methods=("m-sgd",), seeds=2, selection_seeds=2)
    alone = outcomes(
        study, InProcess(problem, data, WorkPlace(spec, None, tmp_path / "1")), tmp_path / "1"
    )
    folder = tmp_path / "3"
    together = outcomes(study, Pool(WorkPlace(spec, None, folder), 3), folder)
    for key in study.methods:
        assert together[key].lr == alone[key].lr
        assert set(together[key].search) == set(alone[key].search)
        assert together[key].selection.keys() == alone[key].selection.keys()
    assert len(list(folder.rglob("*.jsonl"))) >= len(list((tmp_path / "1").rglob("*.jsonl")))


def scaled(factor, shift=0.0):
    data = points(train=64)

    def loss(outputs, targets):
        return factor * functional.cross_entropy(outputs, targets) + shift

    metric = problems.accuracy_metric()
    return classification(lambda: nn.Linear(3, 3), data, loss=loss, metric=metric), data


def searched(tmp_path, factor, shift=0.0):
    problem, data = scaled(factor, shift)
    base = base_run(problem, data, steps=20)
    methods = ("m-sgd", "m-ssd")
    study = Study(
        base=base,
        methods=methods,
        seeds=1,
        protocol="paper",
        starts=search_starts.starts(problem, data, base, methods),
    )
    folder = tmp_path / f"{factor:g}{shift:g}"
    found = outcomes(study, InProcess(problem, data, WorkPlace("", None, folder)), folder)
    return {key: (one.lr, study.starts[key]) for key, one in found.items()}


@pytest.mark.parametrize("factor", [1e-2, 1e-6, 100.0])
def test_a_scaled_loss_has_the_same_choice_scaled(tmp_path, factor):
    """What keeps the magnitude needs the step size scaled the other way, what has the sign none."""
    plain, other = searched(tmp_path, 1.0), searched(tmp_path, factor)
    assert other["m-sgd"][0] * factor == pytest.approx(plain["m-sgd"][0], rel=1e-9)
    assert other["m-ssd"] == plain["m-ssd"]
    shift = StepSizes().nearest(1 / factor)
    assert abs(other["m-sgd"][1] - plain["m-sgd"][1] - shift) <= 1


def test_a_shifted_loss_has_the_same_choice(tmp_path):
    assert searched(tmp_path, 1.0, -5.0) == searched(tmp_path, 1.0)


def test_a_model_whose_parameters_are_zero_has_no_measured_start():
    def zeros():
        model = nn.Linear(3, 3)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        return model

    data = points()
    problem = classification(zeros, data)
    base = base_run(problem, data, steps=5)
    assert search_starts.starts(problem, data, base, ("m-sgd", "m-ssd")) == {}
    broken = classification(lambda: nn.Linear(4, 3), data)
    assert search_starts.starts(broken, data, base, ("m-sgd",)) == {}
