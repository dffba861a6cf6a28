"""Networks drawn from a grammar: svag is right, or refuses; see ``random_networks``.

``python -m tests.variance.random_networks --count 2000`` tries more of them and prints each
failure as a network in source code.
"""

import pytest
import torch

from tests.measured import assert_within
from tests.variance.random_networks.__main__ import described, refused_share
from tests.variance.random_networks.build import COUPLING, RULES, build, draw
from tests.variance.random_networks.trial import CRASH, INVALID, REFUSED, RIGHT, WRONG, attempt

COUNT, SEED = 100, 20_000


def test_the_grammar_has_at_least_forty_operations() -> None:
    names = [rule.name for rule in (*RULES, *COUPLING)]
    assert len(names) == len(set(names))
    assert len(names) >= 40


@pytest.mark.usefixtures("one_thread")
def test_random_networks_are_right_or_refused() -> None:
    trials = [attempt(build(draw(SEED + k))) for k in range(COUNT)]
    failures = [t for t in trials if t.outcome in (WRONG, CRASH)]
    assert not failures, "\n".join(map(described, failures[:3]))
    assert sum(t.outcome == INVALID for t in trials) <= COUNT // 20
    coupled = [t for t in trials if t.independent == "coupled" and t.outcome != INVALID]
    assert coupled
    assert all(t.outcome == REFUSED for t in coupled)
    assert any(t.outcome == RIGHT for t in trials)
    usual = [t for t in trials if not t.network.odd]
    assert_within("share refused of independent random networks", refused_share(usual), 0.15)


@pytest.fixture
def one_thread() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
