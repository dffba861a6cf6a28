"""The code on docs/trainers.md runs, with the packages that it imports."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
NEEDED = ("transformers", "lightning", "timm", "keras")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = BLOCKS[number]
    if "KERAS_BACKEND" in block:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
    for name in NEEDED:
        if re.search(rf"^(import|from) {name}", block, re.M):
            pytest.importorskip(name, reason=f"{name} is not installed")
    exec(compile(block, str(PAGE), "exec"), {})


def test_the_table_has_every_client_and_feature() -> None:
    from integrations.test_clients import CLIENTS, FEATURES

    text = PAGE.read_text(encoding="utf-8")
    assert f"| | {' | '.join(CLIENTS)} |" in text
    rows = re.findall(r"^\| ([a-z][^|]*) \| (.*) \|$", text, re.M)
    assert [name for name, _ in rows] == list(FEATURES)
    assert {cell for _, cells in rows for cell in cells.split(" | ")} == {"equal"}
