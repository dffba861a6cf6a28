"""Sentences say what the intervals say, and no more."""

import math

import pytest

from svag.diagnosis import conclusion as c
from svag.diagnosis.improvement import Factorial, Improvement
from svag.diagnosis.race_result import RaceEffect, RaceResult
from svag.entrants import entrant


def step(ratio, low, high):
    return Factorial("sign", ratio, (low, high))


def raced(estimate, low, high):
    return RaceEffect("sign", estimate, (low, high))


RESULT = RaceResult(2.0, 50, (), {"m-sgd": 0.1, "adam": 0.01}, {"m-sgd": 1.0, "adam": 0.8})
NONE = Factorial("sign", math.nan, None)


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (step(1.3, 1.2, 1.4), "helps"),
        (step(0.7, 0.6, 0.8), "hurts"),
        (step(1.1, 0.9, 1.3), "cannot tell"),
        (step(1.01, 0.98, 1.04), "does not matter"),
        (step(1.02, 1.01, 1.03), "does not matter"),
        (NONE, "cannot tell"),
        (None, "cannot tell"),
    ],
)
def test_what_one_step_says(effect, verdict):
    assert c.of_one_step(effect) == verdict


@pytest.mark.parametrize(
    ("effect", "scale", "verdict"),
    [
        (raced(-0.3, -0.4, -0.2), 1.0, "helps"),
        (raced(0.3, 0.2, 0.4), 1.0, "hurts"),
        (raced(-0.1, -0.4, 0.2), 1.0, "cannot tell"),
        (raced(-0.01, -0.03, 0.01), 1.0, "does not matter"),
        (raced(-0.01, -0.03, -0.001), 1.0, "does not matter"),
        (raced(-0.3, -0.4, -0.2), -1.0, "cannot tell"),
        (raced(-0.3, -0.4, -0.2), math.nan, "cannot tell"),
        (RaceEffect("sign", -0.3, None), 1.0, "cannot tell"),
        (None, 1.0, "cannot tell"),
    ],
)
def test_what_the_race_says(effect, scale, verdict):
    assert c.of_race(effect, scale) == verdict


HELPS, HURTS = step(1.3, 1.2, 1.4), step(0.7, 0.6, 0.8)
RACE_HELPS, RACE_OPEN = raced(-0.3, -0.4, -0.2), raced(-0.1, -0.4, 0.2)


@pytest.mark.parametrize(
    ("one_step", "race", "verdict"),
    [
        (HELPS, RACE_HELPS, "helps"),
        (HURTS, RACE_HELPS, "helps"),  # the race decides
        (HELPS, RACE_OPEN, "cannot tell"),  # and is not overruled by one step
        (step(1, 0.99, 1.01), RACE_OPEN, "cannot tell"),
        (HELPS, None, "helps"),
        (NONE, RACE_HELPS, "helps"),
        (NONE, None, "cannot tell"),
    ],
)
def test_the_race_decides(one_step, race, verdict):
    found = c.statement("sign", one_step, race, race and RESULT, 1.0)
    assert found.verdict == verdict
    assert found.one_step == c.of_one_step(one_step)
    assert ("race" in found.text) == (race is not None)


def test_a_statement_has_its_figures():
    found = c.statement("sign", HELPS, RACE_HELPS, RESULT, 1.0)
    assert found.text == (
        "The sign helps in the race (-0.3 in training loss after 50 steps, -0.4 to -0.2). A single "
        "step is worth more: 1.3 times the worth with the sign, 1.2 to 1.4."
    )


@pytest.mark.parametrize(
    ("sign", "adaptation", "text"),
    [
        (HELPS, HELPS, "The sign and variance adaptation help, by single steps alone."),
        (
            HELPS,
            HURTS,
            "The sign helps; variance adaptation hurts, by single steps alone.",
        ),
        (
            NONE,
            step(1, 0.99, 1.01),
            "Whether the sign helps cannot be told; variance adaptation does not matter, by single "
            "steps alone.",
        ),
    ],
)
def test_the_headline(sign, adaptation, text):
    statements = [
        c.statement("sign", sign, None, None, math.nan),
        c.statement("adaptation", adaptation, None, None, math.nan),
    ]
    assert c.headline(statements, raced=False) == text


def test_notes_say_what_rotation_and_batch_size_change():
    assert "rests on the axes" in c.rotation_note(step(1.3, 1.2, 1.4), step(1.0, 0.9, 1.1))
    assert "bad ones for the sign" in c.rotation_note(step(0.8, 0.7, 0.9), step(1.1, 1.0, 1.2))
    assert "no difference" in c.rotation_note(step(1.0, 0.9, 1.1), step(1.05, 1.0, 1.1))
    assert c.rotation_note(step(1.0, 0.9, 1.1), None) == ""
    assert c.rotation_note(NONE, step(1.0, 0.9, 1.1)) == ""
    larger = {2: step(1.3, 1.2, 1.4), 8: step(1.0, 0.9, 1.1)}
    assert "With 8 times" in c.batch_note(step(1.3, 1.2, 1.4), larger)
    assert "need the sign less" in c.batch_note(step(1.3, 1.2, 1.4), larger)
    assert c.batch_note(step(1.3, 1.2, 1.4), {4: NONE}) == ""


def one_step_of(key, value, lr):
    return Improvement(
        key, "plain", 9, value, (value / 2, 2 * value), lr, (lr / 2, 2 * lr), "", (), (), ()
    )


def test_suggestions_put_the_winner_first():
    entrants = [entrant(key) for key in ("m-sgd", "adam", "m-ssd", "ssd")]
    improvements = {
        "m-sgd": one_step_of("m-sgd", 1.0, 0.05),
        "m-ssd": one_step_of("m-ssd", 2.0, 0.001),
        "ssd": one_step_of("ssd", -1.0, 0.001),
    }
    best, found = c.suggestions(entrants, improvements, RESULT)
    assert best == "adam"
    assert [(one.method, one.lr, one.basis, one.raced) for one in found] == [
        ("adam", 0.01, "race", 0.01),
        ("m-sgd", 0.1, "race", 0.1),
        ("m-ssd", 0.001, "one step", None),
    ]
    _, found = c.suggestions(entrants, improvements, RESULT, planned=200)
    assert [one.lr for one in found] == [0.0066, 0.066, 0.001]  # four times the length: 4^-0.3
    _, found = c.suggestions(entrants, improvements, RESULT, planned=5)
    assert found[0].lr == 0.01
    best, found = c.suggestions(entrants, improvements, None)
    assert best == "m-ssd"
    assert c.suggestions(entrants, {}, None) == ("", ())


@pytest.mark.parametrize(
    "key",
    [
        "adam(decoupled, weight_decay=0.01)",
        "m-svag@within-batch(beta=0.5)",
        "sign(m) * erf(1/sqrt(2 rho s/m^2))",
        "ssd",
    ],
)
def test_the_line_builds_the_optimizer(key):
    import torch

    import svag
    from svag import Anatomy

    model, one = torch.nn.Linear(2, 2), entrant(key)
    scope = {"svag": svag, "torch": torch, "model": model, "Anatomy": Anatomy}
    exec(c.line(one, 0.02), scope)
    optimizer = scope["optimizer"]
    assert optimizer.anatomy == one.anatomy
    assert optimizer.param_groups[0]["lr"] == 0.02
    decay = one.options.get("weight_decay") or 0.0
    assert optimizer.param_groups[0]["weight_decay"] == decay


def test_without_the_four_methods_nothing_is_said_and_the_reason_is():
    evidence = c.Evidence(complete=False)
    found = c.statement("sign", None, None, RESULT, math.nan, evidence)
    assert found.text == "Nothing is said of the sign: the 2x2 table is not complete."
    assert "M-SGD, M-SVAG, M-SSD and Adam" in c.headline([found, found], False, evidence)


def test_a_race_alone_is_told_in_its_metric():
    """The race has a metric that is better when larger turned; the text turns it back."""
    evidence = c.Evidence(steps=False, metric="accuracy", larger=True)
    found = c.statement("sign", None, raced(-0.3, -0.4, -0.2), RESULT, 1.0, evidence)
    assert found.text == (
        "The sign helps in the race (+0.3 in training accuracy after 50 steps, +0.2 to +0.4)."
    )
    assert c.headline([found], True, evidence) == "The sign helps, by a short race alone."


def test_a_race_in_which_a_method_diverged_says_nothing():
    found = c.statement("sign", HELPS, RaceEffect("sign", math.nan, None), RESULT, math.nan)
    assert (found.verdict, found.race) == ("helps", "cannot tell")
    assert "The race says nothing about the sign" in found.text
