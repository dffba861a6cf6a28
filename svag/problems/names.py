"""Which names a problem may have: they become names of folders and are printed."""

import re

from svag.errors import InvalidOption

_ALLOWED = re.compile(r"\w([\w .+-]*[\w+-])?")
_CHARACTERS = 80
_BYTES = 200  # most file systems allow 255, and svag may append to the name


def check_name(name: str) -> None:
    """Raise if a problem's name is not safe as the name of a folder.

    Raises:
        InvalidOption: it is empty, too long, or has other than letters, digits and ``_ . + -``.

    Example:
        >>> check_name("CIFAR-10/ResNet")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        svag.errors.InvalidOption: name='CIFAR-10/ResNet': ...
    """
    named = isinstance(name, str) and _ALLOWED.fullmatch(name)
    if not (named and len(name) <= _CHARACTERS and len(name.encode()) <= _BYTES):
        shown = repr(name)
        if len(shown) > _CHARACTERS:
            shown = f"{shown[:_CHARACTERS]}..."
        raise InvalidOption(
            f"name={shown}: a problem's name is part of a folder's; give it letters, digits, "
            f"spaces and any of _ . + -, at the ends only letters, digits and _ (or a last + or "
            f"-), at most {_CHARACTERS} characters ({_BYTES} bytes)"
        )
