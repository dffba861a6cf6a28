"""Imports code from outside svag: a user's file or module, by its name."""

import hashlib
import importlib
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

from svag.errors import ProblemError, UnknownName, in_one_line, is_installed, nearest

PREFIX = "svag_user_"  # begins the last part of the module name that a user's file gets


def resolve(spec: str) -> tuple[ModuleType, str]:
    """Import the module of ``path/to/file.py:name`` or ``package.module:name``.

    Modules are also searched for in the current directory, and imports of a file also in its
    folder. A file in a package (a folder with ``__init__.py``) can import relatively.

    Args:
        spec: a function or a class, by its file or module.

    Returns:
        The module, and the name of a callable in it.

    Raises:
        UnknownName: the text is not of one of these two forms.
        ProblemError: the file, the module or the name is missing, or its import raises.

    Example:
        >>> module, name = resolve("torch.optim:Adam")
        >>> module.__name__, name
        ('torch.optim', 'Adam')
    """
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name):
        if spec.endswith(".py"):
            raise UnknownName(
                f"{spec!r} names a file; name the function in it too: {spec}:function"
            )
        raise UnknownName(f"{spec!r}: write path/to/file.py:function or package.module:function")
    importlib.invalidate_caches()  # so that files written since the last import are found
    module = _from_file(Path(place), spec) if place.endswith(".py") else _from_module(place, spec)
    if not callable(getattr(module, name, None)):
        own = _functions(module)
        state = "is not a function" if hasattr(module, name) else "does not exist"
        raise ProblemError(
            f"{spec!r}: {name!r} {state} in {module.__file__}.{nearest(name, own)} "
            f"Functions there: {', '.join(own) or 'none'}"
        )
    return module, name


def installed(module: ModuleType) -> bool:
    """Whether a module belongs to the standard library, svag or an installed package."""
    return not module.__file__ or is_installed(Path(module.__file__))


def raised(error: BaseException, what: str) -> ProblemError:
    """Return the error for an exception in a user's code, with the line of that code."""
    return ProblemError(f"{what}: {in_one_line(error)}")


class _Source(SourceFileLoader):
    """Compiles the file each time, since a cached .pyc misses a second edit within a second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _from_file(path: Path, spec: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ProblemError(f"{spec!r}: there is no file {str(path)!r}")
    _also_import_from(path.parent)
    name = _name_of(path)
    loader = _Source(name, str(path))
    module_spec = spec_from_loader(name, loader)
    assert module_spec is not None  # it is None only for loaders without a file
    module = module_from_spec(module_spec)
    sys.modules[name] = module  # pickle and dataclasses look up classes there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise raised(error, f"{spec!r}: the file could not be run{_remedy(error)}") from error
    return module


def _name_of(path: Path) -> str:
    """Return a unique module name for a file, inside the package that contains it."""
    packages: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        packages.insert(0, folder.name)
        folder = folder.parent
    if packages:
        _also_import_from(folder)
    key = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:8]
    stem = path.stem.replace(".", "_")
    return ".".join([*packages, f"{PREFIX}{stem}_{key}"])


def _remedy(error: BaseException) -> str:
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        return (
            " (it imports relatively, but its folder has no __init__.py; add one, or name "
            "package.module:function from the folder that holds the package)"
        )
    return ""


def _from_module(name: str, spec: str) -> ModuleType:
    _also_import_from(Path.cwd())
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ProblemError(
                f"{spec!r}: there is no module {error.name!r} in {str(Path.cwd())!r} or among "
                "the installed ones; a file is named with its ending, path/to/file.py:function"
            ) from error
        raise raised(error, f"{spec!r}: the module could not be imported") from error
    if not module.__file__:
        raise ProblemError(f"{spec!r}: {name!r} is a folder or has no source file; name a module")
    return module


def _also_import_from(folder: Path) -> None:
    """Append ``folder`` to the paths that imports search, if it is not there yet."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _functions(module: ModuleType) -> list[str]:
    """Return public functions and classes that the module defines or lists in ``__all__``."""
    listed = getattr(module, "__all__", ())
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and (name in listed or getattr(value, "__module__", None) == module.__name__)
        and not name.startswith("_")
    ]
