"""The ways to step on a CPU: a test that asks for one is run with each."""

from typing import Any

import pytest

from .cases import ENGINES


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    """The flags that choose an engine."""
    return request.param


@pytest.fixture(params=[{}, *ENGINES.values()], ids=str)
def flags(request: pytest.FixtureRequest) -> Any:
    """And those with which None chooses: where one cannot serve, the choice is what counts."""
    return request.param
