"""What is said of a study, and when; the paper's four observations."""

from dataclasses import replace

import numpy as np
import pytest
from lab.synthetic import LOSS_RUN, all_records, follow, record, study_of

from analysis.test_study import MERITS
from svag.analysis.study import of_records
from svag.analysis.verdict import verdict
from svag.anatomy import PAPER_METHODS

ORDER = ("m-sgd", "m-svag", "m-ssd", "adam")


def analysed(*tops, seeds=5, noise=0.001, loss=None, base=None, **settings):
    """A study whose methods reach these accuracies; ``loss`` gives their training losses."""
    if base is not None:
        settings["base"] = base
    study = study_of(*PAPER_METHODS, seeds=seeds, **settings)
    records = []
    for place, (key, top) in enumerate(zip(ORDER, tops, strict=True)):

        def merit(lr, seed, top=top, place=place):
            deviation = noise * np.sin(1.7 * seed + 2.3 * place)
            return top - 0.2 * np.log10(lr) ** 2 + deviation

        _, runs = follow(study, key, merit)
        train = {} if loss is None else {"train_loss": None}
        for run in runs:
            if loss is not None:
                train["train_loss"] = loss[place] * (1 + 0.01 * np.sin(run.seed + place))
            records.append(record(run, merit(run.lr, run.seed), **train))
    return of_records(study, records)


def test_a_loss_that_is_never_finite_is_not_blamed_on_step_sizes():
    study = study_of("m-sgd", "adam", lrs={"m-sgd": 0.1, "adam": 0.1}, starts={})
    for start, said in ((None, True), (1.0, False)):
        records = []
        for key in study.methods:
            _, runs = follow(study, key, lambda lr, seed: None)
            records += [record(run, None, train_loss=start) for run in runs]
        assert (
            "not finite even before the first step" in verdict(of_records(study, records))
        ) is said


@pytest.mark.parametrize(
    ("tops", "words"),
    [
        ((0.8, 0.8, 0.9, 0.9), "On made-up the sign decides: the sign changes the final test "),
        ((0.8, 0.9, 0.8, 0.9), "On made-up variance adaptation decides: variance adaptation "),
        (
            (0.8, 0.85, 0.85, 0.9),
            "halves of Adam count, and it is not decided which counts more",
        ),
        ((0.9, 0.8, 0.8, 0.9), "what one half of Adam does depends on the other: the effect of"),
        ((0.8, 0.8, 0.8, 0.8), "neither half of Adam makes a difference that matters: the sign"),
    ],
)
def test_findings_in_words(tops, words):
    assert words in verdict(analysed(*tops))


def test_numbers_and_pairs():
    text = verdict(analysed(0.8, 0.8, 0.9, 0.9))
    assert "by +9.99 points [+9.90, +10.08], variance adaptation by" in text
    assert "(M-SSD against M-SVAG +9.9" in text
    assert "Adam against M-SGD +10.01 points" in text
    assert "With and without variance adaptation the results are equal within 0.50 points." in text


def test_not_decided_is_not_no_effect():
    text = verdict(analysed(0.80, 0.80, 0.81, 0.81, noise=0.04, seeds=3))
    assert "it is not decided whether either half of Adam makes a difference" in text
    assert "equal within" in text
    assert "% of studies with errors as large as here would find it equal within" in text


def test_the_smallest_effect_that_was_given():
    text = verdict(analysed(0.8, 0.8, 0.8, 0.8, smallest_effect=0.02))
    assert "equal within 2.00 points" in text


def test_one_seed():
    text = verdict(analysed(0.8, 0.8, 0.9, 0.9, seeds=1))
    assert "nothing is decided, because intervals need two seeds or more" in text
    assert "[" not in text


def test_a_loss_has_no_points():
    study = study_of(*PAPER_METHODS, base=LOSS_RUN)
    merits = {
        key: lambda lr, seed, top=top: top + 0.2 * np.log10(lr) ** 2 + 0.001 * np.sin(seed)
        for key, top in zip(ORDER, (2.0, 2.0, 1.0, 1.0), strict=True)
    }
    records = []
    for key in study.methods:
        _, runs = follow(study, key, merits[key], start=4.0)
        records += [record(run, merits[key](run.lr, run.seed), start=4.0) for run in runs]
    text = verdict(of_records(study, records))
    assert "the final test loss (less is better) by -1 [-1" in text
    assert "points" not in text
    assert "%" not in text


def test_divergence_is_the_first_sentence():
    study = study_of(*PAPER_METHODS, seeds=5)
    merits = dict(MERITS)
    merits["adam"] = lambda lr, seed: (
        None if seed > 1000 and seed % 1000 < 3 else MERITS["adam"](lr, seed)
    )
    text = verdict(of_records(study, all_records(study, merits)))
    assert text.startswith(
        "Runs diverged at the step sizes that were settled on: 2 of 5 of Adam at 0.1 after 2 moves "
        "down (40 % [5, 85]). All figures are of runs that survived."
    )
    assert "nothing is decided, because the figures are of the runs that survived" in text
    assert "decides" not in text


def test_a_method_that_learnt_nothing_is_said_first():
    study = study_of(*PAPER_METHODS)
    merits = {**MERITS, "adam": lambda lr, seed: 0.1 + 0.0001 * seed}
    text = verdict(of_records(study, all_records(study, merits)))
    assert text.startswith("Adam learnt next to nothing at any step size from 1e-10 to 1e+")


def test_a_method_without_a_stable_step_size_is_named():
    study = study_of(*PAPER_METHODS)
    merits = {**MERITS, "adam": lambda lr, seed: None}
    text = verdict(of_records(study, all_records(study, merits)))
    assert "On made-up M-SSD ends at 90." in text
    assert "Four methods are needed to tell which half of Adam made the difference" in text
    assert text.endswith("Not in these figures: Adam, for which no stable step size was found.")


def test_the_papers_protocol_says_what_is_left_out():
    with_search = verdict(analysed(0.8, 0.8, 0.9, 0.9, protocol="paper"))
    assert (
        "the intervals do not include that another seed might have chosen another one"
        in with_search
    )
    settled = analysed(0.8, 0.8, 0.9, 0.9, protocol="paper", lrs=dict.fromkeys(PAPER_METHODS, 1.0))
    assert "leave out" not in verdict(settled)


class TestObservations:
    def outcomes(self, tops, losses, **settings):
        found = analysed(*tops, loss=losses, **settings).observations
        return [one.outcome for one in found]

    def test_the_sign_dominates_and_helps(self):
        outcomes = self.outcomes((0.8, 0.81, 0.9, 0.91), (1.0, 0.98, 0.3, 0.29))
        assert outcomes == ["holds", "helps", "holds", "does not arise"]

    def test_adaptation_dominates(self):
        outcomes = self.outcomes((0.8, 0.9, 0.8, 0.9), (1.0, 0.3, 0.98, 0.29))
        assert outcomes[0] == "does not hold"
        assert outcomes[2] == "holds"

    def test_one_of_two_pairs_is_not_enough(self):
        """Adaptation helps without the sign and hurts with it."""
        outcomes = self.outcomes((0.8, 0.9, 0.9, 0.8), (1.0, 0.5, 0.5, 1.0))
        assert outcomes[2] == "does not hold"

    def test_a_pair_that_is_not_decided(self):
        found = self.outcomes((0.8, 0.9, 0.8, 0.801), (1.0, 0.5, 1.0, 1.0), noise=0.02)
        assert found[2] == "not decided"

    def test_adverse_effects_of_the_sign(self):
        outcomes = self.outcomes((0.9, 0.9, 0.8, 0.8), (1.0, 1.0, 0.3, 0.3))
        assert outcomes[3] == "holds"

    def test_adverse_effects_of_both_halves(self):
        outcomes = self.outcomes((0.95, 0.9, 0.85, 0.8), (1.0, 0.9, 0.3, 0.25))
        assert outcomes[3] == "does not hold"

    def test_adverse_effects_that_are_not_decided_do_not_fail_to_arise(self):
        outcomes = self.outcomes(
            (0.85, 0.85, 0.84, 0.84), (1.0, 1.0, 0.3, 0.3), noise=0.05, seeds=3
        )
        assert outcomes[3] == "not decided"

    def test_one_seed_decides_none(self):
        outcomes = self.outcomes((0.8, 0.8, 0.9, 0.9), (1.0, 1.0, 0.3, 0.3), seeds=1)
        assert outcomes == ["not decided"] * 4

    def test_a_metric_that_is_better_smaller(self):
        base = replace(
            LOSS_RUN, metric="error", metric_better="smaller", metric_low=0.0, metric_high=1.0
        )
        study = study_of(*PAPER_METHODS, base=base, seeds=5)
        records = []
        for key, top, loss in zip(ORDER, (0.1, 0.1, 0.3, 0.3), (1.0, 1.0, 0.3, 0.3), strict=True):

            def merit(lr, seed, top=top):
                return top + 0.1 * np.log10(lr) ** 2 + 0.001 * np.sin(seed)

            _, runs = follow(study, key, merit, start=0.9)
            records += [
                record(
                    run,
                    merit(run.lr, run.seed),
                    start=0.9,
                    train_loss=loss * (1 + 0.01 * np.sin(run.seed)),
                )
                for run in runs
            ]
        outcomes = [one.outcome for one in of_records(study, records).observations]
        assert outcomes[0] == "holds"
        assert outcomes[3] == "holds"
