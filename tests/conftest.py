"""Settings shared by all tests."""

import gc
import os
import signal
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Several workers share the cores, so a thread that waits must not do so by keeping one busy. OpenMP
# reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A test run started in the background was told to ignore Ctrl-C; some tests are about it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what a worker has measured to the process that prints it (pytest-xdist)."""
    from measured import WORST

    gc.unfreeze()
    if hasattr(session.config, "workeroutput"):
        figures = [(name, float(value), float(bound)) for name, (value, bound) in WORST.items()]
        session.config.workeroutput["worst"] = figures


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    from measured import WORST

    for name, value, bound in getattr(node, "workeroutput", {}).get("worst", ()):
        WORST[name] = max(WORST.get(name, (0.0, bound)), (value, bound))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from measured import WORST

    if WORST:
        terminalreporter.section("worst figures")
    for name, (value, bound) in sorted(WORST.items()):
        terminalreporter.line(f"{name}: {value:.2e} (bound {bound:.0e})")


@pytest.fixture
def svag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Runs the command in this process; returns exit code, output and messages."""
    from svag.__main__ import main

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["svag", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that selects a quick cross-section."""
    parser.addoption(
        "--fast", action="store_true", help="one case of each test, without those marked slow"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark of tests that take seconds and say little that others do not."""
    config.addinivalue_line("markers", "slow: left out by --fast")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the garbage collector what stays to the end: all tests and what they import."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one case of each test: by a checksum, so that each engine and row has its share."""
    if not config.getoption("--fast"):
        return
    kept: dict[tuple[object, str], pytest.Item] = {}
    for item in items:
        function = (item.parent, getattr(item, "originalname", item.name))
        if not item.get_closest_marker("slow"):
            kept[function] = min(kept.get(function, item), item, key=_checksum)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept.values()])
    items[:] = kept.values()


def _checksum(item: pytest.Item) -> int:
    return zlib.crc32(item.name.encode())
