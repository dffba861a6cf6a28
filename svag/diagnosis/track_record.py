"""How often what a dissection says has come true, from the tests of docs/dissect.md.

``docs/make_dissect.py`` writes ``track_record.json`` from the records in ``results/dissect``.
"""

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def track_record() -> dict[str, Any]:
    """Return the counts: ``within`` of ``pairs`` suggestions, ``right`` and ``wrong`` verdicts."""
    text = resources.files("svag.diagnosis").joinpath("track_record.json").read_text("utf-8")
    counts: dict[str, Any] = json.loads(text)
    return counts


def of_step_sizes() -> str:
    """Say in a sentence how near suggestions have come to what a search chose."""
    counts = track_record()
    share = 100 * counts["within"] / counts["pairs"]
    return (
        f"A search may end at another step size: in the tests, {counts['within']} of "
        f"{counts['pairs']} suggestions ({share:.0f} %) were within a factor of 3 of what svag "
        "compare chose (docs/dissect.md)."
    )
