"""Which rows are held out: chosen by what a row asks, so that identical prompts are on one side.

Of a conversation, what it begins with counts: one may be the beginning of another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import InputError
from pipeline.inputs.data.many.bits import Bits
from pipeline.inputs.data.many.grouped import Bucket, Grouped
from pipeline.inputs.data.telling import ended
from pipeline.inputs.prompts import conversations

T = TypeVar("T")
Steps = Generator[None, None, T]  # yields so that whoever wants to leave, or to tell how far it is, can
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
    """Hashes of the prompts and of the whole rows of a dataset: see `grouped` for the memory they take."""

    def __init__(self, fields: tuple[str, ...], optional: tuple[str, ...], seed: int) -> None:
        self._fields = fields
        self._optional = optional
        self._key = str(seed).encode()
        self._prompts = Grouped()
        self._rows = Grouped()
        self._first_prompts = self._prompts  # until a conversation has another one

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Mapping[str, Any], number: int | None = None) -> None:
        """The next row; it has all `fields`, the last of which is the response, or is a conversation.

        `number` is what it is called from then on: its position, or a higher one than any before.
        """
        number = len(self) if number is None else number
        is_chat = self._fields[-1] not in row
        digest = self._digest(prompt_texts(row, self._fields, self._optional))
        first = self._digest(conversations.opening_texts(row)) if is_chat else digest
        self._add_prompts(_number(digest), _number(first), number)
        _feed(digest, conversations.answer(row) if is_chat else str(row[self._fields[-1]]))
        self._rows.add(_number(digest), number)

    def _add_prompts(self, prompt: int, first: int, number: int) -> None:
        if first != prompt and self._first_prompts is self._prompts:
            self._first_prompts = Grouped()
            for key, before in _all(self._prompts):
                self._first_prompts.add(key, before)
        if self._first_prompts is not self._prompts:
            self._first_prompts.add(first, number)
        self._prompts.add(prompt, number)

    def _digest(self, texts: Iterable[str]) -> Any:
        digest = hashlib.blake2b(digest_size=8, key=self._key)
        for text in texts:
            _feed(digest, text)
        return digest

    def repeated_rows(self) -> Iterator[list[int]]:
        """The numbers of rows that an earlier one is equal to, some at a time."""
        return _repeats(self._rows)

    def repeated_prompts(self) -> Iterator[list[int]]:
        """The numbers of rows whose prompt an earlier one has, some at a time."""
        return _repeats(self._prompts)

    def equal_to(self, some: Container[int]) -> Iterator[list[int]]:
        """The numbers of all rows that are equal to one of these, itself included, some at a time."""
        for bucket in self._rows.buckets():
            wanted = {key for key, number in _pairs(bucket) if number in some}
            for entries in bucket() if wanted else ():
                yield [number for key, number in zip(*entries, strict=True) if key in wanted]

    def copies(self) -> tuple[int, int]:
        """How many rows repeat an earlier one, and how many more repeat an earlier one's prompt."""
        rows = sum(map(len, self.repeated_rows()))
        return rows, sum(map(len, self.repeated_prompts())) - rows

    def firsts(self) -> array[int]:
        """Positions of rows whose prompt no earlier one has."""
        return self._firsts(range(len(self)))

    def _firsts(self, among: Container[int]) -> array[int]:
        """The first of these positions with each prompt, ascending."""
        found = array("Q")
        for bucket in self._prompts.buckets():
            first: dict[int, int] = {}
            for prompt, position in _pairs(bucket):
                if position in among:
                    first.setdefault(prompt, position)
            found.extend(first.values())
        return array("Q", sorted(found))

    def parts(self, eval_fraction: float) -> Parts:
        """The split: the same for the same contents and seed, in whatever order the rows stand.

        Each side has at least one row, and the held-out one as near below the fraction as whole groups of
        identical prompts allow. Raises InputError if there are fewer than two rows.
        """
        ranks, held, by = ended(self._split(eval_fraction))
        held_out = array("Q", held.numbers())
        left = len(self) - len(held_out)
        validation = ended(_chosen(ranks, min(len(held_out), left - 1), left, held)) or Bits()
        train = array("Q", (position for position in range(len(self)) if position not in held))
        return Parts(train, held_out, self._firsts(held), array("Q", validation.numbers()), by)

    def held_out(self, eval_fraction: float) -> Steps[tuple[Bits, str]]:
        """The numbers of the rows that `parts` holds out, and by what, in a bit a row; yields now and then.

        Raises InputError if there are fewer than two rows.
        """
        _, held, by = yield from self._split(eval_fraction)
        return held, by

    def _split(self, eval_fraction: float) -> Steps[tuple[Grouped, Bits, str]]:
        count = len(self)
        if count < 2:
            raise InputError(too_few(count))
        wanted = min(max(round(count * eval_fraction), 1), count - 1)
        for by, ranks in ((PROMPTS, self._first_prompts), (TURNS, self._prompts), (ROWS, self._rows)):
            if (chosen := (yield from _chosen(ranks, wanted, count))) is not None:
                return ranks, chosen, by
        ranks = Grouped()
        for position, (_, number) in enumerate(_all(self._rows)):  # all are equal, so they stand in order
            ranks.add(self._rank(position), number)
        return ranks, (yield from _chosen(ranks, wanted, count)) or Bits(), POSITIONS

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


def _chosen(ranks: Grouped, wanted: int, count: int, but: Bits | None = None) -> Steps[Bits | None]:
    """The numbers of rows that are held out: those with the lowest ranks, but for ranks that too many share.

    If each is shared by more than are wanted, those with the one that the fewest share. None if there is only
    one. There are `count` rows without those in `but`, which are not looked at. Yields now and then.
    """
    chosen = Bits()
    taken = 0
    rarest: tuple[int, int, Bucket] | None = None
    for bucket in ranks.buckets():
        sizes: Counter[int] = Counter()
        for keys, numbers in bucket():
            pairs = zip(keys, numbers, strict=True)
            sizes.update(keys if but is None else [key for key, number in pairs if number not in but])
            yield
        picked = set()
        for rank, size in sorted(sizes.items()):
            if taken + size <= wanted:
                picked.add(rank)
                taken += size
            if rarest is None or size < rarest[0]:
                rarest = size, rank, bucket
        if picked:
            yield from _add(chosen, bucket, picked, but)
        if taken == wanted:
            break
    if not taken and rarest is not None and rarest[0] < count:
        yield from _add(chosen, rarest[2], {rarest[1]}, but)
    return chosen if chosen else None


def _add(chosen: Bits, bucket: Bucket, picked: set[int], but: Bits | None) -> Steps[None]:
    """Put the numbers of the rows with these ranks into `chosen`."""
    for entries in bucket():
        for key, number in zip(*entries, strict=True):
            if key in picked and (but is None or number not in but):
                chosen.add(number)
        yield


def _repeats(ranks: Grouped) -> Iterator[list[int]]:
    """The numbers of rows with a rank that one before has, some at a time."""
    for bucket in ranks.buckets():
        seen: set[int] = set()
        for entries in bucket():
            repeats = []
            for key, number in zip(*entries, strict=True):
                if key in seen:
                    repeats.append(number)
                else:
                    seen.add(key)
            yield repeats


def _all(ranks: Grouped) -> Iterator[tuple[int, int]]:
    """Ranks and numbers; those of equal ranks in the order in which they came."""
    return (pair for bucket in ranks.buckets() for pair in _pairs(bucket))


def _pairs(bucket: Bucket) -> Iterator[tuple[int, int]]:
    return (pair for entries in bucket() for pair in zip(*entries, strict=True))
