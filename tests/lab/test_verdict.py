"""What is said of an analysis: the half that decides, and the paper's four observations."""

import pytest

from lab.made import record
from svag.lab.analysis import FIGURES, Analysis, Effect, analyse
from svag.lab.verdict import observations, verdict

CELLS = {
    (False, False): "m-sgd",
    (False, True): "m-svag",
    (True, False): "m-ssd",
    (True, True): "adam",
}
NOTHING = (0.0, -0.01, 0.01)
NAMES = ("sign", "adaptation", "interaction", "adaptation without sign", "adaptation with sign")


def surely(estimate):
    """An effect whose interval excludes 0."""
    return estimate, *sorted((estimate / 2, 2 * estimate))


def perhaps(estimate):
    """An effect whose interval includes 0."""
    return estimate, -2 * abs(estimate), 2 * abs(estimate)


def effect(values):
    if isinstance(values, float):
        return Effect(values, None)
    return Effect(values[0], tuple(values[1:]))


def analysis(loss=None, accuracy=None, default=NOTHING):
    """An analysis with these effects on training loss and test accuracy; others are nothing."""
    given = {"train_loss": loss or {}, "test_accuracy": accuracy or {}, "test_loss": {}}
    effects = {
        figure: {name: effect(given[figure].get(name, default)) for name in NAMES}
        for figure in FIGURES
    }
    return Analysis({"problem": "clouds"}, {}, {}, CELLS, effects, 0, 0.0)


def half(sign, adaptation):
    """Effects of the halves without an interaction."""
    alone = {f"adaptation {word} sign": adaptation for word in ("without", "with")}
    return {"sign": sign, "adaptation": adaptation, **alone}


def sentence(accuracy):
    """What is said of the accuracy."""
    first, second = verdict(analysis(half(*accuracy), half(*accuracy))).split(". ")
    assert first.startswith("On clouds ")
    assert second.startswith("In the training loss also ")
    return first.removeprefix("On clouds ")


@pytest.mark.parametrize(
    ("sign", "adaptation", "decision"),
    [
        (surely(0.05), perhaps(0.01), "the sign decides"),
        (surely(-0.05), perhaps(0.01), "the sign decides"),
        (surely(-0.05), surely(0.01), "the sign decides"),
        (perhaps(0.01), surely(0.05), "variance adaptation decides"),
        (surely(0.02), surely(0.04), "variance adaptation decides"),
        (surely(0.02), surely(-0.05), "variance adaptation decides"),
        (surely(0.05), perhaps(0.04), "the sign decides"),
        (surely(0.05), surely(0.04), "both halves of Adam count"),
        (surely(-0.04), surely(0.05), "both halves of Adam count"),
        (perhaps(0.05), perhaps(0.04), "neither half of Adam decides"),
        (NOTHING, NOTHING, "neither half of Adam decides"),
        (0.05, 0.01, "the sign makes the larger difference (one seed, so without an interval)"),
        (
            -0.01,
            0.05,
            "variance adaptation makes the larger difference (one seed, so without an interval)",
        ),
        (0.05, 0.04, "the halves are even (one seed, so without an interval)"),
    ],
)
def test_which_half_decides(sign, adaptation, decision):
    assert sentence((sign, adaptation)).split(": ")[0] == decision


def test_both_figures_have_their_own_sentence():
    text = verdict(
        analysis(
            loss=half((-0.5, -0.75, -0.25), (0.0123, -0.1, 0.1)),
            accuracy=half((0.001, -0.01, 0.01), (0.0456, 0.03, 0.06)),
        )
    )
    assert text == (
        "On clouds variance adaptation decides: it changes the final test accuracy by "
        "+4.56 points [+3.00, +6.00], the sign by +0.10 points [-1.00, +1.00]. In the training "
        "loss the sign decides: it changes the final training loss by -0.5 [-0.75, -0.25], "
        "variance adaptation by +0.0123 [-0.1, +0.1]."
    )


def test_one_seed_is_said_without_intervals():
    text = verdict(analysis(half(-0.5, 0.25), half(-0.02, 0.01), default=0.0))
    assert "[" not in text
    assert "-2.00 points, variance adaptation by +1.00 points" in text
    assert "-0.5, variance adaptation by +0.25." in text


def test_without_the_four_cells_nothing_is_decided():
    found = analyse([record("m-sgd"), record("adam")])
    assert verdict(found).startswith("On made-up ")
    assert "Which half of Adam does it takes four methods to tell" in verdict(found)
    assert observations(found) == []


def test_an_interaction_that_is_the_largest_is_said_first():
    for interaction, both in ((surely(-0.06), True), (surely(0.01), False), (perhaps(0.06), False)):
        given = {
            **half(surely(0.05), perhaps(0.01)),
            "interaction": interaction,
            "adaptation without sign": surely(0.07),
            "adaptation with sign": surely(-0.05),
        }
        text = verdict(analysis(given, given))
        assert text.startswith("On clouds the two halves of Adam act only together: ") == both
        assert ("the sign decides" in text) == (not both)
    given["interaction"] = surely(-0.06)
    text = verdict(analysis(given, given))
    assert "by +7.00 points [+3.50, +14.00] without the sign and by -5.00 points" in text


def test_without_the_four_cells_there_is_a_ranking():
    found = analyse([record("m-sgd", test_accuracy=0.7), record("adam", test_accuracy=0.85)])
    assert verdict(found).startswith(
        "On made-up Adam ends at 85.00 % test accuracy, M-SGD 70.00 %. Which half of Adam"
    )
    only = analyse([record("adam")])
    assert verdict(only).startswith("On made-up Adam ends at 80.00 % test accuracy. Which")


def test_what_is_in_no_figure_is_said():
    records = [record("m-sgd"), record("m-sgd", seed=2, status="diverged")]
    records += [record("m-ssd", status="diverged"), record("adam", seed=0, status="diverged")]
    text = verdict(analyse([*records, record("m-svag", seed=0)]))
    for words in (
        "On made-up M-SGD ends at 80.00 % test accuracy. ",
        " Not in these figures: 1 of 2 replications of M-SGD; ",
        "M-SSD, of which every replication diverged",
        "M-SVAG, of which nothing has been replicated",
        "Adam, for which no stable step size was found",
    ):
        assert words in text


@pytest.mark.parametrize("status", ["interrupted", "error"])
def test_a_search_that_did_not_get_to_its_end_is_not_said_to_have_failed(status):
    records = [record("m-sgd"), record("adam", seed=0, lr=1.0, status="diverged")]
    text = verdict(analyse([*records, record("adam", seed=0, lr=0.3, status=status)]))
    assert "Adam, of which nothing has been replicated" in text
    assert "stable" not in text


def test_a_settled_step_size_without_a_run_is_not_said_to_have_been_searched():
    records = [record("m-sgd"), record("adam", lr=0.01), record("adam", lr=0.1, status="error")]
    text = verdict(analyse(records, {"adam": 0.1}))
    assert "Adam, of which nothing has been replicated" in text
    assert "stable" not in text


def test_where_all_diverge_there_is_no_ranking():
    text = verdict(analyse([record("adam", status="diverged")]))
    assert text.startswith("On made-up no method has a replication that did not diverge. ")


@pytest.mark.parametrize(("key", "half_of_adam"), [(0, "the sign"), (1, "variance adaptation")])
def test_from_records_to_the_sentence(key, half_of_adam):
    records = [
        record(
            method,
            seed=seed,
            train_loss=1 + 0.5 * cell[key] + 0.01 * seed,
            test_accuracy=0.9 - 0.1 * cell[key] + 0.001 * seed,
        )
        for cell, method in CELLS.items()
        for seed in (1, 2, 3)
    ]
    text = verdict(analyse(records))
    assert text.startswith(f"On made-up {half_of_adam} decides: it changes the final test")
    assert f"In the training loss also {half_of_adam} decides" in text
    assert "by -10.00 points [-10.00, -10.00]" in text


# --- the paper's observations


def outcome(number, **effects):
    return observations(analysis(**effects))[number].outcome


def test_there_are_four():
    found = observations(analysis())
    assert len(found) == 4
    assert len({observation.claim for observation in found}) == 4
    assert all(observation.detail.endswith(".") for observation in found)


@pytest.mark.parametrize(
    ("sign", "without", "along", "expected"),
    [
        (surely(0.5), NOTHING, NOTHING, "holds"),
        (surely(-0.5), surely(0.4), surely(-0.4), "holds"),
        (surely(0.3), surely(-0.5), NOTHING, "does not hold"),
        (surely(0.3), NOTHING, surely(0.5), "does not hold"),
        (perhaps(0.1), perhaps(0.5), NOTHING, "not decided"),
        (NOTHING, NOTHING, NOTHING, "not decided"),
        (0.5, 0.1, 0.1, "not decided"),
    ],
)
def test_the_sign_dominates(sign, without, along, expected):
    loss = {"sign": sign, "adaptation without sign": without, "adaptation with sign": along}
    assert outcome(0, loss=loss) == expected


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        (surely(0.5), "It hurts here: +0.5 [+0.25, +1]"),
        (surely(-0.5), "It helps here: -0.5 [-1, -0.25]"),
        (perhaps(0.5), "It makes no clear difference here"),
        (0.5, "It makes no clear difference here: +0.5 in training loss"),
    ],
)
def test_the_sign_depends_on_the_problem(sign, words):
    found = observations(analysis(loss=half(sign, NOTHING)))[1]
    assert found.outcome == "not decided"
    assert words in found.detail


BETTER, WORSE = surely(0.1), surely(-0.1)


@pytest.mark.parametrize(
    ("accuracy", "loss", "expected"),
    [
        ((NOTHING, NOTHING), (NOTHING, NOTHING), "not decided"),
        ((0.1, 0.1), (-0.1, -0.1), "not decided"),
        ((BETTER, NOTHING), (NOTHING, NOTHING), "holds"),
        ((NOTHING, BETTER), (NOTHING, NOTHING), "holds"),
        ((NOTHING, NOTHING), (WORSE, NOTHING), "holds"),  # a loss is better when smaller
        ((NOTHING, NOTHING), (NOTHING, WORSE), "holds"),
        ((BETTER, BETTER), (WORSE, WORSE), "holds"),
        ((WORSE, BETTER), (WORSE, WORSE), "does not hold"),
        ((BETTER, WORSE), (WORSE, WORSE), "does not hold"),
        ((BETTER, BETTER), (BETTER, WORSE), "does not hold"),
        ((BETTER, BETTER), (WORSE, BETTER), "does not hold"),
        ((perhaps(-0.1), BETTER), (perhaps(0.1), WORSE), "holds"),
    ],
)
def test_adaptation_helps(accuracy, loss, expected):
    names = ("adaptation without sign", "adaptation with sign")
    given = {
        "accuracy": dict(zip(names, accuracy, strict=True)),
        "loss": dict(zip(names, loss, strict=True)),
    }
    assert outcome(2, **given) == expected
    detail = observations(analysis(**given))[2].detail
    assert detail.index("M-SVAG against M-SGD") < detail.index("Adam against M-SSD")


@pytest.mark.parametrize(
    ("loss", "accuracy", "adaptation", "expected"),
    [
        (surely(-0.5), surely(-0.1), NOTHING, "holds"),
        (surely(-0.5), surely(-0.1), surely(0.1), "holds"),
        (surely(-0.5), surely(-0.1), perhaps(-0.1), "holds"),
        (surely(-0.5), surely(-0.1), surely(-0.1), "does not hold"),
        (surely(-0.5), surely(0.1), NOTHING, "does not arise"),
        (surely(-0.5), perhaps(-0.1), NOTHING, "does not arise"),
        (surely(0.5), surely(-0.1), NOTHING, "does not arise"),
        (perhaps(-0.5), surely(-0.1), surely(-0.1), "does not arise"),
        (-0.5, -0.1, 0.1, "not decided"),
    ],
)
def test_the_sign_harms_generalization(loss, accuracy, adaptation, expected):
    found = outcome(3, loss=half(loss, NOTHING), accuracy=half(accuracy, adaptation))
    assert found == expected
