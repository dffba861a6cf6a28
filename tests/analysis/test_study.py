"""A study's analysis from records: what counts, what is set aside, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from lab.synthetic import RUN, all_records, follow, record, study_of

from svag.analysis.study import analyse, of_records
from svag.analysis.verdict import verdict
from svag.anatomy import PAPER_METHODS
from svag.errors import RecordError
from svag.lab.records import RecordWriter
from svag.lab.studies import keep

TOPS = {"m-sgd": 0.80, "m-svag": 0.80, "m-ssd": 0.90, "adam": 0.90}


def hill(top):
    """An accuracy with its best step size at 1, and a seed's deviation of a tenth of a point."""

    def merit(lr, seed):
        return top - 0.2 * np.log10(lr) ** 2 + 0.001 * ((seed * 7) % 5 - 2)

    return merit


MERITS = {key: hill(top) for key, top in TOPS.items()}


def made(*methods, **settings):
    study = study_of(*(methods or PAPER_METHODS), **settings)
    return study, all_records(study, {key: MERITS.get(key, hill(0.85)) for key in study.methods})


def test_the_figures_are_those_of_the_fresh_seeds():
    study, records = made()
    analysis = of_records(study, records)
    for key, top in TOPS.items():
        result = analysis.methods[key]
        assert result.lr == 1.0
        expected = [MERITS[key](1.0, seed) for seed in (1001, 1002, 1003)]
        assert result.final["test_accuracy"].mean == pytest.approx(np.mean(expected))
        assert result.final["test_accuracy"].sd == pytest.approx(np.std(expected, ddof=1))
        assert result.final["test_accuracy"].n == 3
        assert abs(result.final["test_accuracy"].mean - top) < 0.002


def test_the_four_cells_and_their_claims():
    analysis = of_records(*made())
    assert analysis.cells == {
        (False, False): "m-sgd",
        (False, True): "m-svag",
        (True, False): "m-ssd",
        (True, True): "adam",
    }
    assert analysis.claims.finding == "sign decides"
    assert analysis.claims.effects["sign"].estimate == pytest.approx(0.1, abs=0.002)


def test_a_variant_is_in_no_cell_that_its_method_is_in():
    analysis = of_records(*made(*PAPER_METHODS, "m-svag(beta=0.5)", "m-svag@within-batch"))
    assert analysis.cells[False, True] == "m-svag"
    alone = of_records(*made("m-sgd", "m-ssd", "adam", "m-svag(beta=0.5)"))
    assert alone.cells == {}  # another beta than the others'


def test_cells_that_differ_in_more_than_the_halves_are_no_design():
    analysis = of_records(*made("m-sgd", "m-ssd", "m-svag", "adam(decoupled, weight_decay=0.1)"))
    assert analysis.cells == {}
    assert analysis.claims is None
    alike = [f"{key}(beta=0.5)" for key in PAPER_METHODS]
    assert len(of_records(*made(*alike)).cells) == 4


def test_a_choice_that_moved_away_is_part_of_the_study():
    study = study_of(*PAPER_METHODS, seeds=3)
    merits = dict(MERITS)
    merits["adam"] = lambda lr, seed: None if seed == 1002 else MERITS["adam"](lr, seed)
    analysis = of_records(study, all_records(study, merits))
    assert analysis.methods["adam"].outcome.moves == 1
    assert analysis.set_aside == []


def test_nothing_is_claimed_of_a_study_on_its_way():
    study, records = made()
    last = [r for r in records if r.run["method"] == "adam" and r.run["seed"] == 1003]
    analysis = of_records(study, [r for r in records if r not in last])
    assert analysis.claims.finding == "unfinished"
    assert "nothing is decided yet" in verdict(analysis)
    assert {one.outcome for one in analysis.observations} == {"not decided"}
    assert analysis.observations[0].detail.startswith("Of the runs that have finished: ")


def test_a_run_in_error_is_named():
    study, records = made()
    for one in records:
        if one.run["method"] == "adam" and one.run["seed"] == 2:
            one.end.update(status="error", message="RuntimeError: out of memory")
    analysis = of_records(study, records)
    assert analysis.methods["adam"].outcome.error == "RuntimeError: out of memory"
    assert "Adam, of which a run ended in an error" in verdict(analysis)


def test_all_four_follow_the_gradient_or_all_four_the_momentum():
    analysis = of_records(*made("sgd", "svag", "m-ssd", "adam"))
    assert analysis.cells == {}
    assert analysis.claims is None
    assert analysis.observations == []


def test_records_of_others_are_set_aside_with_a_reason():
    study, records = made("m-sgd")
    others = [
        replace(RUN, method="m-sgd", steps=300),
        replace(RUN, method="m-sgd", version="2"),
        replace(RUN, method="m-sgd", version="3"),
        replace(RUN, method="m-sgd", data="ffff"),
        replace(RUN, method="m-sgd", metric="f1"),
        replace(RUN, method="adam"),
        replace(RUN, method="m-sgd", lr=77.0),
        replace(RUN, method="m-sgd", optimizer="other"),
        replace(RUN, method="m-sgd", problem="another"),
        replace(RUN, method="m-sgd", weight_decay=0.1),
    ]
    analysis = of_records(study, records + [record(run, 0.5) for run in others])
    assert sorted(analysis.set_aside) == sorted(
        [
            "2 runs of another version of the problem: its code changed",
            "1 run of another length (300)",
            "1 run with other data",
            "1 run with another metric (f1)",
            "1 run of adam, which is not compared",
            "1 run of searches, carried out ahead of need or by another protocol",
            "1 run of m-sgd with other code",
            "1 run of another problem (another)",
            "1 run with another weight decay (0.1)",
        ]
    )


def test_a_metric_that_never_varies_is_refused():
    study = study_of(*PAPER_METHODS)
    records = []
    for key in study.methods:
        _, runs = follow(study, key, lambda lr, seed: 0.1)
        records += [record(run, 0.1) for run in runs]
    with pytest.raises(RecordError, match=r"'accuracy' of 'made-up' has the value 0\.1 in all"):
        of_records(study, records)


def test_divergence_decides_nothing_and_counts():
    study = study_of(*PAPER_METHODS, seeds=5)
    merits = dict(MERITS)
    merits["adam"] = lambda lr, seed: (
        None if seed > 1000 and seed % 1000 == 2 else MERITS["adam"](lr, seed)
    )
    analysis = of_records(study, all_records(study, merits))
    result = analysis.methods["adam"]
    assert (result.diverged, result.many, len(result.runs)) == (1, 5, 4)
    assert result.outcome.moves == 2
    assert analysis.claims.finding == "diverged"
    assert all(o.outcome == "not decided" for o in analysis.observations)


def test_nothing_finished():
    study, records = made("m-sgd")
    with pytest.raises(RecordError, match="run `svag compare` to its end"):
        of_records(study, records[:1])


def test_a_study_on_its_way_shows_what_there_is():
    study, records = made()
    last = [r for r in records if r.run["method"] == "adam" and r.run["seed"] == 1003]
    analysis = of_records(study, [r for r in records if r not in last])
    assert analysis.methods["adam"].outcome.missing == 1
    assert len(analysis.methods["adam"].runs) == 2
    assert analysis.claims is not None


def test_curves_are_means_at_each_evaluation():
    analysis = of_records(*made("m-sgd"))
    curve = analysis.methods["m-sgd"].curves["test_accuracy"]
    assert curve.steps.tolist() == [0, 20]
    assert curve.mean[0] == pytest.approx(0.1)


def test_the_best_value_follows_the_metrics_direction():
    study, records = made("m-sgd")
    for one in records:
        one.evals.insert(1, {**one.evals[0], "step": 10, "test_accuracy": 0.99, "train_loss": 0.2})
    analysis = of_records(study, records)
    assert analysis.methods["m-sgd"].best["test_accuracy"].mean == pytest.approx(0.99)
    assert analysis.methods["m-sgd"].best["train_loss"].mean == pytest.approx(0.2)


def test_effects_of_step_sizes_as_chosen_are_single_intervals():
    analysis = of_records(*made())
    single = analysis.effects["test_accuracy"]["sign"]
    together = analysis.claims.effects["sign"]
    assert single.estimate == pytest.approx(together.estimate)
    assert together.interval[0] < single.interval[0]


class TestFolder:
    def write(self, folder, study):
        for key in study.methods:
            _, runs = follow(study, key, MERITS[key])
            for run in runs:
                made = record(run, MERITS[key](run.lr, run.seed))
                with RecordWriter(folder, run) as recorder:
                    for line in made.evals:
                        recorder.eval(**{k: v for k, v in line.items() if k != "kind"})
                    end = {k: v for k, v in made.end.items() if k not in ("kind", "status")}
                    recorder.end("done", **end)
        return keep(folder, study)

    def test_the_latest_study_and_another(self, tmp_path, monkeypatch):
        first = self.write(tmp_path, study_of("m-sgd"))
        second = self.write(tmp_path, study_of("m-sgd", "m-ssd", seeds=4))
        path = tmp_path / "studies" / f"{first.id}.json"
        path.write_text(path.read_text().replace('"when": "2', '"when": "1'))
        latest = analyse(tmp_path)
        assert latest.study.id == second.id
        assert latest.other_studies == [first.id]
        assert analyse(tmp_path, first.id[:6]).study.id == first.id
        with pytest.raises(RecordError, match=r"no one study is 'zzz'; in .* there are"):
            analyse(tmp_path, "zzz")

    def test_no_study(self, tmp_path):
        with pytest.raises(RecordError, match="no study in"):
            analyse(tmp_path)

    def test_searches_go_on_from_where_they_began(self, tmp_path):
        first = keep(tmp_path, study_of("m-sgd", starts={"m-sgd": 3}))
        again = keep(tmp_path, study_of("m-sgd", starts={"m-sgd": -1}))
        assert again.id == first.id
        assert again.starts == {"m-sgd": 3}

    @pytest.mark.parametrize(
        "spoilt",
        [
            *("", "[]", "{}", '{"when": "now"}', "not json", "[" * 100_000),
            '{"when": 1, "base": {}, "methods": 3}',
        ],
    )
    def test_a_file_that_is_no_study(self, tmp_path, spoilt):
        study = keep(tmp_path, study_of("m-sgd"))
        path = tmp_path / "studies" / f"{study.id}.json"
        path.write_text(spoilt)
        with pytest.raises(RecordError, match="is not the file of a study"):
            analyse(tmp_path)

    def test_a_file_under_another_name(self, tmp_path):
        study = keep(tmp_path, study_of("m-sgd"))
        path = tmp_path / "studies" / f"{study.id}.json"
        path.rename(path.with_name("0123.json"))
        with pytest.raises(RecordError, match=f"holds the study {study.id}; name it"):
            analyse(tmp_path)
