"""One production of the grammar: which shapes it takes, the code it writes, what shape it gives.

The dimensions of the running tensor ``h`` have names: B examples, T steps, D width, and C, H, W for
images; BT and TB are examples and steps merged into one dimension, in that order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

ANY = "*"
MIXES = "mixes"  # made to couple examples; whether it does is the oracle's to say
ODD = "odd"  # nobody expects svag to follow it; counted apart when it is refused


@dataclass(frozen=True)
class Rule:
    """A production.

    Attributes:
        name: what it is called in reports.
        takes: the dimensions it can be used on, alternatives parted by ``|``; ``* D`` is any
            tensor whose last dimension is D, ``*`` any tensor.
        code: variants of what ``forward`` does, of which one is drawn.
        gives: the dimensions afterwards; empty where they stay.
        parts: what ``__init__`` makes, by the letter that ``code`` uses.
        setup: further lines of ``__init__``.
        when: a condition on the sizes.
        becomes: sizes that change, as expressions in the old ones.
        tags: ``MIXES``, ``ODD``.
    """

    name: str
    takes: str
    code: tuple[str, ...]
    gives: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    when: str = "True"
    becomes: Mapping[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()

    def takes_axes(self, axes: tuple[str, ...]) -> bool:
        """Whether the running tensor's dimensions are among those taken."""
        return any(_matches(form.split(), axes) for form in self.takes.split("|"))

    def gives_axes(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the dimensions afterwards."""
        names = self.gives.split()
        if not names:
            return axes
        return (*axes[: -len(names[1:])], *names[1:]) if names[0] == ANY else tuple(names)


def parsed(text: str, *tags: str) -> tuple[Rule, ...]:
    """Read productions from text, parted by empty lines.

    The first line names one: ``name: takes -> gives; T = T + 1; if T > 1; odd``, all but name and
    ``takes`` left out where there is nothing to say. Lines ``a = ...`` and others say what
    ``__init__`` makes, ``| ...`` begins a variant of the code and ``. ...`` continues it.
    """
    return tuple(_parsed(part.split("\n"), tags) for part in text.strip().split("\n\n"))


def _parsed(lines: list[str], tags: tuple[str, ...]) -> Rule:
    head, *extras = lines[0].split("; ")
    name, _, form = head.partition(": ")
    takes, _, gives = form.partition(" -> ")
    parts, setup, code = {}, [], []
    for line in lines[1:]:
        letter, _, value = line.strip().partition(" = ")
        if line.startswith("  | "):
            code.append(line[4:])
        elif line.startswith("  . "):
            code[-1] += f"\n{line[4:]}"
        elif len(letter) == 1:
            parts[letter] = value
        else:
            setup.append(line.strip())
    when = [e.removeprefix("if ") for e in extras if e.startswith("if ")]
    becomes = dict(pair.split(" = ") for e in extras if " = " in e for pair in e.split(", "))
    words = {e for e in extras if e.isalpha()}
    return Rule(
        name,
        takes,
        tuple(code),
        gives,
        parts,
        tuple(setup),
        *(when or ["True"]),
        becomes,
        frozenset({*words, *tags}),
    )


def _matches(form: list[str], axes: tuple[str, ...]) -> bool:
    if form[0] == ANY:
        return len(form) == 1 or axes[-len(form[1:]) :] == tuple(form[1:])
    return tuple(form) == axes
