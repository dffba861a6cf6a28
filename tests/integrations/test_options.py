"""What the callbacks of trainers do without their trainers."""

import subprocess
import sys

import pytest

from svag.errors import UnknownOption
from svag.integrations.figures import (
    Waiting,
    check_options,
    check_variance_options,
    destinations,
)

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
