"""What two texts have in common, word by word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Sequence
from difflib import Match, SequenceMatcher
from itertools import accumulate

SAME, GONE, NEW = 0, 1, 2  # in both texts, in the first only, in the second only
MOST_PAIRS = 200_000  # of equal words, one of each text: what is compared grows with them
MOST_WORDS = 5_000  # of both texts together
MOST_STEPS = 2_000_000  # looks at such a pair; it takes half a second at most
_PIECE = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")

Piece = tuple[int, str]


def difference(one: str, other: str) -> list[Piece] | None:
    """Pieces that make up both texts, in their order; None if they are too long to be compared."""
    first, second = _PIECE.findall(one), _PIECE.findall(other)
    if len(first) + len(second) > MOST_WORDS:
        return None
    words, others = ([piece.strip() for piece in pieces] for pieces in (first, second))
    often = Counter(others)
    if sum(count * often[word] for word, count in Counter(words).items()) > MOST_PAIRS:
        return None
    found: list[Piece] = []
    try:
        changes = _Bounded(words, others).get_opcodes()
    except _TooMuch:
        return None
    for kind, start, end, other_start, other_end in changes:
        if kind == "equal":
            _add(found, SAME, second[other_start:other_end])
        else:
            _add(found, GONE, first[start:end])
            _add(found, NEW, second[other_start:other_end])
    return found


def asked(texts: Sequence[str]) -> Generator[str, None, list[list[Piece] | None]]:
    """`difference` of each text to the first one, as a process is asked for it."""
    yield "Marking differences…"
    return [difference(texts[0], other) for other in texts[1:]]


class _TooMuch(Exception):
    """Two texts that would take too long."""


class _Bounded(SequenceMatcher[str]):
    """Gives up after MOST_STEPS: it looks at pairs of equal words again for each match that it finds."""

    def __init__(self, words: list[str], others: list[str]) -> None:
        super().__init__(None, words, others, autojunk=False)
        often = Counter(others)
        self._pairs = [0, *accumulate(1 + often[word] for word in words)]
        self._left = MOST_STEPS

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> Match:
        """As in difflib. Raises _TooMuch."""
        self._left -= self._pairs[-1 if ahi is None else ahi] - self._pairs[alo]
        if self._left < 0:
            raise _TooMuch
        return super().find_longest_match(alo, ahi, blo, bhi)


def _add(found: list[Piece], kind: int, pieces: Sequence[str]) -> None:
    if pieces:
        found.append((kind, "".join(pieces)))
