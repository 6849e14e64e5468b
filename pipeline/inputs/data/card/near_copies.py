"""Rows that are nearly the same, by MinHash: signatures of rensa, compared within bands of them.

A row is the set of all LETTERS letters in sequence in its normalized text, of which the first SEARCHED are
looked at. Two rows are near if the sets have about NEAR of all in common. Rows of one band are sorted, and
each is compared with the first, with the first that is trained on and with the one before it: that is linear,
where all pairs of 100,000 equal rows would be five thousand million. Above MOST_ROWS it is a sample.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.inputs.data.card.thinning import Thinned

if TYPE_CHECKING:
    import numpy as np

    from pipeline.inputs.data.many.bits import Bits

    Truths = np.ndarray[Any, Any] | Bits

SEARCHED = 4000  # letters of a row
LETTERS = 5
NEAR = 0.8
BANDS, IN_BAND = 21, 6  # rows with 80 % in common share a band in 998 of 1,000 cases
SLOTS = BANDS * IN_BAND
SEED = 1
MOST_ROWS = 100_000
BATCH = 1_000_000  # letters
AT_ONCE = 50_000  # pairs
_BETWEEN = re.compile(r"[\W_]+")


class Near:
    """Collects rows, in ascending order; `pairs` says which of them are near.

    `coming` is about how many there will be, 0 if nobody knows.
    """

    def __init__(self, coming: int = 0) -> None:
        self.kept = Thinned(MOST_ROWS, coming)
        self._rows: list[np.ndarray[Any, Any]] = []
        self._signatures: list[np.ndarray[Any, Any]] = []
        self._batch: list[str] = []
        self._numbers = array("Q")
        self._letters = 0

    def add(self, row: int, text: str) -> None:
        """The row of that number, if it is in the sample."""
        if not self.kept.takes(row):
            return
        plain = _hashed(text)
        self._batch.append(plain)
        self._numbers.append(row)
        self._letters += len(plain)
        if self._letters >= BATCH:
            self._sign()
        if self.kept.is_full:
            self._sign()
            self._thin()

    def pairs(self, trained: Truths) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """`comparing` to its end."""
        steps = self.comparing(trained)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] = end.value
                return found

    def comparing(
        self, trained: Truths
    ) -> Generator[float, None, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """The rows near an earlier one, and those not trained on that are near one that is; ascending.

        `trained` says it by row, as truths or as a set. Yields how much of it is done, as a share.
        """
        import numpy as np

        self._sign()
        if not self._rows:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        rows = np.concatenate(self._rows)
        signatures = np.concatenate(self._signatures)
        near, leaks = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        learnt = trained[rows]
        for done, (one, other) in enumerate(_candidates(signatures, learnt)):
            yield done / (3 * BANDS)
            for start in range(0, len(one), AT_ONCE):
                first, second = one[start : start + AT_ONCE], other[start : start + AT_ONCE]
                alike = (signatures[first] == signatures[second]).mean(1) >= NEAR
                first, second = first[alike], second[alike]
                near[np.maximum(first, second)] = True
                apart = learnt[first] != learnt[second]
                leaks[np.where(learnt[first], second, first)[apart]] = True
        return rows[near], rows[leaks]

    def _sign(self) -> None:
        """Make signatures of what is collected."""
        if not self._batch:
            return
        import numpy as np
        from rensa import RMinHash

        flat, offsets = _hashes(self._batch)
        made = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, SLOTS, SEED)
        self._signatures.append(np.array(made.to_rows(), np.uint32))
        self._rows.append(np.array(self._numbers, np.int64))
        self._batch, self._numbers, self._letters = [], array("Q"), 0

    def _thin(self) -> None:
        """Keep a part of the rows, so that there is room for others."""
        import numpy as np

        rows, signatures = np.concatenate(self._rows), np.concatenate(self._signatures)
        kept = np.array(
            [number for number, row in enumerate(rows.tolist()) if self.kept.keeps(row)], np.int64
        )
        self._rows, self._signatures = [rows[kept]], [signatures[kept]]
        self.kept.count = len(kept)


def normalized(text: str) -> str:
    """A text without what makes no difference: capital letters, punctuation, the width of spaces."""
    return _BETWEEN.sub(" ", text[:SEARCHED].casefold()).strip()


def _hashed(text: str) -> str:
    """As much of a text as is hashed, LETTERS letters or more."""
    return (normalized(text) or text[:SEARCHED].strip()).ljust(LETTERS)  # emoji, say, are all that is there


def _hashes(texts: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A 64-bit number for each LETTERS letters that follow each other in one of some texts, which are as
    `_hashed` gives them; and where those of each text begin, and of the last one end."""
    import numpy as np

    data = "".join(texts).encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(data, "<u4").astype(np.uint64)
    count = len(letters) - LETTERS + 1
    found = np.zeros(count, np.uint64)
    for at in range(LETTERS):
        found = (found ^ letters[at : at + count]) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    sizes = np.array([len(text) for text in texts], np.int64)
    inside = np.ones(count, bool)
    ends = np.cumsum(sizes)[:-1]
    for before in range(1, LETTERS):  # those that reach into the next text
        inside[ends - before] = False
    return found[inside], np.concatenate([[0], np.cumsum(sizes - LETTERS + 1)]).astype(np.uint64)


def _candidates(
    signatures: np.ndarray[Any, Any], learnt: np.ndarray[Any, Any]
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Pairs of rows that may be near, three lists for each band."""
    import numpy as np

    keys = np.zeros((BANDS, len(signatures)), np.uint64)
    for band in range(BANDS):
        for slot in range(band * IN_BAND, (band + 1) * IN_BAND):
            keys[band] = (keys[band] ^ signatures[:, slot]) * np.uint64(0x9E3779B97F4A7C15)
            keys[band] ^= keys[band] >> np.uint64(29)
    for band in range(BANDS):
        order = np.lexsort((np.arange(len(signatures)), keys[(band + 1) % BANDS], keys[band]))
        begins = np.ones(len(order), bool)
        begins[1:] = keys[band][order][1:] != keys[band][order][:-1]
        group = np.cumsum(begins) - 1
        first = order[begins][group]
        before = np.concatenate([order[:1], order[:-1]])
        before[begins] = order[begins]
        lowest = np.full(group[-1] + 1, len(order), np.int64)  # the first in its group that is trained on
        np.minimum.at(lowest, group[learnt[order]], order[learnt[order]])
        taught = lowest[group]
        taught = np.where(taught < len(order), taught, order)
        for other in (first, before, taught):
            differs = other != order
            yield order[differs], other[differs]
