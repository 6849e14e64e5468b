"""Statistics of pairs, against scipy's and against counting by hand."""

from __future__ import annotations

import math
import tracemalloc
from itertools import product

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation import paired


def drawn(rows: int, seed: int = 0, mean: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, rows)


def test_an_interval_is_the_same_each_time_and_near_students_for_many_rows() -> None:
    values = drawn(400)
    low, high = paired.interval(values)
    assert paired.interval(list(values)) == (low, high)
    exact = stats.ttest_1samp(values, 0).confidence_interval()
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.02)
    wide = paired.interval(values, 0.99)
    assert wide[0] < low < high < wide[1]


def test_a_skewed_sample_has_a_skewed_interval() -> None:
    """Which is what the studentized bootstrap is for: the long tail may lie where no row happened to be."""
    values = np.exp(1.2 * drawn(14, mean=0))
    low, high = paired.interval(values)
    assert high - values.mean() > 1.5 * (values.mean() - low)


def test_more_rows_than_are_drawn_at_a_time_have_an_interval_too() -> None:
    values = drawn(1000)
    exact = stats.ttest_1samp(values, 0).confidence_interval()
    assert paired.interval(values) == pytest.approx((exact.low, exact.high), abs=0.01)
    assert paired.permutation_test(values) == 1 / (paired.FLIPS + 1)


@pytest.mark.parametrize("values", [[0.5] * 12, [-2.0] * 12])
def test_equal_differences_are_certain(values: list[float]) -> None:
    assert paired.interval(values) == (values[0], values[0])
    assert paired.permutation_test(values) == paired.sign_test(values) == 2 / 2**12


def test_far_rows_to_both_sides_have_no_narrower_interval_than_students() -> None:
    """There the bootstrap alone holds the mean less often than it says: 0.87 with 40 rows."""
    for seed in range(20):
        values = drawn(40, seed) * np.where(drawn(40, seed + 100, 0) > 1.28, 10, 1)
        low, high = paired.interval(values)
        exact = stats.ttest_1samp(values, 0)
        student = exact.confidence_interval()
        assert low <= student.low + 1e-9
        assert high >= student.high - 1e-9
        assert paired.studentized(values).chance >= exact.pvalue - 1e-9


@pytest.mark.parametrize("rows", [14, 60, 700])
def test_a_share_is_in_its_interval_where_no_difference_from_it_shows(rows: int) -> None:
    """Fieller's method, by its definition: 0 is at the end of the interval of other - (1 + share) base."""
    random = np.random.default_rng(rows)
    base = np.exp(0.5 * random.normal(size=rows))
    other = 0.6 * base * np.exp(0.3 * random.normal(size=rows))
    found = paired.share_interval(base, other)
    assert found is not None
    assert found[0] < other.mean() / base.mean() - 1 < found[1]
    assert paired.share_interval(base, other) == found
    for end, share in enumerate(found):
        assert paired.interval(other - (1 + share) * base)[end] == pytest.approx(0, abs=1e-6)


def test_shares_at_the_edges() -> None:
    ones = np.ones(14)
    assert paired.share_interval(ones, 0.5 * ones) == (-0.5, -0.5)
    assert paired.share_interval(0 * ones, ones) is None
    assert paired.share_interval([0.0] * 13 + [1.0], np.linspace(1, 2, 14)) is None, "the base may be nothing"
    low, high = paired.share_interval(4 * ones, [0.0] * 13 + [1.0]) or (0, 0)
    assert (low, high < -0.5) == (-1, True), "no loss is less than none"
    many = np.exp(np.random.default_rng(1).normal(size=(2, 60_000)))
    low, high = paired.share_interval(many[0], 0.5 * many[1]) or (0, 0)
    assert -0.53 < low < -0.5 < high < -0.47 or -0.53 < low < high < -0.47


def test_nearly_equal_resamples_leave_the_interval_finite() -> None:
    low, high = paired.interval([0.0] * 13 + [1.0])
    assert -1 < low < 1 / 14 < high < 5


def test_the_sign_test_counts_rows_that_differ() -> None:
    assert paired.sign_test([1.0] * 12 + [-1.0] * 2 + [0.0] * 5) == pytest.approx(0.01294, abs=1e-5)
    assert paired.sign_test([0.0] * 14) == 1.0


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_all_swaps_are_tried_of_few_rows(rows: int) -> None:
    values = drawn(rows, seed=rows)
    reached = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) >= abs(sum(values)) - 1e-9
        for signs in product((1, -1), repeat=rows)
    ]
    assert paired.permutation_test(values) == sum(reached) / len(reached)


@pytest.mark.parametrize("rows", [12, paired.ALL_FLIPS + 1, 60])
def test_the_permutation_test_is_scipys(rows: int) -> None:
    values = drawn(rows, seed=3)
    by_scipy = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9999, random_state=1, vectorized=True
    )
    assert paired.permutation_test(values) == pytest.approx(by_scipy.pvalue, abs=0.015)


def test_equal_rows_and_rounding_do_not_change_the_permutation_test() -> None:
    values = [0.1, 0.2, 0.3, -0.3, -0.2, 0.7]
    assert paired.permutation_test(values) == paired.permutation_test([*values, 0.0, 0.0])
    assert paired.permutation_test([0.1] * 3 + [-0.1] * 3) == 1.0
    assert paired.permutation_test([0.0] * 5) == 1.0


def test_several_chances_are_raised() -> None:
    assert paired.holm({"a": 0.03, "b": 0.01, "c": 0.5}) == {
        "a": pytest.approx(0.06),
        "b": pytest.approx(0.03),
        "c": 0.5,
    }
    assert paired.holm({"a": 0.02, "b": 0.021}) == {"a": pytest.approx(0.04), "b": pytest.approx(0.04)}
    assert paired.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert paired.holm({}) == {}


def test_rows_needed_follow_from_spread_and_mean() -> None:
    assert paired.rows_needed([1.0, 3.0]) == pytest.approx((2.8016 * math.sqrt(2) / 2) ** 2, rel=1e-3)
    assert paired.rows_needed([1.0, -1.0]) == math.inf


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_what_is_no_sample_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"differences"):
        paired.interval(values)


def test_of_very_many_rows_groups_are_drawn() -> None:
    """The same interval within what its ends vary by, in the memory of its draws, and in seconds."""
    values = np.random.default_rng(3).normal(0.004, 1.0, 100_001)
    exact = stats.ttest_1samp(values, 0)
    interval = exact.confidence_interval()
    tracemalloc.start()
    found = paired.interval(values)
    chance = paired.permutation_test(values)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == pytest.approx((interval.low, interval.high), abs=4e-4)
    assert chance == pytest.approx(exact.pvalue, abs=0.01)
    assert taken < 200_000_000


def test_groups_keep_what_few_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of unequal size, here one and two rows, shift nothing."""
    monkeypatch.setattr(paired, "MOST_DRAWN", 300)
    values = drawn(450, mean=5.0)
    exact = stats.ttest_1samp(values, 0).confidence_interval()
    assert paired.interval(values) == pytest.approx((exact.low, exact.high), abs=0.02)
    held = 0
    for seed in range(60):
        low, high = paired.interval(np.exp(0.8 * drawn(600, seed, 0.0)) - math.exp(0.32))
        held += low <= 0 <= high
    assert held / 60 >= 0.88
