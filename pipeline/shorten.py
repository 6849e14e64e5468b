"""What somebody gave, as it stands in a message: short, on one line, never built whole before it is cut."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

LONGEST = 80  # characters of a value
LONGEST_TEXT = 300  # of a name, a path or what a library says
MOST_NAMED = 10


class _Repr(reprlib.Repr):
    """Cuts before it writes: a list that stands for a billion others costs no more than a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 4
        self.maxstring = self.maxother = LONGEST

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write the longest ones."""
        return f"a number of {x.bit_length():,} bits" if x.bit_length() > 10_000 else repr(x)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """In its own order: sorting looks at all of it."""
        if level <= 0 and x:
            return "{...}"
        pairs = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), 4)]
        return f"{{{', '.join([*pairs, *(['...'] if len(x) > 4 else [])])}}}"

    def repr_set(self, x: set[Any], level: int) -> str:
        return f"a set of {len(x):,}"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:LONGEST])


_repr = _Repr()


def value(given: Any) -> str:
    """A value as Python writes it, at most `LONGEST` characters."""
    return cut(_repr.repr(given), LONGEST)


def text(given: Any, most: int = LONGEST_TEXT) -> str:
    """A name, a path or a message, without line breaks and what else no terminal should be given."""
    if not isinstance(given, str):
        return value(given)
    return cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in given[: most + 1]), most)


def names(given: Iterable[Any]) -> str:
    """Some names with commas between them, and how many more there are."""
    every = list(given)
    more = [f"{len(every) - MOST_NAMED:,} more"] if len(every) > MOST_NAMED else []
    return ", ".join([*(text(name, LONGEST) for name in every[:MOST_NAMED]), *more])


def cut(text: str, most: int) -> str:
    """A text, its end left out where it is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
