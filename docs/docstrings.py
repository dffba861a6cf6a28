"""What the site does with svag's docstrings and signatures, which are plain text first.

Equations are indented paragraphs: they become literal blocks, as they were typed. Signatures show
annotations as the source has them. Objects are linked by their public names (``svag.MSVAG``)
wherever they are defined.
"""

import ast
import importlib
import inspect
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.ext import autosummary, intersphinx

PUBLIC: Final = ("svag", "svag.theory", "svag.problems", "svag.report", "svag.jax")
"""Packages whose ``__all__`` is documented, the first that has a name being its home."""

ELSEWHERE: Final = {
    "AbstractContextManager": "contextlib.AbstractContextManager",
    "Any": "typing.Any",
    "Array": "numpy.ndarray",
    "ArrayLike": "numpy.typing.ArrayLike",
    "Callable": "collections.abc.Callable",
    "DataLoader": "torch.utils.data.DataLoader",
    "Iterable": "collections.abc.Iterable",
    "Iterator": "collections.abc.Iterator",
    "Literal": "typing.Literal",
    "Mapping": "collections.abc.Mapping",
    "NDArray": "numpy.typing.NDArray",
    "NamedTuple": "typing.NamedTuple",
    "Optimizer": "torch.optim.Optimizer",
    "Path": "pathlib.Path",
    "Protocol": "typing.Protocol",
    "Sequence": "collections.abc.Sequence",
    "Tensor": "torch.Tensor",
    "Transformation": "optax.GradientTransformationExtraArgs",
    "TypedDict": "typing.TypedDict",
    "Unpack": "typing.Unpack",
    "nn.Module": "torch.nn.Module",
    "np.random.Generator": "numpy.random.Generator",
}
"""What names in annotations are in the documentation of torch, NumPy and Python."""

DOCUMENTED: Final = {
    "svag.anatomy.METHODS": "svag.METHODS",
    "svag.theory.separable.FULL_BATCH": "svag.theory.FULL_BATCH",
    "svag.theory.dynamics.svag.anatomy.METHODS": "svag.METHODS",
    "svag.Options": "svag.optim.options.Options",
    "svag.Analysis": "svag.analysis.study.Analysis",
}
"""Further names that pages document, by where else they are looked for."""

UNLINKED: Final = {
    *("BatchLoss", "Cell", "Choice", "Claims", "Context", "Destination", "Direction", "Dissection"),
    *("Effect", "Factor", "Figure", "FullBatch", "LineCourse", "Loss", "Make", "Method"),
    *("MethodResult", "NamedParameters", "Nested", "Observation", "Over", "PagePlace"),
    *("Parameters", "Params", "Probe", "Progress", "Record", "RelativeVariance", "Select"),
    *("Several", "Spectrum", "Step", "StepSize", "Steps", "Study", "Value", "Variance"),
    *("Tree", "optax.ScalarOrSchedule", "svag.quantity.Quantity", "torch.amp.GradScaler"),
}
"""What annotations name and no page documents."""

_SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples|References|Note):\s*$"
)
_LIST = re.compile(r"^\s*([-*+]|\d+\.)\s")
_KEPT = re.compile(
    r"(``.*?``|\*\*[^*]+\*\*|(?<![\w*])\*[A-Za-z-]+\*(?![\w*])|:[\w:]+:`[^`]*`"
    r"|^\s*>>>.*|^\s*\.\.\. .*)"
)


def connect(app: Any) -> None:
    """Connect the functions below to Sphinx's events."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-process-signature", _sign)
    app.connect("missing-reference", _resolve, priority=100)
    app.connect("doctree-resolved", _title_links)
    app.connect("doctree-resolved", _keep_short_code_together)
    autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.", "Eqs.", "Fig.")  # they end no summary


def readable(lines: list[str]) -> list[str]:
    """Turn a docstring into reStructuredText: literal equations, and no markup by accident."""
    done: list[str] = []
    in_section = in_block = in_example = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line.strip() and not indented:
            in_block, in_section = False, bool(_SECTION.match(line))
            in_example = in_section and line.startswith("Example")
        starts = indented and number > 0 and not lines[number - 1].strip()
        if starts and not in_section and not in_block and not _LIST.match(line):
            in_block = True
            done += ["::", ""]
        done.append(line if in_block or in_example else _escaped(line))
    return done


def _escaped(line: str) -> str:
    """Escape bars, stars and trailing underscores outside of literals and roles."""
    parts = _KEPT.split(line)
    for number in range(0, len(parts), 2):
        if number or not re.match(r"\s*\* ", parts[0]):
            parts[number] = re.sub(r"(?<!\\)([*|])", r"\\\1", parts[number])
        parts[number] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", parts[number])
    return "".join(parts)


@cache
def public_names() -> dict[str, str]:
    """Return the public name of every object by where it is defined."""
    names: dict[str, str] = {}
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name in module.__all__:
            home = getattr(getattr(module, name), "__module__", None)
            for place in {home, package}:
                names.setdefault(f"{place}.{name}", f"{package}.{name}")
    errors = importlib.import_module("svag.errors")
    names |= {f"svag.{name}": f"svag.errors.{name}" for name in vars(errors) if name[0].isupper()}
    return names | DOCUMENTED


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = readable(lines)


def _sign(
    app: Any, what: str, name: str, obj: Any, options: Any, args: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Return the signature with the annotations of the source instead of what they stand for."""
    if inspect.isclass(obj):
        if is_dataclass(obj):
            return f"({', '.join(_fields(obj))})", None
        init = vars(obj).get("__init__")
        return (_written(init)[0], None) if inspect.isfunction(init) else None
    if isinstance(obj, property):
        return None
    function = inspect.unwrap(getattr(obj, "__func__", obj))
    return _written(function) if inspect.isfunction(function) else None


def _written(function: Any) -> tuple[str, str | None]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    for arguments in (tree.args.posonlyargs, tree.args.args):
        if arguments and arguments[0].arg in ("self", "cls"):
            del arguments[0]
    return f"({ast.unparse(tree.args)})", tree.returns and ast.unparse(tree.returns)


def _fields(cls: type) -> Iterator[str]:
    """Yield the fields of a dataclass, those of its base classes first."""
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        if any("kw_only" in ast.unparse(one) for one in tree.decorator_list):
            yield "*"
        yield from (ast.unparse(one) for one in tree.body if isinstance(one, ast.AnnAssign))


def _resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Link a name that is not documented where it is defined, or that is short."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    places = [target, f"{node.get('py:module')}.{target}"]
    places += [f"{package}.{target}" for package in PUBLIC]
    names = {public_names()[one] for one in places if one in public_names()} - {target}
    for full in sorted(names):
        found = env.get_domain("py").resolve_xref(
            env, node["refdoc"], app.builder, "obj", full, node, contnode
        )
        if found is not None:
            return found
    if target in ELSEWHERE:
        node["reftarget"] = ELSEWHERE[target]
        node["reftype"] = "obj"
        return intersphinx.missing_reference(app, env, node, contnode)
    internal = node["reftype"] == "mod" and find_spec(target) is not None
    return contnode if internal or target in UNLINKED else None


def _title_links(app: Any, doctree: Any, page: str) -> None:
    """Show the title of a page instead of its file's name in links such as ``variance.md``."""
    for link in doctree.findall(nodes.reference):
        file = link.astext()
        if link.get("internal") and re.fullmatch(r"[\w/-]+\.md", file):
            target = link["refuri"].partition("#")[0] or f"{page}.html"
            here = Path(page).parent / target
            name = os.path.normpath(here.with_suffix("")).replace(os.sep, "/")
            title = app.env.titles[name].astext()
            link[:] = [nodes.emphasis("", title)]


def _keep_short_code_together(app: Any, doctree: Any, page: str) -> None:
    """Mark short code in a line of text, which ``site.css`` does not break at a hyphen."""
    for code in doctree.findall(nodes.literal):
        if len(code.astext()) <= 28:
            code["classes"].append("short")
