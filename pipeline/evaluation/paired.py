"""Statistics of paired differences: each row is measured on both sides, and rows are the sample.

All are deterministic: what is drawn by lot comes from a fixed seed, so the same differences give the same
figures. Differences are finite numbers, float64 [rows], of any unit.

What is drawn takes time and memory for each row. Of more than MOST_DRAWN rows, groups of rows are drawn,
which is a few seconds for a million: their sums are as independent as the rows are, and nearer to normal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
Kind = Literal["resamples", "flips"]
Name = TypeVar("Name", bound=Hashable)

SEED = 20_261
RESAMPLES = 4_000  # of the bootstrap
FLIPS = 10_000  # of the permutation test, where not all are tried
ALL_FLIPS = 16  # rows up to which all are: 32,768 without their mirror images
CELLS = 4_000_000  # numbers drawn at a time: 32 MB
MOST_DRAWN = 10_000  # rows, or groups of rows
KEPT_ROWS = 500  # up to which the draws are kept for the next differences of as many rows
LEAST_ERROR = 0.1  # of a resample's standard error, as a share of the rows' own
SAME = 1e-12  # sums that differ by less than this share are equal
DOUBLED = 12  # times that the end of a ratio's interval is looked for twice as far away


@dataclass(frozen=True)
class Studentized:
    """A mean with the distribution that its studentized bootstrap has around it: `drawn` are the differences
    of resampled means from it, each in units of its own standard error times √rows, as `spread` is of the
    mean itself. `rows` were drawn at a time.

    Of differences that are far to both sides the bootstrap is too certain, of those that are far to one side
    Student's t is: what is said here is what both agree to.
    """

    mean: float
    spread: float
    drawn: Floats
    rows: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """A confidence interval for the mean: each end is the farther of the bootstrap's and Student's."""
        if not len(self.drawn):
            return self.mean, self.mean
        low, high = np.quantile(self.drawn, [(1 - level) / 2, (1 + level) / 2])
        student = float(special.stdtrit(self.rows - 1, (1 + level) / 2)) / math.sqrt(self.rows)
        farthest = min(float(low), -student), max(float(high), student)
        return self.mean - farthest[1] * self.spread, self.mean - farthest[0] * self.spread

    @property
    def chance(self) -> float:
        """How likely a mean as far from 0 is where it is 0: the widest interval without 0 has about a level
        of 1 less this. Two-sided."""
        if not len(self.drawn):
            return float(self.mean == 0)
        at = self.mean / self.spread
        below, above = int((self.drawn <= at).sum()), int((self.drawn >= at).sum())
        student = 2 * float(special.stdtr(self.rows - 1, -abs(at) * math.sqrt(self.rows)))
        return min(1.0, max(2 * min(below, above) / len(self.drawn), student))


def interval(differences: Sequence[float] | Floats, level: float = 0.95) -> tuple[float, float]:
    """A confidence interval for the mean, by `studentized`. Raises ValueError as that does."""
    return studentized(differences).interval(level)


def studentized(differences: Sequence[float] | Floats) -> Studentized:
    """The studentized bootstrap of the mean.

    Each resample's mean is compared with the mean in units of the resample's own standard error, which
    makes it hold for few and skewed rows. A resample of nearly equal rows would have next to no error, so it
    counts as LEAST_ERROR of the rows' own. Raises ValueError for fewer than two rows or what is not finite.
    """
    values = _checked(differences, 2)
    mean = float(values.mean())
    values = _grouped(values - mean) + mean
    count, centred = len(values), values - mean
    spread = float(values.std(ddof=1))
    if spread <= SAME * abs(mean):
        return Studentized(mean, 0.0, np.empty(0), count)
    found = []
    for weights in _drawn(count, "resamples"):
        means = weights @ centred / count
        variance = weights @ centred**2 / count - means**2
        found.append(_studentized(means, variance, spread, count))
    return Studentized(mean, spread, np.concatenate(found), count)


def _studentized(means: Floats, variance: Floats, spread: float, rows: int) -> Floats:
    """Means of resamples around 0 in units of their errors; `variance` is that within each."""
    errors = np.sqrt(np.maximum(variance, 0) * rows / (rows - 1))
    return np.asarray(means / np.maximum(errors, LEAST_ERROR * spread), np.float64)


def share_interval(
    base: Sequence[float] | Floats, other: Sequence[float] | Floats, level: float = 0.95
) -> tuple[float, float] | None:
    """A confidence interval for the share of the base's mean by which the other's is more: -0.62, 62 % less.

    By Fieller's method: a share is in it where 0 is in the interval of other − base − share × base, of the
    same resamples. So it holds the truth as often as intervals of means do, and it leaves out 0 exactly where
    that of the differences does; the two never say what contradicts. Of figures that are not negative it
    ends at −1. None where there is no such end: the base's mean may be 0, or nearly.
    Raises ValueError as `interval` does.
    """
    base, other = _checked(base, 2), _checked(other, 2)
    mean = float(base.mean())
    if mean <= 0:
        return None
    share = float((other - base).mean()) / mean
    found = _Shares.of(base, other - base - share * base)
    if found is None:
        return share, share
    least = -1 - share if min(base.min(), other.min()) >= 0 else -math.inf
    low, high = found.end(0, level, least), found.end(1, level, math.inf)
    return None if low is None or high is None else (share + low, share + high)


@dataclass(frozen=True)
class _Shares:
    """Sums from which the studentized bootstrap of apart − more × base follows for any `more`, where `apart`
    has a mean of 0: of the rows, and of each resample, float64 [2] and [2, resamples] the means of both
    without the rows' own, and [3] and [3, resamples] variance of apart, covariance, variance of the base."""

    mean: float  # of the base
    rows: int
    within: Floats
    means: Floats
    varying: Floats

    @classmethod
    def of(cls, base: Floats, apart: Floats) -> _Shares | None:
        """None where nothing varies."""
        mean = float(base.mean())
        both = np.stack([_grouped(apart - apart.mean()), _grouped(base - mean)], 1)
        both -= both.mean(0)
        count = len(both)
        within = np.asarray(_products(both).sum(0) / (count - 1), np.float64)
        if math.sqrt(within[0]) <= SAME * mean:
            return None
        means, squares = [], []
        for weights in _drawn(count, "resamples"):
            means.append(weights @ both / count)
            squares.append(weights @ _products(both) / count)
        drawn = np.concatenate(means)
        return cls(mean, count, within, drawn.T, (np.concatenate(squares) - _products(drawn)).T)

    def end(self, which: int, level: float, most: float) -> float | None:
        """Where the interval of apart − more × base has 0 at its lower (0) or upper (1) end; `most` where it
        still has 0 in it there. None where no end is found."""

        def beyond(more: float) -> float:
            return self._interval(more, level)[which]

        inside = 0.0
        step = beyond(0.0) / self.mean
        for _ in range(DOUBLED):
            more = min(step, most) if which else max(step, most)
            if (beyond(more) < 0) == bool(which):
                return float(optimize.brentq(beyond, inside, more, xtol=1e-9))
            if more == most:
                return most
            inside, step = more, 2 * step
        return None

    def _interval(self, more: float, level: float) -> tuple[float, float]:
        """The interval of the mean of apart − more × base."""
        parts = np.array([1.0, -2 * more, more**2])
        spread = math.sqrt(max(float(parts @ self.within), 0.0))
        means = self.means[0] - more * self.means[1]
        drawn = _studentized(means, parts @ self.varying, spread, self.rows)
        return Studentized(-more * self.mean, spread, drawn, self.rows).interval(level)


def _products(both: Floats) -> Floats:
    """Squares of the first, products, squares of the second: float64 [n, 2] → [n, 3]."""
    first, second = both.T
    return np.stack([first * first, first * second, second * second], 1)


def sign_test(differences: Sequence[float] | Floats) -> float:
    """How likely so uneven a number of rows on either side of 0 is by chance: exact, two-sided.

    Rows without a difference don't count; 1.0 if none has one. Raises ValueError as `interval` does.
    """
    values = _checked(differences, 1)
    above, below = int((values > 0).sum()), int((values < 0).sum())
    return float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0


def permutation_test(differences: Sequence[float] | Floats) -> float:
    """How likely a mean as far from 0 is if the two sides of each row could be swapped: two-sided.

    Exact up to ALL_FLIPS rows that differ, where all swaps are tried; beyond that FLIPS drawn by lot, and
    never less than one in FLIPS. Raises ValueError as `interval` does.
    """
    values = _checked(differences, 1)
    differ = values[values != 0]  # swapping equal sides changes nothing
    if not len(differ):
        return 1.0
    values = _grouped(values)  # swapping the sides of a whole group is one of the swaps
    least = abs(float(values.sum())) - SAME * float(np.abs(values).sum())
    if len(differ) <= ALL_FLIPS:
        return float((np.abs(_all_flips(len(differ)) @ differ) >= least).mean())
    reached = sum(int((np.abs(flips @ values) >= least).sum()) for flips in _drawn(len(values), "flips"))
    return (reached + 1) / (FLIPS + 1)


def holm(chances: Mapping[Name, float]) -> dict[Name, float]:
    """Chances of several tests, each raised so that all together hold (Holm's method); by the same names."""
    adjusted: dict[Name, float] = {}
    highest = 0.0
    for rank, (name, chance) in enumerate(sorted(chances.items(), key=lambda pair: pair[1])):
        highest = max(highest, min(1.0, (len(chances) - rank) * chance))
        adjusted[name] = highest
    return {name: adjusted[name] for name in chances}


def rows_needed(differences: Sequence[float] | Floats, level: float = 0.95, power: float = 0.8) -> float:
    """About how many rows like these would show their mean to differ from 0, `power` of the time.

    math.inf where the mean is 0. Raises ValueError as `interval` does.
    """
    values = _checked(differences, 2)
    mean = float(values.mean())
    if mean == 0:
        return math.inf
    both = stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)
    return float((both * values.std(ddof=1) / mean) ** 2)


def _checked(differences: Sequence[float] | Floats, least: int) -> Floats:
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or len(values) < least:
        raise ValueError(f"{values.shape} are not the differences of {least} rows or more")
    if not np.isfinite(values).all():
        raise ValueError("not all differences are finite numbers")
    return values


def _grouped(values: Floats) -> Floats:
    """The values, or of more than MOST_DRAWN the sums of as many groups, scaled so that the mean is the same.

    Rows that stand together are often alike, so the rows of a group are from all over.
    """
    count = len(values)
    if count <= MOST_DRAWN:
        return values
    sums = np.bincount(np.arange(count) % MOST_DRAWN, values, MOST_DRAWN)
    return np.asarray(sums, np.float64) * (MOST_DRAWN / count)


def _drawn(count: int, kind: Kind) -> Iterator[Floats]:
    """How often each row is in a resample, or the sign of each row: float64 [some, count], part by part."""
    if count <= KEPT_ROWS:
        yield _kept(count, kind)
        return
    random = np.random.default_rng([SEED, count])
    left = RESAMPLES if kind == "resamples" else FLIPS
    while left:
        some = max(1, min(left, CELLS // count))
        yield _draw(random, some, count, kind)
        left -= some


@lru_cache(maxsize=4)
def _kept(count: int, kind: Kind) -> Floats:
    many = RESAMPLES if kind == "resamples" else FLIPS
    return _draw(np.random.default_rng([SEED, count]), many, count, kind)


def _draw(random: np.random.Generator, some: int, count: int, kind: Kind) -> Floats:
    if kind == "flips":
        return random.integers(0, 2, (some, count), np.int8).astype(np.float64) * 2 - 1
    chosen: Any = random.integers(0, count, (some, count)) + np.arange(some)[:, None] * count
    return np.bincount(chosen.ravel(), minlength=some * count).reshape(some, count).astype(np.float64)


@lru_cache(maxsize=8)
def _all_flips(count: int) -> Floats:
    """Every choice of signs for `count` rows but for mirror images, so the first sign is always +."""
    numbers = np.arange(1 << (count - 1))[:, None]
    bits = (numbers >> np.arange(count)[::-1]) & 1
    return 1 - 2 * bits.astype(np.float64)
