"""optax's own tests of sharding, run on svag's optimizers."""

import pytest

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

import jax

from .optax_tests import load


@pytest.fixture(autouse=True)
def version_that_sorts_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file skips where the text of JAX's version sorts before "0.7.2", as "0.10.2" does."""
    if tuple(map(int, jax.__version__.split(".")[:2])) > (0, 9):
        monkeypatch.setattr(jax, "__version__", "0.9.9")


ShardingTest = load("_src/sharding_test.py").ShardingTest
