"""What each record of a folder is to its study."""

from collections import Counter
from dataclasses import replace

from report.studies import BASE, study

from svag.lab import studies
from svag.lab.records import RecordWriter, identity, load
from svag.lab.roles import parts
from svag.lab.studies import Study, keep


def roles_of(folder):
    found = parts([one.study for one in studies.filed(folder)], load(folder))
    return found, {identity(record): record for record in load(folder)}


def test_every_record_of_a_study_has_the_part_that_the_protocol_gave_it(tmp_path):
    analysis = study(tmp_path, seeds=3)
    found, records = roles_of(tmp_path)
    assert found.keys() == records.keys()
    assert {part.study for part in found.values()} == {analysis.study.id}
    for result in analysis.methods.values():
        of_method = {
            name: record for name, record in records.items()
            if record.run["method"] == result.entrant.key
        }  # fmt: skip
        finals = {identity(record) for record in result.outcome.final}
        assert {name for name in of_method if found[name].role == "final"} == finals
        seeds = {
            role: {r.run["seed"] for name, r in of_method.items() if found[name].role == role}
            for role in ("search", "selection", "final")
        }
        assert seeds == {"search": {0}, "selection": {1, 2, 3}, "final": {1001, 1002, 1003}}


def test_runs_at_a_step_size_that_was_given_up_are_not_final(tmp_path):
    analysis = study(tmp_path, seeds=3, one_lost=["m-sgd"])
    found, records = roles_of(tmp_path)
    given_up = {name for name, part in found.items() if part.role == "abandoned"}
    lost = analysis.methods["m-sgd"].outcome.lost
    assert given_up == {identity(record) for several in lost.values() for record in several}
    assert given_up
    assert Counter(records[name].run["method"] for name in given_up).keys() == {"m-sgd"}


def test_a_record_of_no_study_has_no_part(tmp_path):
    study(tmp_path, searched=False)
    stranger = replace(BASE, method="sgd", lr=0.5, seed=77)
    with RecordWriter(tmp_path, stranger) as recorder:
        recorder.end("interrupted")
    found, records = roles_of(tmp_path)
    assert records.keys() - found.keys() == {stranger.id}


def test_of_two_studies_that_use_a_record_the_latest_is_named(tmp_path):
    first = study(tmp_path, searched=False, seeds=2).study
    second = Study(base=first.base, methods=first.methods, seeds=1, lrs=first.lrs)
    keep(tmp_path, second)
    found = parts([second, first], load(tmp_path))
    assert Counter(part.study for part in found.values()) == {second.id: 4, first.id: 4}
    turned = parts([first, second], load(tmp_path))
    assert {part.study for part in turned.values()} == {first.id}
