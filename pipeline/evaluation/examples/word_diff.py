"""What two texts have in common, word by word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

SAME, GONE, NEW = 0, 1, 2  # in both texts, in the first only, in the second only
MOST_PAIRS = 200_000  # of equal words, one of each text: what is compared grows with them
MOST_WORDS = 5_000  # of both texts together
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
    matched = SequenceMatcher(None, words, others, autojunk=False)
    for kind, start, end, other_start, other_end in matched.get_opcodes():
        if kind == "equal":
            _add(found, SAME, second[other_start:other_end])
        else:
            _add(found, GONE, first[start:end])
            _add(found, NEW, second[other_start:other_end])
    return found


def _add(found: list[Piece], kind: int, pieces: Sequence[str]) -> None:
    if pieces:
        found.append((kind, "".join(pieces)))
