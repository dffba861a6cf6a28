"""Reads the values of options that are more than a number or a name."""

from svag.entrants import entrant
from svag.errors import InvalidOption


def eval_examples(text: str) -> int | None:
    """Read a number of examples, or ``all``, which is None.

    Raises:
        InvalidOption: it is neither.
    """
    if text == "all":
        return None
    if not (text.isdecimal() and int(text) > 0):
        raise InvalidOption(f"--eval-examples {text}: give a number of at least 1, or all")
    return int(text)


def by_method(options: list[str], flag: str) -> dict[str, list[float]]:
    """Read several ``METHOD=NUMBERS``; the method may have an ``=`` in its brackets.

    Args:
        options: the texts.
        flag: name of the option: ``--lr`` takes one number, ``--grid`` several.

    Raises:
        InvalidOption: a text is not of this form.
    """
    found = {}
    for option in options:
        key, _, values = option.rpartition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if not key or not numbers or (flag == "--lr" and len(numbers) > 1):
            example = "--lr adam=1e-3" if flag == "--lr" else "--grid adam=1e-4,1e-3,1e-2"
            raise InvalidOption(f"{flag} {option}: give METHOD=VALUE with numbers, e.g. {example}")
        found[entrant(key).key] = numbers
    return found
