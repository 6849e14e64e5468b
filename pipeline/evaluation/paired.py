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
from scipy import stats

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


@dataclass(frozen=True)
class Studentized:
    """A mean with the distribution that its studentized bootstrap has around it: `drawn` are the differences
    of resampled means from it, ascending, each in units of its own standard error times √rows, as `spread`
    is of the mean itself."""

    mean: float
    spread: float
    drawn: Floats

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """A confidence interval for the mean."""
        if not len(self.drawn):
            return self.mean, self.mean
        low, high = np.quantile(self.drawn, [(1 - level) / 2, (1 + level) / 2])
        return self.mean - float(high) * self.spread, self.mean - float(low) * self.spread

    @property
    def chance(self) -> float:
        """How likely a mean as far from 0 is where it is 0: the widest interval without 0 has about a level
        of 1 less this. Two-sided; 0 where that is less than two in RESAMPLES."""
        if not len(self.drawn):
            return float(self.mean == 0)
        at = self.mean / self.spread
        below = int(np.searchsorted(self.drawn, at, "right"))
        above = len(self.drawn) - int(np.searchsorted(self.drawn, at, "left"))
        return min(1.0, 2 * min(below, above) / len(self.drawn))


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
        return Studentized(mean, 0.0, np.empty(0))
    found = []
    for weights in _drawn(count, "resamples"):
        means = weights @ centred / count
        variance = np.maximum(weights @ centred**2 / count - means**2, 0) * count / (count - 1)
        found.append(means / np.maximum(np.sqrt(variance), LEAST_ERROR * spread))
    return Studentized(mean, spread, np.sort(np.concatenate(found)))


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
