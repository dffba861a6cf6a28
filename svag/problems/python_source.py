"""Parses a Python source: a hash of its code without formatting, and its imports."""

import ast
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import resolve_name

from svag.errors import ProblemError

_IMPORTERS = {"import_module", "__import__", "exec_module"}
_UNRELATED = {"kind", "type_comment", "type_ignores", "ctx"}  # fields without effect on the code


@dataclass(frozen=True)
class Import:
    """A dotted name that is imported: a module, or a name in one.

    Attributes:
        name: as in the source, with leading dots if it is relative.
        late: whether the import is inside a function.
    """

    name: str
    late: bool


@dataclass(frozen=True)
class SourceFile:
    """The content of a source file.

    Attributes:
        digest: hash of its code without comments, docstrings and formatting; empty if there is no
            code.
        imports: all names that it imports, also inside functions.
        dynamic: whether it imports modules under names computed at run time.
    """

    digest: str
    imports: frozenset[Import]
    dynamic: bool


def parse(content: bytes, file: str) -> SourceFile:
    """Parse a source file.

    Args:
        content: bytes of the file.
        file: its name, for messages.

    Raises:
        ProblemError: it is not valid Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python gave these warnings at import
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        message = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
        raise ProblemError(
            f"{file}{f':{line}' if line else ''} is not Python that can be read ({message}); mend "
            "it or leave out its import"
        ) from error
    code = "\n".join(_canonical(tree))
    return SourceFile(
        digest=hashlib.sha256(code.encode()).hexdigest() if _statements(tree.body) else "",
        imports=frozenset(_imports(tree)),
        dynamic=any(_is_importer(node) for node in ast.walk(tree)),
    )


def _canonical(tree: ast.AST) -> Iterator[str]:
    """Yield a syntax tree as tokens that depend neither on formatting nor on Python's version.

    It loops, since long chains of operators would exceed the limit on recursion.
    """
    waiting: list[object] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.AST):
            fields = [(name, getattr(node, name, None)) for name in node._fields]
            if not isinstance(node, ast.Constant):
                fields = [(name, value) for name, value in fields if value not in (None, [])]
            fields = [(name, value) for name, value in fields if name not in _UNRELATED]
            yield f"{type(node).__name__} {len(fields)}"
            for name, value in reversed(fields):
                waiting += [value, _Field(name)]
        elif isinstance(node, list):
            kept = _statements(node)
            yield f"list {len(kept)}"
            waiting += reversed(kept)
        elif isinstance(node, _Field):
            yield node
        else:
            yield f"{type(node).__name__} {hex(node) if type(node) is int else repr(node)}"


class _Field(str):
    """The name of a field; the type tells it from a string in the source."""

    __slots__ = ()


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Leave out statements without effect: strings (docstrings) and ``pass``."""
    return [node for node in body if not (isinstance(node, ast.Pass) or _is_string(node))]


def _is_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _imports(tree: ast.AST) -> Iterator[Import]:
    """Yield all imports, except those under ``if TYPE_CHECKING``."""
    waiting = [(tree, False)]
    while waiting:
        node, late = waiting.pop()
        yield from (Import(name, late) for name in _names(node))
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING":
            waiting += [(child, late) for child in node.orelse]
        else:
            waiting += [(child, late) for child in ast.iter_child_nodes(node)]


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names that one statement or call imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        yield base
        joint = "." if node.module else ""
        yield from (f"{base}{joint}{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and _last_name(node.func) in _IMPORTERS:
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        texts = [part.value for part in given if isinstance(part, ast.Constant)]
        name, package = [*(text for text in texts if isinstance(text, str)), "", ""][:2]
        if name.strip("."):
            with suppress(ImportError):  # a relative import beyond the top package
                yield resolve_name(name, package) if package and name[0] == "." else name


def _is_importer(node: ast.AST) -> bool:
    return _last_name(node) in _IMPORTERS


def _last_name(node: ast.AST) -> str | None:
    """Return ``c`` for the expressions ``a.b.c`` and ``c``, and for ``import c as d``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    return node.name if isinstance(node, ast.alias) else None
