"""What is said of the track record is what the records in results/dissect say."""

import json
import runpy
from pathlib import Path

import pytest

from svag.diagnosis.track_record import of_step_sizes, track_record

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    if not (ROOT / "results" / "dissect").exists():
        pytest.skip("results/dissect is not part of the package")
    return runpy.run_path(str(ROOT / "docs" / "make_dissect.py"))


def test_the_page_and_the_track_record_are_those_of_the_records(script):
    found = script["cases"]()
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](found)
    assert track_record() == script["track_record"](found)


def test_the_readme_quotes_a_dissection(script):
    rows = [json.loads(line) for line in script["SHOWN"].read_text().splitlines()]
    assert script["answer"](rows) in script["README"].read_text(encoding="utf-8")


def case(script, name="made", **said):
    statements = [
        {"effect": "sign", "verdict": said["sign"], "one_step": said["sign"], "race": "helps"},
        {"effect": "adaptation", "verdict": "hurts", "one_step": "hurts", "race": "hurts"},
    ]
    race = {"kind": "race", "steps": 50, "lrs": {"adam": said["lr"], "m-sgd": None}}
    rows = [{"kind": "conclusion", "statements": statements, "suggestions": []}, race]
    study = {
        "steps": 50,
        "methods": {"adam": {"lr": 0.01}},
        "on_train_loss": {
            "sign": {"interval": [-2.0, -1.0]},
            "adaptation": {"interval": [-1.0, 1.0]},
        },
    }
    return script["Case"](name, study, {0: rows})


def test_predictions_are_counted(script):
    found = [case(script, sign=said, lr=0.01) for said in ("helps", "hurts", "cannot tell")]
    counts = script["predictions"](found, "verdict", 0)
    assert (counts["pairs"], counts["said"], counts["right"], counts["wrong"]) == (6, 5, 1, 1)
    assert counts["unseen"] == 3
    assert counts["found"].startswith("1 of 3")


def test_step_sizes_are_counted(script):
    found = [case(script, sign="helps", lr=lr) for lr in (0.003, 0.01, 0.029, 0.0334, 0.2)]
    counts = script["step_sizes"](found, 0, lambda name, key: True)
    assert counts["factor"].startswith("2 of 5")
    assert counts["grid"].startswith("3 of 5")
    assert list(script["misses"](found[-1:], 0)) == ["made, Adam: 20 times the search's"]


def test_the_sentence_has_the_counts():
    counts = track_record()
    assert f"{counts['within']} of {counts['pairs']} suggestions" in of_step_sizes()
