"""Samples that speak for the whole."""

from __future__ import annotations

from itertools import islice

import pytest

from pipeline.inputs.data.sampling import scattered, spread


def test_a_sample_is_evenly_spaced() -> None:
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread("abc", 5) == ["a", "b", "c"]
    assert spread([7, 8], None) == [7, 8]
    assert spread([], 3) == []


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64, 1000])
def test_all_come_once(count: int) -> None:
    assert sorted(scattered(count)) == list(range(count))


@pytest.mark.parametrize("taken", [4, 10, 85, 500])
def test_however_many_are_taken_they_lie_all_over(taken: int) -> None:
    """No stretch of the sequence has far more than its share."""
    found = list(islice(scattered(20_000), taken))
    for quarter in range(4):
        inside = sum(quarter * 5000 <= number < (quarter + 1) * 5000 for number in found)
        assert abs(inside - taken / 4) <= 3
