"""thinning: a sample that is spread, whatever there is."""

from __future__ import annotations

from pipeline.inputs.data.card.thinning import Thinned


def sample(rows: int, most: int) -> tuple[list[int], Thinned]:
    """What is kept of so many rows."""
    thinned, kept = Thinned(most), list[int]()
    for row in range(rows):
        if thinned.takes(row):
            kept.append(row)
        while thinned.is_full:
            kept = [row for row in kept if thinned.keeps(row)]
            thinned.count = len(kept)
    return kept, thinned


def test_all_are_taken_as_long_as_there_is_room() -> None:
    kept, thinned = sample(100, 100)
    assert kept == list(range(100))
    assert thinned.is_all


def test_of_more_a_spread_part_is_kept() -> None:
    kept, thinned = sample(100_000, 1000)
    assert not thinned.is_all
    assert 500 <= len(kept) <= 1000
    tenths = [sum(row // 10_000 == tenth for row in kept) for tenth in range(10)]
    assert max(tenths) - min(tenths) <= 2
    assert {row % 2 for row in kept} == {0, 1}
    assert kept == sample(100_000, 1000)[0]
