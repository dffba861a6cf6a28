"""What the callbacks of trainers do without their trainers."""

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import svag
from svag.errors import InvalidOption, UnknownOption
from svag.integrations.figures import (
    Waiting,
    check_options,
    check_variance_options,
    destinations,
)
from svag.integrations.loaders import check_last_step, warn_of_unused

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["transformers", "lightning", "pytorch_lightning"]))
from svag.errors import MissingPackage
from svag.integrations import hf, lightning
for make, extra in ((lambda: hf.MonitorCallback(None), "svag[hf]"),
                    (lambda: lightning.MonitorCallback(), "svag[lightning]")):
    try:
        make()
    except MissingPackage as error:
        assert isinstance(error, ImportError) and extra in str(error), error
    else:
        raise SystemExit("no error")
"""


def test_the_modules_can_be_imported_without_the_packages_and_name_the_extra() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


def test_options_are_checked_before_training_begins() -> None:
    check_options({"every": 3, "batch_size": 8, "by_layer": True})
    for name in ("evry", "optimizer", "model", "hook"):
        with pytest.raises(UnknownOption, match=f"'{name}'.*every, budget, to, batch_size"):
            check_options({name: 1})


def test_options_of_the_variance_are_checked() -> None:
    check_variance_options({"examples": "x", "batch_dim": 1})
    for name in ("exmaples", "model"):
        with pytest.raises(UnknownOption, match=f"'{name}'.*batch_dim, max_bytes, check"):
            check_variance_options({name: 1})


def test_figures_wait_until_they_are_taken() -> None:
    waiting = Waiting("svag1")
    waiting({"kind": "monitor", "step": 3, "layer": "all", "at_rest": 0.5, "variance": None})
    waiting({"kind": "monitor", "step": 3, "layer": "svag.weight", "at_rest": 0.25})
    assert waiting.take() == {"svag1/at_rest": 0.5, "svag1/svag.weight/at_rest": 0.25}
    assert waiting.take() == {}


def test_the_users_own_destinations_stay() -> None:
    records: list[object] = []
    waiting = Waiting()
    options = destinations({"to": records.append, "every": 2}, waiting)
    assert options["every"] == 2
    assert options["by_layer"] is False
    assert options["to"] == [records.append, waiting]


class Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(7))


# items, options of the loader, and whether the last mini-batch of three has one
LAST = {
    "one left": (range(7), {}, True),
    "two left": (range(8), {}, False),
    "none left": (range(9), {}, False),
    "left out": (range(7), {"drop_last": True}, False),
    "of a sampler": (range(9), {"sampler": torch.utils.data.RandomSampler(range(4))}, True),
    "no length": (Endless(), {}, False),
}


@pytest.mark.parametrize("name", LAST)
def test_a_last_mini_batch_of_one_is_warned_of(name: str) -> None:
    items, options, warned = LAST[name]
    loader = DataLoader(items, batch_size=3, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_last_step(loader, micro_batches=False, accumulated=1, steps=-1)
        check_last_step(loader, micro_batches=False, accumulated=1, steps=1)  # ends before
    assert [str(one.message)[:32] for one in caught] == [
        "the last mini-batch of an epoch "
    ] * warned


@pytest.mark.parametrize(
    ("count", "accumulated", "steps", "refused"),
    [(7, 3, -1, True), (7, 3, 3, True), (7, 3, 2, False), (8, 3, -1, False), (9, 3, -1, False)],
)
def test_a_last_step_of_one_micro_batch_is_refused(
    count: int, accumulated: int, steps: int, refused: bool
) -> None:
    options: dict[str, Any] = {"micro_batches": True, "accumulated": accumulated, "steps": steps}
    for given in ([range(count), None], [range(99), count]):
        loader = DataLoader(given[0], batch_size=1)
        if refused:
            with pytest.raises(InvalidOption, match="an epoch has 7 mini-batches and a step acc"):
                check_last_step(loader, **options, batches=given[1])
        else:
            check_last_step(loader, **options, batches=given[1])


def test_a_variance_that_no_optimizer_uses_is_warned_of() -> None:
    params = [torch.nn.Parameter(torch.ones(2))]
    with pytest.warns(UserWarning, match=r"svag\.AdamStar\(\.\.\., variance=\"within-batch\"\)"):
        warn_of_unused([svag.AdamStar(params)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unused = [svag.MSGD(params), svag.Adam(params), torch.optim.Adam(params)]
        warn_of_unused([*unused, svag.SVAG(params, variance="within-batch")])
