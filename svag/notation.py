"""How options are written behind a name: ``NAME(beta=0.95, decoupled)`` and ``NAME@VARIANCE``."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from svag.errors import InvalidOption, UnknownName, UnknownOption


def split(text: str) -> list[str]:
    """Split at the commas outside brackets, and leave out empty parts.

    Raises:
        UnknownName: the brackets do not match.
    """
    _check_brackets(text)
    return _parts(text, depth=0)


def taken_apart(text: str, whole: Callable[[str], bool]) -> tuple[str, list[str]]:
    """Split ``NAME(options)`` into the name and the options as they are written.

    ``@VARIANCE`` becomes the option ``variance``.

    Args:
        text: the whole text.
        whole: says whether a text is all name, so that parentheses at its end are no options.

    Raises:
        UnknownName: the brackets do not match.
    """
    _check_brackets(text)
    head = text.strip()
    parts: list[str] = []
    while not whole(head):
        if at := re.fullmatch(r"(.+?)\s*@\s*([\w-]+)", head):
            head = at[1]
            parts.append(f"variance={at[2]}")
        elif head.endswith(")"):
            start = max(i for i, char, depth in _unquoted(head) if (char, depth) == ("(", 1))
            parts += _parts(head[start:], depth=1)
            head = head[:start].rstrip()
        else:
            break
    return head, parts


def stated(text: str, parts: Iterable[str]) -> dict[str, str]:
    """Return the options as a dictionary of name and written value; a flag is ``True``.

    Args:
        text: the whole text, for messages.
        parts: the options, ``NAME=VALUE`` or ``NAME``.

    Raises:
        InvalidOption: a part is no option, or an option is given twice.
        UnknownOption: ``lr`` is among them; step sizes are searched for.
    """
    options: dict[str, str] = {}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier():
            raise InvalidOption(f"{text!r}: {part!r} is no option; options are NAME=VALUE or NAME")
        if name in options:
            raise InvalidOption(f"{text!r} gives {name} twice; give it once")
        if name == "lr":
            raise UnknownOption(
                f"{text!r}: step sizes are searched for; fix one with --lr KEY=VALUE"
            )
        options[name] = value if equals else "True"
    return options


def literal(text: str, name: str, written: str) -> Any:
    """Return the value of an option.

    Args:
        text: the whole text, for the message.
        name: of the option, for the message.
        written: the value as it is written.

    Raises:
        InvalidOption: ``written`` is no Python literal.
    """
    try:
        return ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise InvalidOption(
            f"{text!r}: {name}={written} is no Python literal; give a number, True, False, "
            "None, a string in quotes, or a tuple, list or dict of these"
        ) from None


def short(written: str) -> str:
    """Write a Python literal as ``repr`` does, but 1e-05 as 1e-5."""
    canonical = ast.unparse(ast.parse(written, mode="eval"))
    number = not re.search("['\"]", canonical)
    return re.sub(r"e([-+])0+", r"e\1", canonical) if number else canonical


def _unquoted(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield index, character and bracket depth of all that is not in quotes inside brackets."""
    depth, quote = 0, ""
    for index, char in enumerate(text):
        if quote or (depth and char in "'\""):
            quote = "" if char == quote else quote or char
            continue
        depth += (char in "([{") - (char in ")]}")
        yield index, char, depth


def _check_brackets(text: str) -> None:
    depths = [0, *(depth for _, _, depth in _unquoted(text))]
    if min(depths) < 0 or depths[-1] != 0:
        raise UnknownName(f"{text!r}: parentheses do not match; close each that is opened")


def _parts(text: str, depth: int) -> list[str]:
    """Return the parts between commas at a bracket depth, without empty parts."""
    commas = [i for i, char, at in _unquoted(text) if (char, at) == (",", depth)]
    ends = zip([depth - 1, *commas], [*commas, len(text) - depth], strict=True)
    return [part for start, end in ends if (part := text[start + 1 : end].strip())]
