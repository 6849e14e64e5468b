"""Which rows are held out: chosen by what a row asks, so that identical prompts are on one side.

Of a conversation, what it begins with counts: one may be the beginning of another.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.inputs.prompts import conversations

PROMPTS, TURNS, ROWS, POSITIONS = "prompts", "turns", "rows", "positions"


@dataclass(frozen=True)
class Parts:
    """Positions of rows, counted from 0 and ascending; `by` says what is never on both sides.

    asked       the held-out rows to ask: of those with the same prompt the first one
    validation  those of `train` that choose between adapters where a training looks at rows for that, about
                as many as are held out; none if that would leave nothing to learn
    by          "prompts" as a rule; "turns" where all conversations begin with one prompt and only their
                later turns differ; "rows" where there is only one prompt; "positions" where all are equal
    """

    train: Sequence[int]
    held_out: Sequence[int]
    asked: Sequence[int]
    validation: Sequence[int]
    by: str


class Contents:
    """Hashes of the prompts and of the whole rows of a dataset: 16 bytes a row, 24 with conversations."""

    def __init__(self, fields: tuple[str, ...], optional: tuple[str, ...], seed: int) -> None:
        self._fields = fields
        self._optional = optional
        self._key = str(seed).encode()
        self._prompts = array("Q")
        self._rows = array("Q")
        self._first_prompts = self._prompts  # until a conversation has another one

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """The next row; it has all `fields`, the last of which is the response, or is a conversation."""
        is_chat = self._fields[-1] not in row
        digest = self._digest(prompt_texts(row, self._fields, self._optional))
        first = self._digest(conversations.opening_texts(row)) if is_chat else digest
        self._add_prompts(_number(digest), _number(first))
        _feed(digest, conversations.answer(row) if is_chat else str(row[self._fields[-1]]))
        self._rows.append(_number(digest))

    def _add_prompts(self, prompt: int, first: int) -> None:
        if first != prompt and self._first_prompts is self._prompts:
            self._first_prompts = array("Q", self._prompts)
        if self._first_prompts is not self._prompts:
            self._first_prompts.append(first)
        self._prompts.append(prompt)

    def _digest(self, texts: Iterable[str]) -> Any:
        digest = hashlib.blake2b(digest_size=8, key=self._key)
        for text in texts:
            _feed(digest, text)
        return digest

    def hashes(self) -> tuple[array[int], array[int]]:
        """Those of the prompts and those of the whole rows, by position."""
        return self._prompts, self._rows

    def copies(self) -> tuple[int, int]:
        """How many rows repeat an earlier one, and how many more repeat an earlier one's prompt."""
        rows = len(self) - _distinct(self._rows)
        return rows, len(self) - _distinct(self._prompts) - rows

    def firsts(self) -> array[int]:
        """Positions of rows whose prompt no earlier one has."""
        found: dict[int, int] = {}
        for position, prompt in enumerate(self._prompts):
            found.setdefault(prompt, position)
        return array("Q", found.values())

    def parts(self, eval_fraction: float) -> Parts:
        """The split: the same for the same contents and seed, in whatever order the rows stand.

        Each side has at least one row, and the held-out one as near below the fraction as whole groups of
        identical prompts allow. Raises InputError if there are fewer than two rows.
        """
        count = len(self)
        if count < 2:
            raise InputError(too_few(count))
        wanted = min(max(round(count * eval_fraction), 1), count - 1)
        for by, ranks in ((PROMPTS, self._first_prompts), (TURNS, self._prompts), (ROWS, self._rows)):
            if (chosen := _chosen(ranks, wanted)) is not None:
                return self._parts(ranks, chosen, by)
        ranks = array("Q", (self._rank(position) for position in range(count)))
        return self._parts(ranks, _chosen(ranks, wanted) or array("Q"), POSITIONS)

    def _parts(self, ranks: array[int], chosen: array[int], by: str) -> Parts:
        train, held_out = array("Q"), array("Q")
        first: dict[int, int] = {}
        for position, rank in enumerate(ranks):
            at = bisect_left(chosen, rank)
            if at < len(chosen) and chosen[at] == rank:
                held_out.append(position)
                first.setdefault(self._prompts[position], position)
            else:
                train.append(position)
        validation = _next(ranks, train, len(held_out))
        return Parts(train, held_out, array("Q", first.values()), validation, by)

    def _rank(self, position: int) -> int:
        return _number(hashlib.blake2b(str(position).encode(), digest_size=8, key=self._key))


def prompt_texts(row: Mapping[str, Any], fields: Sequence[str], optional: Sequence[str]) -> list[str]:
    """What a row asks, as texts that are equal for equal prompts; of a conversation all but the answer."""
    if fields[-1] not in row and conversations.is_one(row):
        return conversations.prompt_texts(row)
    return [*(str(row.get(name) or "") for name in optional), *(str(row[name]) for name in fields[:-1])]


def too_few(count: int) -> str:
    """Why so many rows cannot be split."""
    return f"the data has {count} row{'s' * (count != 1)}; at least 2 are needed, one to learn, one to test"


def _number(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big")


def _feed(digest: Any, text: str) -> None:
    """With its length before it, so that no two lists of texts are fed alike."""
    data = text.encode("utf-8", "surrogatepass")
    digest.update(len(data).to_bytes(8, "big"))
    digest.update(data)


def _chosen(ranks: array[int], wanted: int) -> array[int] | None:
    """The ranks that are held out, ascending: the lowest, but for those that too many rows share.

    If each is shared by more than are wanted, the one that the fewest share. None if there is only one.
    """
    chosen = array("Q")
    taken = 0
    rarest: tuple[int, int] | None = None
    for bucket in _buckets(ranks):
        for rank, size in sorted(Counter(bucket).items()):
            if taken + size <= wanted:
                chosen.append(rank)
                taken += size
            if rarest is None or size < rarest[0]:
                rarest = size, rank
        if taken == wanted:
            break
    if not chosen and rarest is not None and rarest[0] < len(ranks):
        return array("Q", [rarest[1]])
    return chosen or None


def _next(ranks: array[int], train: array[int], wanted: int) -> array[int]:
    """Positions of about so many of the training rows, in whole groups; none if no other would be left."""
    left = array("Q", (ranks[position] for position in train))
    chosen = set(_chosen(left, min(wanted, len(left) - 1)) or ())
    return array("Q", (position for position in train if ranks[position] in chosen))


def _distinct(ranks: array[int]) -> int:
    return sum(len(set(bucket)) for bucket in _buckets(ranks))


def _buckets(ranks: array[int]) -> list[array[int]]:
    """Ranks by their first byte, the lowest first: what is made of one bucket at a time takes little room."""
    buckets = [array("Q") for _ in range(256)]
    for rank in ranks:
        buckets[rank >> 56].append(rank)
    return buckets
