"""A record changed by hand: the analysis refuses it with its file's name, or is an analysis."""

import json

import pytest
from lab.synthetic import follow, record, study_of

from analysis.test_study import MERITS
from svag.analysis.study import Analysis, analyse
from svag.analysis.verdict import verdict
from svag.errors import RecordError
from svag.lab.records import RecordWriter, path_of
from svag.lab.studies import keep

VALUES = (None, True, "", "x", -1, 0, 1, 0.5, 1e308, -1e308, 10**30, [], {}, "\x1b[31m", "9" * 500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of one method, and the file of one of its final runs."""
    place = tmp_path_factory.mktemp("study")
    study = study_of("m-sgd")
    _, runs = follow(study, "m-sgd", MERITS["m-sgd"])
    for run in runs:
        made = record(run, MERITS["m-sgd"](run.lr, run.seed))
        with RecordWriter(place, run) as recorder:
            for line in made.evals:
                recorder.eval(**{k: v for k, v in line.items() if k != "kind"})
            recorder.end(**{k: v for k, v in made.end.items() if k != "kind"})
    keep(place, study)
    return place, path_of(place, runs[-1])


def outcome(place, path):
    """What the folder says, or that the file is refused by its name."""
    try:
        found = analyse(place)
    except RecordError as error:
        return "refused" if path.name in str(error) else f"without its name: {error}"
    assert isinstance(found, Analysis)
    assert verdict(found)
    return "analysed"


def test_the_study_as_it_is(folder):
    assert outcome(*folder) == "analysed"


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_every_field_of_every_line(folder, number):
    place, path = folder
    before = path.read_text()
    lines = [json.loads(line) for line in before.splitlines()]
    assert len(lines) == 4
    refused = 0
    try:
        for name in list(lines[number]):
            changed = [{k: v for k, v in lines[number].items() if k != name}]
            changed += [{**lines[number], name: value} for value in VALUES]
            for line in changed:
                mutated = [*lines[:number], line, *lines[number + 1 :]]
                path.write_text("".join(f"{json.dumps(one)}\n" for one in mutated))
                said = outcome(place, path)
                assert said in ("refused", "analysed"), line
                refused += said == "refused"
    finally:
        path.write_text(before)
    assert refused > 10
