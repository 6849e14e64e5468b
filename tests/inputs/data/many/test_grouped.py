"""grouped: the same rows, in memory or on disk; and a list that continues on disk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.inputs.data.many import grouped, listed
from pipeline.inputs.data.many.grouped import Grouped


def in_order(found: Grouped) -> list[tuple[int, int]]:
    """The rows by their hash, as their buckets have them."""
    pairs = []
    for bucket in found.buckets():
        inside = [pair for entries in bucket() for pair in zip(*entries, strict=True)]
        assert inside == [pair for entries in bucket() for pair in zip(*entries, strict=True)], "read again"
        pairs += sorted(inside, key=lambda pair: pair[0])  # those of equal hashes stay as they are
    assert len(pairs) == len(found)
    return pairs


def test_rows_come_bucket_by_bucket_wherever_they_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(exist_ok=True)
    before = list(home.iterdir())
    monkeypatch.setattr(grouped, "IN_MEMORY", 8)
    dice = random.Random(0)
    hashes = [dice.choice([dice.randrange(1 << 64), 7, (1 << 64) - 1]) for _ in range(100)]
    found = Grouped()
    for number, key in enumerate(hashes):
        found.add(key, number)
        if number in (3, 70, 99):
            assert in_order(found) == sorted((key, number) for number, key in enumerate(hashes[: number + 1]))
    assert list(home.iterdir()) == before, "the file has no name"


def test_a_list_continues_on_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "PIECE", 8)
    found = listed.Listed("H")
    for number in range(21):
        found.append(number)
        assert list(found) == list(range(number + 1))
    assert [len(piece) for piece in found.pieces()] == [8, 8, 5]
    assert len(found) == 21
