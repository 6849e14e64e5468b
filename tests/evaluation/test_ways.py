"""The way of quantizing that suits best, by paired tests."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.ways import Way, best

HARD = np.random.default_rng(0).normal(3.0, 1.0, 40)  # rows differ much more than ways do


def way(name: str, size: int, more: float, noise: float = 0.02, rows: int = 40) -> Way:
    random = np.random.default_rng([ord(letter) for letter in name])
    return Way(name, size, HARD[:rows], HARD[:rows] + more + random.normal(0, noise, rows))


def test_rows_tell_what_intervals_against_float_do_not() -> None:
    """Both are worse than float by about the same, on other rows: their intervals overlap; in pairs they
    don't."""
    shared = np.random.default_rng(9).normal(0.1, 0.1, 40)
    one = Way("awq", 90, HARD, HARD + shared)
    other = Way("rtn", 85, HARD, HARD + shared + 0.02 + way("rtn", 0, 0, 0.01).losses - HARD)
    found = best([other, one])
    assert (found.way, found.alike) == (one, [])
    assert found.words.endswith(")")
    assert "% more loss than float on your rows (" in found.words


def test_the_smallest_of_those_that_no_other_beats() -> None:
    ways = [way("rtn", 80, 0.3), way("gptq", 95, 0.1), way("awq", 90, 0.1)]
    found = best(ways)
    assert (found.way.name, [one.name for one in found.alike]) == ("awq", ["gptq"])
    assert best(ways[:1]).way.name == "rtn"


def test_one_that_is_beaten_is_not_the_best_though_the_least_loss_does_not_beat_it() -> None:
    """A noisy way has the least loss by chance and beats none; one with little noise beats the smallest."""
    noisy = way("gptq", 100, 0.1, 2.0)
    noisy = Way("gptq", 100, HARD, noisy.losses - noisy.losses.mean() + HARD.mean() + 0.05)
    found = best([way("rtn", 80, 0.2), way("awq", 90, 0.1), noisy])
    assert (found.way.name, [one.name for one in found.alike]) == ("awq", ["gptq"])


def test_few_rows_tell_no_way_from_another() -> None:
    found = best([way("rtn", 80, 0.3, rows=9), way("awq", 90, 0.1, rows=9)])
    assert (found.way.name, [one.name for one in found.alike]) == ("rtn", ["awq"])
    assert found.words.startswith("no measurable difference from float on your 9 rows")


def test_equal_ways_are_rarely_told_apart_however_many_there_are() -> None:
    """Five ways are ten pairs; each alone would be told apart 4 % of the time."""
    false = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        ways = [Way(str(n), 80 + n, HARD, HARD + random.normal(0.1, 0.1, 40)) for n in range(5)]
        false += len(best(ways).alike) < 4
    assert false <= 0.1 * 60


def test_ways_on_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="figures"):
        best([way("rtn", 80, 0.3), way("awq", 90, 0.1, rows=20)])
