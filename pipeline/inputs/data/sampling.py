"""Samples of a sequence that speak for all of it: rows that stand together are often alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """`count` of the items, evenly spaced and in their order; all if there are fewer, or for None."""
    count = len(items) if count is None else min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def scattered(count: int) -> Iterator[int]:
    """The numbers from 0 to `count` - 1 so that however many are taken, they lie all over.

    In the order of their reversed bits (van der Corput's sequence).
    """
    bits = max(count - 1, 0).bit_length()
    for number in range(1 << bits):
        turned = int(f"{number:0{bits}b}"[::-1], 2) if bits else 0
        if turned < count:
            yield turned
