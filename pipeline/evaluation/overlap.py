"""How much of an answer stands word for word in what was trained on: learning by heart, seen in the text.

Counted in sequences of WORDS words without regard to capitals and punctuation, so that phrases which
everybody uses hardly count. Only hashes of the answers' sequences are kept in memory, at most MOST; training
rows pass by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

WORDS = 8
HIGH = 0.5  # share of an adapter's sequences, from which on it is named
APART = 0.3  # by which it is above the base's and the expected answers', which may be full of set phrases
LEAST = 20  # sequences of all answers together that say anything
LONGEST = 20_000  # letters of an answer, from its beginning
MOST = 900_000  # sequences: each side, and each answer of it, has its share, from its beginning
_WORD = re.compile(r"\w+")


class Overlap:
    """Answers by side, compared with texts as they are read."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._sequences = {
            side: [
                hash(found)
                for text in given
                for found in islice(sequences(text[:LONGEST]), MOST // (len(given) * len(texts)))
            ]
            for side, given in texts.items()
        }
        self._wanted = {one for given in self._sequences.values() for one in given}
        self._seen: set[int] = set()

    def read(self, texts: Iterable[str]) -> None:
        """Texts that were trained on."""
        for text in texts if self._wanted else ():
            self._seen.update(self._wanted.intersection(map(hash, sequences(text))))

    def shares(self) -> dict[str, float]:
        """The share of each side's sequences that was seen; without sides that have fewer than LEAST."""
        return {
            side: sum(one in self._seen for one in found) / len(found)
            for side, found in self._sequences.items()
            if len(found) >= LEAST
        }


def sequences(text: str) -> Iterable[tuple[str, ...]]:
    """Each WORDS words in a row of a text."""
    words = _WORD.findall(text.casefold())
    return zip(*(words[at:] for at in range(WORDS)), strict=False)


def by_heart(shares: Mapping[str, float]) -> str:
    """What is to be said of `Overlap.shares` of "adapter", "base" and "expected", or ""."""
    share = shares.get("adapter", 0.0)
    others = max(shares.get("base", 0.0), shares.get("expected", 0.0))
    if share < HIGH or share - others < APART:
        return ""
    return f"recites training rows: {100 * share:.0f} % of its answers stand there word for word"
