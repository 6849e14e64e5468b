"""thinning: a sample that is spread, whatever there is."""

from __future__ import annotations

from pipeline.inputs.data.card.thinning import Thinned


def sample(rows: int, most: int, *known: int) -> tuple[list[int], Thinned]:
    """What is kept of so many rows."""
    thinned, kept = Thinned(most, *known), list[int]()
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


def test_where_it_is_known_how_many_come_nothing_is_taken_and_let_go() -> None:
    kept, thinned = sample(100_000, 1000, 100_000, 250)
    assert 245 <= len(kept) <= 255
    assert 245 <= thinned.count <= 255
    assert not thinned.is_all
    tenths = [sum(row // 10_000 == tenth for row in kept) for tenth in range(10)]
    assert max(tenths) - min(tenths) <= 2
    assert 930 <= len(sample(100_000, 1000, 100_000)[0]) <= 945
    assert sample(1000, 1000, 1000, 250)[1].is_all
    assert len(sample(100_000, 1000, 5_000)[0]) <= 1000, "more come than was said"
