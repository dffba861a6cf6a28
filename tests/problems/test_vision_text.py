"""The embedded problems: shapes, splits, and that they can be learnt."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from svag.errors import DataError, InvalidOption
from svag.lab.base_run import base_run
from svag.problems import accuracy, get
from svag.problems.text import CHARACTERS, MODULES, _encode, _text, _windows


@pytest.fixture(scope="module")
def digits():
    return get("digits").load(None)


@pytest.fixture(scope="module")
def chars():
    return get("stdlib-chars").load(None)


def train(problem, data, steps, make_optimizer):
    """Test accuracy after a short training."""
    torch.manual_seed(0)
    model = problem.model()
    optimizer = make_optimizer(model.parameters())
    for _ in range(steps):
        batch = torch.randint(len(data.train), (problem.batch_size,))
        optimizer.zero_grad()
        problem.loss(model(data.train.inputs[batch]), data.train.targets[batch]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return accuracy(model(data.test.inputs), data.test.targets).item()


def test_digits_shapes(digits):
    assert digits.train.inputs.shape == (1297, 1, 8, 8)
    assert digits.test.inputs.shape == (500, 1, 8, 8)
    assert digits.train.inputs.dtype == torch.float32
    assert digits.train.targets.dtype == torch.int64
    assert (digits.train.inputs.min(), digits.train.inputs.max()) == (0, 1)
    assert digits.test.targets.bincount(minlength=10).min() > 30


def test_digits_splits_are_disjoint_and_complete(digits):
    from sklearn.datasets import load_digits

    def rows(inputs):
        return {tuple(row) for row in (inputs.flatten(1) * 16).int().tolist()}

    train_rows, test_rows = rows(digits.train.inputs), rows(digits.test.inputs)
    assert not train_rows & test_rows
    assert train_rows | test_rows == {tuple(map(int, row)) for row in load_digits().data}


def test_digits_are_split_alike_on_every_machine(digits):
    assert digits.fingerprint == "ffbe0d19881b9283"


@pytest.mark.parametrize(
    ("make_optimizer", "least"),
    [
        (lambda params: torch.optim.Adam(params, lr=3e-3), 0.975),
        (lambda params: torch.optim.SGD(params, lr=3e-2, momentum=0.9), 0.965),
    ],
)
def test_digits_are_learnt(digits, make_optimizer, least):
    problem = get("digits")
    assert train(problem, digits, problem.quick_steps, make_optimizer) > least


def test_chars_shapes(chars):
    for split in (chars.train, chars.test):
        assert split.inputs.shape == split.targets.shape == (len(split), 50)
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        assert torch.equal(split.inputs[1:, 0], split.targets[:-1, -1])
        assert split.inputs.max() < len(CHARACTERS) == 96
    assert len(chars.test) >= 2000
    assert len(chars.train) > 8 * len(chars.test)


def test_chars_are_the_text_of_the_standard_library(chars):
    text = "".join(CHARACTERS[index] for index in chars.train.inputs.flatten().tolist())
    first = Path(sysconfig.get_path("stdlib"), f"{MODULES.split()[0]}.py").read_text("utf-8")
    assert first.isascii()
    assert text.startswith(first)
    assert set(text) == set(CHARACTERS)


def test_chars_are_the_same_each_time(chars):
    assert get("stdlib-chars").load(None).fingerprint == chars.fingerprint


def test_encode_drops_what_has_no_place():
    assert _encode("a\té\n~ ").tolist() == [CHARACTERS.index(c) for c in "a\n~ "]


def test_windows_keep_a_target_for_the_last_character():
    split = _windows(np.arange(101))
    assert split.inputs.tolist() == [list(range(50)), list(range(50, 100))]
    assert split.targets[1, -1] == 100
    assert len(_windows(np.arange(100))) == 1


def test_standard_library_without_sources(tmp_path):
    with pytest.raises(DataError, match=r"has no source file argparse.py, ast.py"):
        _text(tmp_path)


def test_chars_are_learnt(chars):
    accuracy = train(
        get("stdlib-chars"), chars, 60, lambda params: torch.optim.Adam(params, lr=1e-2)
    )
    assert accuracy > 0.25  # always a space: 0.2


@pytest.fixture(scope="module")
def tolstoy(data_dir):
    return get("tolstoi-char-lstm").load(data_dir)


def test_war_and_peace_runs_in_streams(tolstoy, data_dir):
    """50 streams of the first four fifths; the last fifth likewise. Row i + 50 continues row i."""
    text = (data_dir / "tolstoy" / "war_and_peace.txt").read_text(encoding="utf-8")
    characters = sorted(set(text))
    assert len(characters) == 82
    cut = -(-len(text) * 4 // 5)
    for split, part in ((tolstoy.train, text[:cut]), (tolstoy.test, text[cut:])):
        windows = (len(part) - 1) // 2500
        assert split.inputs.shape == split.targets.shape == (50 * windows, 50)
        for stream in (0, 1, 49):
            rows, following = split.inputs[stream::50], split.targets[stream::50]
            first = stream * windows * 50
            expected = part[first : first + windows * 50]
            assert "".join(characters[i] for i in rows.flatten()) == expected
            expected = part[first + 1 : first + windows * 50 + 1]
            assert "".join(characters[i] for i in following.flatten()) == expected
    assert len(tolstoy.train) == 50 * 1022


def test_p4_carries_its_state_through_an_epoch(tolstoy):
    model = get("tolstoi-char-lstm").model().eval()
    with torch.no_grad():
        first, second = (model(tolstoy.train.inputs[at : at + 50]) for at in (0, 50))
        model.carried_state = None
        rows = tolstoy.train.inputs[:100]
        at_once = model(torch.cat([rows[:50], rows[50:]], 1))
    torch.testing.assert_close(torch.cat([first, second], 1), at_once)


def test_p4_takes_batches_of_its_streams_alone(tolstoy):
    with pytest.raises(InvalidOption, match="laid out for batches of 50; leave --batch-size away"):
        base_run(get("tolstoi-char-lstm"), tolstoy, steps=10, batch_size=25)


def test_p4_decreases_its_step_size_as_p3_does():
    factors = [get("tolstoi-char-lstm").schedule(step, 200) for step in (0, 59, 60, 120, 160, 199)]
    assert factors == pytest.approx([1, 1, 0.2, 0.04, 0.008, 0.008])
