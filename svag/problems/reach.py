"""Finds the user's own modules that a module reaches, each with a hash of its code.

A module reaches those that its source imports anywhere, and those in the namespace of a module
whose code has run once the first one is imported. No code is executed to find them.
"""

import hashlib
import sys
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType

from svag.errors import ProblemError, is_installed
from svag.problems import locating
from svag.problems.python_source import SourceFile, parse
from svag.problems.user_code import PREFIX

_seen: dict[str, tuple[ModuleSpec, str]] = {}  # hashes of files when they were first hashed


def reached(root: ModuleType) -> set[tuple[str, str]]:
    """Return name and hash of every module of the user's own that ``root`` reaches.

    The hash does not depend on comments, docstrings and formatting. The name of ``root`` itself is
    given as "", since it depends on how the user names it. Modules without code are left out.

    Raises:
        ProblemError: a file cannot be read, has changed since this process imported it, or would
            be another file if ``root`` was run as a script.
    """
    walk = _Walk(root)
    walk.run()
    return walk.found


class _Walk:
    """Visits all modules that ``root`` reaches: first those that have run, then those that may."""

    def __init__(self, root: ModuleType) -> None:
        spec = locating.spec_of(root)
        assert spec is not None  # every imported module has one
        self.found: set[tuple[str, str]] = set()
        self._root = root
        self._file = Path(str(spec.origin)).resolve()
        self._top = _installed_package(spec)
        self._has_run: list[str | ModuleType] = [root]
        self._may_run: list[str] = []
        self._enter: dict[str, bool] = {}
        self._visited: set[tuple[str, str | None]] = set()
        if spec.parent:
            self._has_run.append(spec.parent)

    def run(self) -> None:
        while self._has_run or self._may_run:
            ran = bool(self._has_run)
            target = self._has_run.pop() if ran else self._may_run.pop()
            if isinstance(target, str):
                self._walk_down(target, ran)
            else:
                self._visit(locating.spec_of(target), target)

    def _walk_down(self, name: str, ran: bool) -> None:
        """Visit the packages that contain a module, then the module, while they are the user's."""
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            part = ".".join(parts[:count])
            if part not in self._enter:
                spec = locating.find(part)
                self._enter[part] = spec is not None and (self._is_own(spec) or _is_namespace(spec))
                self._visit(spec, _loaded(part) if ran else None)
            if not self._enter[part]:
                return

    def _visit(self, spec: ModuleSpec | None, module: ModuleType | None) -> None:
        if spec is None or not self._is_own(spec) or (spec.name, spec.origin) in self._visited:
            return
        self._visited.add((spec.name, spec.origin))
        self._refuse_namesake(spec)
        source = _read(spec)
        _refuse_change(spec, source)
        if source.digest:
            self.found.add((self._label(spec), source.digest))
        for imported in source.imports:
            name = locating.absolute(imported.name, spec)
            if name is not None:
                ran = module is not None and not imported.late
                (self._has_run if ran else self._may_run).append(name)
        if module is not None:
            self._has_run += locating.held(module, submodules=source.dynamic)

    def _is_own(self, spec: ModuleSpec) -> bool:
        if not (spec.origin and spec.has_location):
            return False
        if spec.name.partition(".")[0] == self._top or self._is_root(spec):
            return True
        return not is_installed(Path(spec.origin))

    def _is_root(self, spec: ModuleSpec) -> bool:
        return Path(str(spec.origin)).resolve() == self._file

    def _label(self, spec: ModuleSpec) -> str:
        """Return a name for a module that does not depend on the location of its folder."""
        if self._is_root(spec):
            return ""
        return Path(str(spec.origin)).stem if _is_from_file(spec) else spec.name

    def _refuse_namesake(self, spec: ModuleSpec) -> None:
        """Raise if ``python file.py`` would import another module of this name, beside the file."""
        script = str(getattr(self._root, "__name__", "")).startswith(PREFIX)
        if not script or "." in spec.name or self._is_root(spec) or _is_from_file(spec):
            return
        folder = self._file.parent
        beside = (folder / spec.name / "__init__.py", folder / f"{spec.name}.py")
        other = next((path for path in beside if path.is_file()), None)
        if other and Path(str(spec.origin)).resolve() not in [path.resolve() for path in beside]:
            raise ProblemError(
                f"{self._file} imports {spec.name!r}, which is {spec.origin} here but {other} "
                "where the file runs on its own; rename one of them"
            )


def _loaded(name: str) -> ModuleType | None:
    module = sys.modules.get(name)
    return module if locating.spec_of(module) else None


def _is_namespace(spec: ModuleSpec) -> bool:
    return spec.origin is None and spec.submodule_search_locations is not None


def _is_from_file(spec: ModuleSpec) -> bool:
    return spec.name.rpartition(".")[2].startswith(PREFIX)


def _installed_package(spec: ModuleSpec) -> str | None:
    """Return the top package of the root if it is installed; its modules count as the user's."""
    top = spec.name.partition(".")[0]
    return top if is_installed(Path(str(spec.origin))) and top != "svag" else None


def _read(spec: ModuleSpec) -> SourceFile:
    path = Path(str(spec.origin))
    try:
        content = path.read_bytes() if path.is_file() else spec.loader.get_data(spec.origin)  # type: ignore[union-attr]
    except (OSError, AttributeError) as error:
        raise ProblemError(
            f"the source of the module {spec.name!r} cannot be read from {path}: {error}"
        ) from error
    if path.suffix in SOURCE_SUFFIXES:
        return parse(content, str(path))
    return SourceFile(hashlib.sha256(content).hexdigest(), frozenset(), dynamic=False)


def _refuse_change(spec: ModuleSpec, source: SourceFile) -> None:
    """Raise if a loaded module's file has changed since it was loaded."""
    if locating.spec_of(sys.modules.get(spec.name)) is not spec:
        return  # not loaded
    first, digest = _seen.get(str(spec.origin), (None, ""))
    if first is not spec:  # not loaded at that time, or loaded again
        _seen[str(spec.origin)] = (spec, source.digest)
    elif digest != source.digest:
        raise ProblemError(
            f"{spec.origin} has changed since this process imported it; start Python again, or "
            "importlib.reload() the module"
        )
