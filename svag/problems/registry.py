"""Finds and loads problems: built-in ones by name, a user's own by file or module."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from svag.errors import DataError, ProblemError, SvagError, UnknownName, nearest
from svag.problems import identity, user_code
from svag.problems.problem import Data, Problem
from svag.problems.seeding import seed_everything

PROBLEMS: dict[str, str] = {
    "digits": "svag.problems.vision:digits",
    "fmnist-2c2d": "svag.problems.vision:fmnist_2c2d",
    "cifar10-3c3d": "svag.problems.cifar:cifar10_3c3d",
    "cifar100-wrn404": "svag.problems.cifar:cifar100_wrn404",
    "cifar100-wrn102-5k": "svag.problems.cifar:cifar100_wrn102_5k",
    "tolstoi-char-lstm": "svag.problems.text:tolstoi_char_lstm",
    "stdlib-chars": "svag.problems.text:stdlib_chars",
    "quadratic": "svag.problems.quadratic:quadratic",
    "wilson": "svag.problems.quadratic:wilson",
}


def get(spec: str) -> Problem:
    """Return the problem that ``spec`` names.

    Args:
        spec: a name in ``PROBLEMS``, ``path/to/file.py:function`` or ``package.module:function``;
            the function takes no arguments and returns a ``Problem``. Modules are also searched for
            in the current directory, and imports of a file also in its folder.

    Returns:
        The problem. For a user's own, ``version`` is a hash of the version that it states and of
        the code that its function reaches (``problems/identity.py``), so that records of an edited
        problem are kept apart from older ones.

    Raises:
        UnknownName: no such name.
        ProblemError: the file, module or function is missing, raises, or returns something else.

    Example:
        >>> get("digits").name
        'digits'
    """
    target = PROBLEMS.get(spec, spec)
    if target == spec and ":" not in spec and not spec.endswith(".py"):
        raise UnknownName(
            f"no problem is called {spec!r}.{nearest(spec, PROBLEMS)} Known: "
            f"{', '.join(PROBLEMS)}; your own is path/to/file.py:function or "
            "package.module:function"
        )
    seed_everything(0)  # random numbers drawn at import are the same at every call ...
    module, function = user_code.resolve(target)
    seed_everything(0)  # ... and so are those of the function, even if the module was loaded
    problem = _call(module, function, spec)
    if target in PROBLEMS.values():
        return replace(problem, source=spec)
    try:
        version = identity.version(
            module, function, salt=problem.version, depends_on=problem.depends_on
        )
    except ProblemError as error:
        raise ProblemError(f"{spec!r}: {error}") from error
    return replace(problem, source=spec, version=version)


def load(problem: Problem, data_dir: Path | None = None) -> Data:
    """Load a problem's data; errors of the problem's own function become a ``ProblemError``.

    Raises:
        DataError: a data set is missing or damaged.
        ProblemError: the problem's ``load`` function raised or returned something else.

    Example:
        >>> data = load(get("digits"))
        >>> tuple(data.train.inputs.shape), len(data.test)
        ((1297, 1, 8, 8), 500)
    """
    if data_dir is not None and not data_dir.is_dir():
        state = "is not a directory" if data_dir.exists() else "does not exist"
        raise DataError(f"data directory {str(data_dir)!r} {state}; name another, or none")
    seed_everything(0)  # so that a random split is the same at every call
    try:
        data = problem.load(data_dir)
    except SvagError:
        raise
    except (Exception, SystemExit) as error:
        what = f"the data of {problem.name!r} could not be loaded"
        raise user_code.raised(error, what) from error
    if not isinstance(data, Data):
        raise ProblemError(
            f"the load function of {problem.name!r} returned {type(data).__name__} instead of "
            "svag.problems.Data"
        )
    try:
        problem.check(data)
    except SvagError as error:
        raise ProblemError(str(error)) from error
    return data


def _call(module: ModuleType, function: str, spec: str) -> Problem:
    try:
        problem = getattr(module, function)()
    except (Exception, SystemExit) as error:
        raise user_code.raised(error, f"{spec!r} failed") from error
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"{spec!r} returned {type(problem).__name__} instead of svag.problems.Problem"
        )
    return problem
