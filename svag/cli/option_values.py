"""Reads the values of options that are more than a number or a name."""

from svag.entrants import entrant
from svag.errors import InvalidOption

_MOST_DIGITS = 16
"""Numbers of fewer digits are exact in any program that reads JSON."""


def eval_examples(text: str) -> int | None:
    """Read a number of examples, or ``all``, which is None.

    Raises:
        InvalidOption: it is neither.
    """
    if text == "all":
        return None
    if not (text.isdecimal() and len(text) < _MOST_DIGITS and int(text) > 0):
        raise InvalidOption(
            f"--eval-examples {text:.60}: give a number from 1 to 10^{_MOST_DIGITS - 1} - 1, or all"
        )
    return int(text)


def by_method(options: list[str], flag: str) -> dict[str, list[float]]:
    """Read several ``METHOD=NUMBERS``; the method may have an ``=`` in its brackets.

    Args:
        options: the texts.
        flag: name of the option: ``--lr`` takes one number, ``--grid`` several.

    Raises:
        InvalidOption: a text is not of this form, or a method is given twice.
    """
    found: dict[str, list[float]] = {}
    for option in options:
        key, _, values = option.rpartition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if not key or not numbers or (flag == "--lr" and len(numbers) > 1):
            example = "--lr adam=1e-3" if flag == "--lr" else "--grid adam=1e-4,1e-3,1e-2"
            raise InvalidOption(f"{flag} {option}: give METHOD=VALUE with numbers, e.g. {example}")
        method = entrant(key).key
        if method in found:
            several = "--grid {0}=A,B" if flag == "--lr" else "one {1} {0}=A,B,C"
            raise InvalidOption(
                f"{flag} {option}: {method!r} is given twice; give {several.format(method, flag)} "
                "for several step sizes, each method once"
            )
        found[method] = numbers
    return found
