"""Rows by a hash of theirs, to find those with the same one: few at a time are in memory, the rest on disk.

They are written in runs, each sorted by the hash's first byte. What is made of one bucket at a time, the rows
with the same first byte, takes a 256th of the room, or none: rows with equal hashes come in pieces.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from pipeline.inputs.data.many.scratch import Scratch

IN_MEMORY = 1 << 14  # rows
BUCKETS = 256
_ENTRY = 16  # bytes
Entries = tuple[Sequence[int], Sequence[int]]  # hashes, and the numbers of their rows
Bucket = Callable[[], Iterator[Entries]]


class Grouped:
    """Pairs of a hash of 64 bits and the number of a row, below 2**64."""

    def __init__(self) -> None:
        self._last = array("Q")  # hash, number, hash, number…
        self._runs: list[tuple[int, array[int]]] = []  # where one begins, and each bucket in it
        self._scratch = Scratch()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: int, number: int) -> None:
        """Add a row; of equal hashes those come first that were added first. Raises LabError, OSError."""
        self._last.append(key)
        self._last.append(number)
        self._count += 1
        if len(self._last) == 2 * IN_MEMORY:
            self._write()

    def buckets(self) -> Iterator[Bucket]:
        """The rows, those with the lowest hashes first; each bucket can be read again. Raises OSError."""
        if not self._runs:
            for bucket in _buckets(self._last):
                yield lambda bucket=bucket: iter([_entries(bucket)])  # type: ignore[misc]
            return
        if self._last:
            self._write()
        for number in range(BUCKETS):
            yield lambda number=number: self._read(number)  # type: ignore[misc]

    def _write(self) -> None:
        buckets = _buckets(self._last)
        starts = array("I", accumulate((len(bucket) // 2 for bucket in buckets), initial=0))
        self._runs.append((self._scratch.write(b"".join(map(bytes, buckets))), starts))
        self._last = array("Q")

    def _read(self, bucket: int) -> Iterator[Entries]:
        for begins, starts in self._runs:
            first, end = starts[bucket], starts[bucket + 1]
            if first < end:
                data = self._scratch.read(begins + _ENTRY * first, _ENTRY * (end - first))
                yield _entries(array("Q", data))


def _buckets(pairs: array[int]) -> list[array[int]]:
    """Pairs by the first byte of their hash, the lowest first."""
    buckets = [array("Q") for _ in range(BUCKETS)]
    each = iter(pairs)
    for key, number in zip(each, each, strict=True):
        bucket = buckets[key >> 56]
        bucket.append(key)
        bucket.append(number)
    return buckets


def _entries(pairs: array[int]) -> Entries:
    return pairs[::2], pairs[1::2]
