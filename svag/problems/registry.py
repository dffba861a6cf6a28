"""Problems by name, by file and by module: one way in for built-in ones and a user's own."""

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

from svag.errors import (
    DataError,
    ProblemError,
    SvagError,
    UnknownName,
    in_one_line,
    nearest,
)
from svag.problems.problem import Data, Problem

PROBLEMS: dict[str, str] = {
    "digits": "svag.problems.vision:digits",
    "fmnist-2c2d": "svag.problems.vision:fmnist_2c2d",
    "stdlib-chars": "svag.problems.text:stdlib_chars",
}


def get(spec: str) -> Problem:
    """Return the problem that ``spec`` names.

    Args:
        spec: a name in ``PROBLEMS``, ``path/to/file.py:function`` or ``package.module:function``;
            the function takes no arguments and returns a ``Problem``. Modules are also looked
            for in the current directory, what a file imports also beside it.

    Returns:
        The problem. One that is not built in has as ``version`` a hash of its own, of its file
        and of what that has imported from beside it, so that records of an edited problem stay
        apart from older ones.

    Raises:
        UnknownName: no such name.
        ProblemError: the file, module or function is missing, raises, or returns something else.

    Example:
        >>> get("digits").name
        'digits'
    """
    target = PROBLEMS.get(spec, spec)
    place, colon, function = target.rpartition(":")
    if not (colon and place and function):
        if spec.endswith(".py"):
            raise UnknownName(
                f"{spec!r} names a file; name the function in it that returns the problem too: "
                f"{spec}:function"
            )
        raise UnknownName(
            f"no problem is called {spec!r}.{nearest(spec, PROBLEMS)} Known: "
            f"{', '.join(PROBLEMS)}; your own is path/to/file.py:function or "
            "package.module:function"
        )
    module = _from_file(Path(place), spec) if place.endswith(".py") else _from_module(place, spec)
    problem = _call(module, function, spec)
    if target in PROBLEMS.values():
        return replace(problem, source=spec)
    digest = hashlib.sha256(problem.version.encode())
    for path in _sources(Path(str(module.__file__))):
        digest.update(path.read_bytes())
    return replace(problem, source=spec, version=digest.hexdigest()[:12])


def load(problem: Problem, data_dir: Path | None = None) -> Data:
    """Load a problem's data; an error that its function raises is told apart from svag's own.

    Raises:
        DataError: a data set is missing or damaged.
        ProblemError: the problem's own function failed.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(
            f"data directory {str(data_dir)!r} does not exist; name one that does, or none"
        )
    try:
        data = problem.load(data_dir)
    except SvagError:
        raise
    except Exception as error:
        what = f"the data of {problem.name!r} could not be loaded"
        raise _raised(error, None, what) from error
    if not isinstance(data, Data):
        raise ProblemError(
            f"the load function of {problem.name!r} returned {type(data).__name__} instead of "
            "svag.problems.Data"
        )
    return data


class _Source(SourceFileLoader):
    """Compiles the file each time: to a .pyc, two edits within a second look alike."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _from_file(path: Path, spec: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ProblemError(f"{spec!r}: there is no file {str(path)!r}")
    _also_import_from(path.parent)
    name = f"svag_problem_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    loader = _Source(name, str(path))
    module_spec = spec_from_loader(name, loader)
    assert module_spec is not None  # it is None for loaders without a file only
    module = module_from_spec(module_spec)
    sys.modules[name] = module  # pickle and dataclasses look classes up there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _raised(error, path, f"{spec!r}: the file could not be run") from error
    return module


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
        raise _raised(error, None, f"{spec!r}: the module could not be imported") from error
    if not module.__file__:
        raise ProblemError(f"{spec!r}: {name!r} is a folder or has no source file; name a module")
    return module


def _sources(file: Path) -> list[Path]:
    """Return a file and the files beside and below it that it imports, directly or not."""
    folder = file.resolve().parent
    found: set[Path] = set()
    waiting = [file.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [
                candidate.resolve()
                for name in _imported(path)
                for base in {folder, path.parent}
                for candidate in (base / f"{name}.py", base / name / "__init__.py")
                if candidate.is_file()
            ]
    return sorted(found)


def _imported(path: Path) -> set[str]:
    """Return what a file imports, as paths without their endings."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)}
    return {name.replace(".", "/") for name in names if name}


def _also_import_from(folder: Path) -> None:
    """Let imports find what lies in ``folder``, after everything that they find already."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _call(module: ModuleType, function: str, spec: str) -> Problem:
    factory = getattr(module, function, None)
    if not callable(factory):
        own = _functions(module)
        state = "is not a function" if hasattr(module, function) else "does not exist"
        raise ProblemError(
            f"{spec!r}: {function!r} {state} in {module.__file__}.{nearest(function, own)} "
            f"Functions there: {', '.join(own) or 'none'}"
        )
    try:
        problem = factory()
    except (Exception, SystemExit) as error:
        raise _raised(error, Path(str(module.__file__)), f"{spec!r} failed") from error
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"{spec!r} returned {type(problem).__name__} instead of svag.problems.Problem"
        )
    return problem


def _functions(module: ModuleType) -> list[str]:
    """Public functions that the module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Callable)  # type: ignore[arg-type]
        and getattr(value, "__module__", None) == module.__name__
        and not name.startswith("_")
    ]


def _raised(error: BaseException, source: Path | None, what: str) -> ProblemError:
    return ProblemError(f"{what}: {in_one_line(error, source)}")
