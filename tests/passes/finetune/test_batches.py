"""Which rows of a step are whose."""

from __future__ import annotations

import pytest

from pipeline.passes.finetune.batches import LikeLengths, Shares, share

pytestmark = pytest.mark.chain
LENGTHS = [(i * 37) % 101 + 1 for i in range(45)]


@pytest.mark.parametrize(("ranks", "size", "accumulation"), [(2, 4, 1), (2, 3, 4), (3, 4, 2), (4, 2, 1)])
def test_ranks_together_have_the_rows_of_each_step_and_as_many_batches(
    ranks: int, size: int, accumulation: int
) -> None:
    alone = LikeLengths(LENGTHS, size, seed=3)
    order = list(alone)
    parts = [list(Shares(alone, accumulation, rank, ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(Shares(alone, accumulation, 0, ranks))} == {-(-45 // size)}
    for step, start in enumerate(range(0, len(order), size * accumulation)):
        at = slice(step * accumulation, (step + 1) * accumulation)
        mine = [[row for batch in part[at] for row in batch] for part in parts]
        assert sorted(row for rows in mine for row in rows) == sorted(
            order[start : start + size * accumulation]
        )
        counts = [len(rows) for rows in mine]
        assert max(counts) - min(counts) <= 1
    assert max(len(batch) for part in parts for batch in part) <= size


def test_long_rows_are_shared_there_and_back() -> None:
    lengths = [80, 70, 60, 50, 40, 30]
    assert share([5, 0, 3, 1, 4, 2], lengths, 0, 2) == [0, 3, 4]
    assert share([5, 0, 3, 1, 4, 2], lengths, 1, 2) == [1, 2, 5]
    assert share([7], [0] * 8, 1, 2) == []


def test_another_epoch_has_other_batches() -> None:
    shares = Shares(LikeLengths(LENGTHS, 4, seed=0), 1, 1, 2)
    first = list(shares)
    assert list(shares) == first
    shares.set_epoch(1)
    assert list(shares) != first
