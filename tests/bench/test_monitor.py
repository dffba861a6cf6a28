"""What the benchmark of the monitor measures; never how long it took."""

import re

from svag.bench import monitor


def test_the_monitored_steps_are_read_and_the_others_are_not(svag) -> None:
    cost = monitor.measure(steps=2, rounds=1, budget=1.0)
    assert cost.steps == 2
    assert cost.readings == 2
    assert 0 < cost.own < 1
    assert cost.ratio == cost.monitored / cost.plain
    code, out, _ = svag("bench", "monitor", "--steps", 1, "--rounds", 1)
    assert code == 0
    assert re.search(r"overhead [+-].* % \(median of 1 .*target <= 3 %", out)
