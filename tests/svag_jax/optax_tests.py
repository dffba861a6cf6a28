"""Loads files of optax's own tests, unmodified, with svag's optimizers in place of optax's.

They are found in the installed package, or in the folder named by ``$OPTAX_SOURCE`` (a checkout's
``optax``), since not every wheel ships them. Their tests take optimizers by decorators of absl,
which are given svag's while a file is loaded.
"""

import importlib.util
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax
import pytest
from absl.testing import parameterized

import svag.jax as sj
from svag import Anatomy


def ssd_with_decay(learning_rate: optax.ScalarOrSchedule) -> Any:
    """Sign descent with decreasing steps: with constant ones it stalls in Rosenbrock's valley."""
    base = learning_rate if callable(learning_rate) else lambda _: learning_rate
    decay = optax.exponential_decay(1.0, 30_000, 1e-5)
    return sj.ssd(lambda count: base(count) * decay(count))


def row(**fields: Any) -> Any:
    """A recombination as a factory that optax's tests can inspect."""

    def factory(learning_rate: optax.ScalarOrSchedule, beta: Any = 0.9) -> Any:
        return sj.dissected(learning_rate, Anatomy(**fields), beta=beta)

    return factory


OPTIMIZERS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (sj.sgd, {"learning_rate": 1e-3}),
    "m_sgd": (sj.m_sgd, {"learning_rate": 1e-3}),
    "ssd": (ssd_with_decay, {"learning_rate": 5e-3}),
    "m_ssd": (sj.m_ssd, {"learning_rate": 1e-3}),
    "svag": (sj.svag, {"learning_rate": 1e-3}),
    "m_svag": (sj.m_svag, {"learning_rate": 1e-3}),
    "adam": (sj.adam, {"learning_rate": 1e-3}),
    "adam_star": (sj.adam_star, {"learning_rate": 1e-3}),
    "m_svag_coupled": (sj.m_svag, {"learning_rate": 1e-3, "weight_decay": 1e-5}),
    "m_svag_decoupled": (
        sj.m_svag,
        {"learning_rate": 1e-3, "weight_decay": 1e-5, "decoupled_weight_decay": True},
    ),
    "amsgrad": (sj.adam, {"learning_rate": 1e-2, "amsgrad": True}),
    "m_ssd_erf": (row(direction="momentum", sign=True, factor="erf"), {"learning_rate": 1e-3}),
    "m_sgd_sqrt": (row(direction="momentum", factor="sqrt"), {"learning_rate": 1e-3}),
}
"""What is put into optax's lists: every named method, decay, and two recombinations."""


def load(name: str) -> Any:
    """Execute a file of optax's tests; the calling module is skipped where there is none."""
    folder = Path(os.environ.get("OPTAX_SOURCE") or Path(optax.__file__).parent)
    spec = importlib.util.spec_from_file_location(f"optax_{Path(name).stem}", folder / name)
    if spec is None or spec.loader is None or not (folder / name).exists():
        pytest.skip(
            f"{folder} has no {name}; name the folder optax/ of a checkout by OPTAX_SOURCE",
            allow_module_level=True,
        )
    for key, (factory, _) in OPTIMIZERS.items():
        setattr(optax.contrib, f"svag_{key}", factory)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optax's own, about optimizers that the file makes
        patch.setattr(parameterized, "product", _product_of_ours(parameterized.product))
        named = _named_parameters_of_ours(parameterized.named_parameters)
        patch.setattr(parameterized, "named_parameters", named)
        spec.loader.exec_module(module)
    return module


def _product_of_ours(product: Any) -> Any:
    """``contrib/_common_test.py`` gives lists of {"opt_name": ..., ...}."""
    entries = tuple(
        {
            "opt_name": f"svag_{name}",
            "opt_kwargs": options,
            "wrapper_name": None,
            "wrapper_kwargs": None,
        }
        for name, (_, options) in OPTIMIZERS.items()
    )

    def of_ours(*lists: Any, **arguments: Any) -> Any:
        assert all(entries[0].keys() >= row.keys() for rows in lists for row in rows)
        return product(*(entries for _ in lists), **arguments)

    return of_ours


def _named_parameters_of_ours(named: Any) -> Any:
    """``_src/sharding_test.py`` gives the items of {name: optimizer}; other lists stay."""
    items = [(name, make(**options)) for name, (make, options) in OPTIMIZERS.items()]

    def of_ours(*lists: Any) -> Any:
        held = [row for rows in lists for row in rows] if len(lists) == 1 else []
        optimizers = held and all(isinstance(x[1], optax.GradientTransformation) for x in held)
        return named(*items) if optimizers else named(*lists)

    return of_ours
