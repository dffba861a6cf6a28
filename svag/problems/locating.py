"""Finds the specs of modules as the import system does, but without importing them."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

_MOST = 10_000  # larger containers, such as tables of numbers, are not searched
_PLAIN = {int, float, complex, str, bytes, bool, type(None)}


def spec_of(module: object) -> ModuleSpec | None:
    """Return the spec of a loaded module, without triggering the load of a lazy module."""
    if not issubclass(type(module), ModuleType):
        return None
    spec = object.__getattribute__(module, "__dict__").get("__spec__")
    return spec if isinstance(spec, ModuleSpec) else None


def find(name: str) -> ModuleSpec | None:
    """Return the spec that ``import name`` would use: a loaded module's, else the finders'."""
    if name in sys.modules and sys.modules[name] is None:
        return None  # None in sys.modules blocks the import
    loaded = spec_of(sys.modules.get(name))
    if loaded is not None:
        return loaded
    parent = name.rpartition(".")[0]
    above = find(parent) if parent else None
    if parent and (above is None or above.submodule_search_locations is None):
        return None
    return _search(name, list(above.submodule_search_locations or ()) if above else None)


def absolute(name: str, spec: ModuleSpec) -> str | None:
    """Resolve a relative import of a module to a full name; None if it leaves the top package."""
    try:
        return resolve_name(name, spec.parent or "")
    except ImportError:
        return None


def held(module: ModuleType, *, submodules: bool) -> Iterator[str | ModuleType]:
    """Yield the modules in a module's namespace, and the names of the modules that define the rest.

    Args:
        module: a loaded module.
        submodules: whether to include its own submodules under their own names. The import system
            binds those, no matter which module imported them.
    """
    own = spec_of(module)
    for bound, value in list(object.__getattribute__(module, "__dict__").items()):
        for item in () if bound.startswith("__") else _items(value):
            if issubclass(type(item), ModuleType):
                spec = spec_of(item)
                if submodules or not (own and spec and spec.name == f"{own.name}.{bound}"):
                    yield item
            elif isinstance(maker := _maker(item), str):
                yield maker


def _search(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    # Finders of some packages import modules as a side effect; the standard library needs none.
    own = name.partition(".")[0] in sys.stdlib_module_names
    finders: Sequence[Any] = (
        (BuiltinImporter, FrozenImporter, PathFinder) if own else list(sys.meta_path)
    )
    for finder in finders:
        try:
            find_spec = getattr(finder, "find_spec", None)
            found: ModuleSpec | None = find_spec(name, path, None) if find_spec else None
        except KeyError:  # a namespace package in a namespace package that is not loaded
            found = _namespace(name, path or ())
        if found is not None:
            return found
    return None


def _namespace(name: str, path: Sequence[str]) -> ModuleSpec | None:
    folders = [Path(folder) / name.rpartition(".")[2] for folder in path]
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder) for folder in folders if folder.is_dir()]
    return spec if spec.submodule_search_locations else None


def _items(value: Any) -> list[Any]:
    """Return the members of a built-in container or a ``partial``, else the value itself."""
    kind = type(value)
    if kind is partial:
        return [value.func, *value.args, *value.keywords.values()]
    if kind is dict:
        value = [*value, *value.values()] if len(value) <= _MOST else []
    elif kind not in (list, tuple, set, frozenset):
        return [value]
    return list(value) if len(value) <= 2 * _MOST else []


def _maker(value: Any) -> Any:
    """Return the name of the module that defines a function, a class or an object's class."""
    kind = type(value)
    if kind in _PLAIN:
        return None
    if kind is MethodType:
        return _maker(value.__func__)
    if kind is FunctionType:
        return value.__module__
    return inspect.getattr_static(value, "__module__", None)
