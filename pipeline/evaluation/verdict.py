"""Is one side better than the other on the same rows? A verdict in words, and the figures it rests on.

The rule, whose coverage and false verdicts `benchmarks/verdict.py` simulates:

- below LEAST_ROWS rows nothing is said;
- the interval of the mean difference (`paired.interval`, 95 %) leaves out 0;
- the exact permutation test agrees, and below FEW_ROWS rows the exact sign test too. Both at AGREES, a
  little less than the 5 % of false verdicts that are allowed in all.

Where several are judged together, all of this has to hold after Holm's correction, the interval's level
included, and at SEVERAL in place of AGREES: at the small chances that a correction asks for, tests are about
twice too certain of skewed differences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from pipeline.evaluation import paired
from pipeline.evaluation.fewest import LEAST_ROWS
from pipeline.evaluation.paired import Floats

Outcome = Literal["better", "worse", "cannot_tell"]
Figures = Sequence[float] | Floats
Pair = tuple[Figures, Figures]  # the base's figures and the other side's, row by row
Name = TypeVar("Name", bound=Hashable)

BETTER: Outcome = "better"
WORSE: Outcome = "worse"
CANNOT_TELL: Outcome = "cannot_tell"
FEW_ROWS = 40
AGREES = 0.04
SEVERAL = 0.02
OUTSIDE = 0.05  # of the interval
LEAST_SHOWN = 1e-4  # of a size; a smaller one is written with its power of ten
MOST_NEEDED = 100_000  # rows; more are not worth a promise
STEPS = (10, 15, 20, 30, 40, 50, 60, 80)  # numbers of rows that are spoken of, and a hundred times as many


@dataclass(frozen=True)
class Metric:
    """What is compared. `words` name it in a sentence; `of_base` tells its size as a share of the base's.

    `base` and `other` are the sides, in a sentence about what they predict.
    """

    name: str
    words: str
    less_is_better: bool = False
    of_base: bool = False
    base: str = "the base predicts"
    other: str = "it predicts with the adapter"


LOSS = Metric("response_loss", "loss on your held-out answers", less_is_better=True, of_base=True)


@dataclass(frozen=True)
class Verdict:
    """What can be said. `difference` is the other side − the base, the mean over rows, in the metric's unit,
    with its interval from `low` to `high`; None where there are too few rows or what is no number.

    `better` and `worse` count rows of the other side; those that are equal are neither.
    """

    outcome: Outcome
    text: str
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    rows: int
    better: int
    worse: int

    def to_json(self) -> dict[str, Any]:
        """As `metrics.verdict` of the evaluate stage has it."""
        return dataclasses.asdict(self)

    def with_more(self, parts: Sequence[str]) -> Verdict:
        """The verdict with more said behind it: "Better: …; forgot nothing measurable."."""
        return replace(self, text="; ".join([self.text.removesuffix("."), *parts]) + ".") if parts else self


def judge(metric: Metric, base: Figures, other: Figures) -> Verdict:
    """The verdict on one metric, of figures row by row. Raises ValueError if the sides have other rows."""
    return judge_all({metric: (base, other)})[metric.name]


def judge_all(pairs: Mapping[Metric, Pair]) -> dict[str, Verdict]:
    """The verdicts on several metrics by their names, corrected for being several. Raises as `judge` does."""
    return judge_each({metric.name: (metric, pair) for metric, pair in pairs.items()})


def judge_each(pairs: Mapping[Name, tuple[Metric, Pair]]) -> dict[Name, Verdict]:
    """The verdicts on several comparisons by names of any kind, which may share a metric, corrected for being
    several: all together hold. Raises as `judge` does.
    """
    return judge_with(pairs, {})[0]


def judge_with(
    pairs: Mapping[Name, tuple[Metric, Pair]], chances: Mapping[Name, float]
) -> tuple[dict[Name, Verdict], set[Name]]:
    """`judge_each` together with tests of another kind, whose chances are given by other names: the verdicts,
    and the names of those tests that hold after the correction for all. Raises as `judge` does.
    """
    compared = {name: _Compared(metric, *_floats(pair)) for name, (metric, pair) in pairs.items()}
    tested = {name: found.chance for name, found in compared.items() if found.can_tell}
    corrected = paired.holm({**tested, **chances})
    agrees = SEVERAL if len(corrected) > 1 else AGREES
    verdicts = {name: found.verdict(corrected.get(name, 1.0) <= agrees) for name, found in compared.items()}
    return verdicts, {name for name in chances if corrected[name] <= agrees}


def relative(metric: Metric, base: Figures, other: Figures) -> tuple[float, float]:
    """The ends of the mean difference's interval as sentences give them, of two rows or more: in percent of
    the base's mean, or plain. Raises ValueError as `judge` does."""
    return _Compared(metric, *_floats((base, other)))._sizes()


def missing(metric: Metric, why: str) -> Verdict:
    """The verdict where there is nothing to compare; `why` ends the sentence."""
    return Verdict(CANNOT_TELL, f"Cannot tell: {why}.", metric.name, None, None, None, 0, 0, 0)


def _floats(pair: Pair) -> tuple[Floats, Floats]:
    base, other = (np.asarray(side, np.float64) for side in pair)
    if base.ndim != 1 or base.shape != other.shape:
        raise ValueError(f"the sides have {base.shape} and {other.shape} figures")
    return base, other


@dataclass(frozen=True)
class _Compared:
    """Figures of both sides, float64 [rows]."""

    metric: Metric
    base: Floats
    other: Floats

    @cached_property
    def differences(self) -> Floats:
        return self.other - self.base

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.differences).all())

    @property
    def can_tell(self) -> bool:
        """Whether there are rows and numbers enough to tell anything; else it is no test to correct for."""
        return self.is_finite and len(self.base) >= LEAST_ROWS

    @property
    def chance(self) -> float:
        """How likely such differences are where there is none, by the least certain of the tests. The
        interval's is in the others' measure: AGREES where it just leaves out 0."""
        signs = paired.sign_test(self.differences) if len(self.base) < FEW_ROWS else 0.0
        apart = self._studentized.chance * AGREES / OUTSIDE
        return max(paired.permutation_test(self.differences), apart, signs)

    def verdict(self, agree: bool) -> Verdict:
        """The verdict, if the tests `agree` with the interval or do not."""
        rows, name = len(self.base), self.metric.name
        if not rows:
            return missing(self.metric, "no rows are left to compare")
        if not self.is_finite:
            return self._no_numbers()
        gains = -self.differences if self.metric.less_is_better else self.differences
        better, worse = int((gains > 0).sum()), int((gains < 0).sum())
        mean = float(self.differences.mean())
        low, high = self._interval if rows > 1 else (None, None)
        outcome = CANNOT_TELL
        if rows >= LEAST_ROWS and self._is_apart and agree:
            outcome = BETTER if gains.mean() > 0 else WORSE
        text = self._text(outcome, better, worse)
        return Verdict(outcome, text, name, mean, low, high, rows, better, worse)

    def _no_numbers(self) -> Verdict:
        broken = int((~np.isfinite(self.other) & np.isfinite(self.base)).sum())  # not where the base is, too
        rows = len(self.base)
        if not broken:
            text = f"Cannot tell: what {self.metric.base} is not a number in some of {_rows(rows)}."
            return Verdict(CANNOT_TELL, text, self.metric.name, None, None, None, rows, 0, 0)
        if rows < LEAST_ROWS:
            text = f"Cannot tell from {_rows(rows)}: what {self.metric.other} is not a number in {broken:,}."
            return Verdict(CANNOT_TELL, text, self.metric.name, None, None, None, rows, 0, broken)
        text = f"Worse: what {self.metric.other} is not a number in {broken:,} of {_rows(rows)}."
        return Verdict(WORSE, text, self.metric.name, None, None, None, rows, 0, broken)

    def _text(self, outcome: Outcome, better: int, worse: int) -> str:
        rows = len(self.base)
        if outcome == CANNOT_TELL:
            ranged = self._range()
            return f"Cannot tell from {_rows(rows)}{self._needed()}.{f' {ranged}.' if ranged else ''}"
        side = better if outcome == BETTER else worse
        more = (outcome == WORSE) == self.metric.less_is_better
        mean = self._mean_size()
        sizes = sorted(max(0.0, math.copysign(size, size * mean)) for size in self._sizes())
        shown, low, high = (self._size(size) for size in (abs(mean), *sizes))
        if self._is_share:
            said = f"{shown} % {'more' if more else 'less'} {self.metric.words}"
        else:
            said = f"{self.metric.words} {shown} {'higher' if more else 'lower'}"
        return f"{outcome.capitalize()}: {said} ({low}–{high}), {side:,} of {_rows(rows)}."

    def _needed(self) -> str:
        """How many rows might tell, as the end of "Cannot tell from 14 rows"."""
        rows = len(self.base)
        least = LEAST_ROWS if rows < LEAST_ROWS else rows + 1
        if rows < 2:
            return f"; {LEAST_ROWS} are the fewest that say anything, 50 say more"
        needed = max(paired.rows_needed(self.differences), least)
        if needed > MOST_NEEDED:
            return ""
        if LEAST_ROWS <= rows < FEW_ROWS and self._is_apart:  # only the tests of few rows are against it
            needed = FEW_ROWS
        scale = 10 ** max(0, math.floor(math.log10(needed)) - 1)
        steps = [step * scale for step in (*STEPS, 100) if step * scale >= needed]
        return f"; about {steps[0]:,} would do"

    def _range(self) -> str:
        """Between what the difference lies, as a sentence without its full stop."""
        if len(self.base) < LEAST_ROWS:
            return ""
        words = self.metric.words[0].upper() + self.metric.words[1:]
        unit = " %" if self._is_share else ""
        more, less = ("more", "less") if self._is_share else ("higher", "lower")
        ends = [f"{self._size(abs(size))}{unit} {more if size > 0 else less}" for size in self._sizes()]
        return f"{words}: between {ends[0]} and {ends[1]}"

    @cached_property
    def _studentized(self) -> paired.Studentized:
        return paired.studentized(self.differences)

    @cached_property
    def _interval(self) -> tuple[float, float]:
        return self._studentized.interval()

    @property
    def _is_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self._interval
        return low > 0 or high < 0

    @property
    def _is_share(self) -> bool:
        return self._shares is not None

    @cached_property
    def _shares(self) -> tuple[float, float] | None:
        """The interval of the difference as a share of the base's mean, if it is given so and says what that
        of the difference says."""
        found = paired.share_interval(self.base, self.other) if self.metric.of_base else None
        if found is None or (found[0] > 0 or found[1] < 0) != self._is_apart:
            return None
        return found

    def _mean_size(self) -> float:
        """The mean difference as the sentence gives it: in percent of the base's mean, or plain."""
        mean = float(self.differences.mean())
        return 100 * mean / float(self.base.mean()) if self._is_share else mean

    def _sizes(self) -> tuple[float, float]:
        """The ends of the interval as the sentence gives them."""
        if self._shares is None:
            return self._interval
        low, high = self._shares
        return 100 * low, 100 * high

    def _size(self, size: float) -> str:
        """A size without its sign, with as many digits as say something: what is not 0 is not shown as 0."""
        digits = 1 if self._is_share else 3
        if 0 < size < 10**-digits:
            return f"{size:.1g}" if size >= LEAST_SHOWN else f"{size:.0e}"
        if not self._is_share:
            return f"{size:.3f}".rstrip("0").rstrip(".")
        return f"{size:.0f}" if size >= 10 else f"{size:.1f}".removesuffix(".0")


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
