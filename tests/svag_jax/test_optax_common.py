"""optax's own common tests of contributed optimizers, run unmodified on svag's optimizers.

The file is optax's, from the installed package or from ``$OPTAX_COMMON_TEST``. Its tests take their
optimizers from lists of dicts given to absl's ``parameterized.product``, and make them by names
in ``optax.contrib``; while the file is loaded, svag's names are there and svag's list is given.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax", reason="needs jax and optax: pip install 'svag[jax]'")
optax = pytest.importorskip("optax")
parameterized = pytest.importorskip("absl.testing.parameterized")

import svag.jax as sj  # noqa: E402
from svag import Anatomy  # noqa: E402

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (sj.sgd, {"learning_rate": 1e-3}),
    "m_sgd": (sj.m_sgd, {"learning_rate": 1e-3}),
    "ssd": (sj.ssd, {"learning_rate": 1e-3}),
    "m_ssd": (sj.m_ssd, {"learning_rate": 1e-3}),
    "svag": (sj.svag, {"learning_rate": 1e-3}),
    "m_svag": (sj.m_svag, {"learning_rate": 1e-3}),
    "adam": (sj.adam, {"learning_rate": 1e-3}),
    "adam_star": (sj.adam_star, {"learning_rate": 1e-3}),
}
LISTS = ("opt_name", "opt_kwargs", "wrapper_name", "wrapper_kwargs")


def path() -> Path | None:
    """The file, or None where the installed optax has none and none is named."""
    if named := os.environ.get("OPTAX_COMMON_TEST"):
        return Path(named)
    found = Path(optax.__file__).parent / "contrib" / "_common_test.py"
    return found if found.exists() else None


def entries() -> tuple[dict[str, Any], ...]:
    nothing = {"wrapper_name": None, "wrapper_kwargs": None}
    return tuple(
        {"opt_name": f"svag_{name}", "opt_kwargs": options, **nothing}
        for name, (_, options) in OPTIMIZERS.items()
    )


def load(file: Path) -> Any:
    """Execute optax's file with svag's optimizers in place of optax's."""
    product = parameterized.product

    def of_ours(*sequences: Any, **arguments: Any) -> Any:
        assert [set(LISTS) >= set(row) for rows in sequences for row in rows]
        return product(*[entries() for _ in sequences], **arguments)

    spec = importlib.util.spec_from_file_location("optax_common_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameterized, "product", of_ours)
        spec.loader.exec_module(module)
    return module


for name, (factory, _) in OPTIMIZERS.items():
    setattr(optax.contrib, f"svag_{name}", factory)

file = path()
if file is None:
    pytest.skip(
        "this optax ships no contrib/_common_test.py: name one by OPTAX_COMMON_TEST",
        allow_module_level=True,
    )
ContribTest = load(file).ContribTest
