"""Write ``docs/trainers.md`` from the results of ``tests/integrations``.

``make test-integrations`` installs the packages, runs the tests, and calls this with their results:

    python docs/make_trainers.py build/integrations.xml
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE: Final = Path(__file__).parent
PAGE: Final = HERE / "trainers.md"
PACKAGES: Final = ("torch", "transformers", "accelerate", "trl", "lightning", "timm", "keras")

_CELL = re.compile(r"test_a_client_takes_the_steps_of_a_loop\[([^-]+)-(.+)\]")


def outcomes(results: Path) -> dict[tuple[str, str], str]:
    """Read what became of each cell of the table: client and feature -> equal, differs, not run."""
    found = {}
    for case in ElementTree.parse(results).iter("testcase"):
        match = _CELL.fullmatch(case.get("name", ""))
        if match is None:
            continue
        children = {child.tag for child in case}
        text = "not run" if "skipped" in children else "differs" if children else "equal"
        found[match[1], match[2]] = text
    return found


def page(found: Mapping[tuple[str, str], str], versions: Mapping[str, str]) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("trainers.md.j2").render(
        clients=list(dict.fromkeys(client for client, _ in found)),
        features=list(dict.fromkeys(feature for _, feature in found)),
        found=found,
        versions=versions,
    )


def installed() -> dict[str, str]:
    """Return the versions of the packages that are there."""
    there = {}
    for name in PACKAGES:
        try:
            there[name] = version(name)
        except PackageNotFoundError:
            continue
    return there


def main() -> None:
    """Write the page from a file of results."""
    found = outcomes(Path(sys.argv[1]))
    PAGE.write_text(page(found, installed()), encoding="utf-8")


if __name__ == "__main__":
    main()
