"""What is claimed beside a verdict, corrected together.

The verdict itself, on the loss on held-out answers, is the one hypothesis that an evaluation is made for, so
it is tested alone, at the full `verdict.AGREES`. All else that its words or the metrics beside it claim is a
family, at `verdict.SEVERAL`: what general text became (forgot, or better), each metric and check of answers,
what either side costs against the float model, and whether rows were learned by heart. Holm's method corrects
these for being so many, so that where nothing is different, at most 5 in 100 evaluations claim any of it:
`python -m benchmarks.verdict --claims` simulates that.

Comparisons of fewer than LEAST_ROWS rows can claim nothing, so they are none of the family. Speed, memory and
the share of answers that stands in training rows are said as measured: no claim about rows that nobody asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.evaluation.fewest import LEAST_ROWS
from pipeline.evaluation.verdict import Figures, Metric, Pair, Verdict, judge_with

HEART = "overfitting"  # the name of that test in the family


@dataclass(frozen=True)
class Told:
    """What holds: a verdict by the name of each comparison, and whether rows that were trained on are
    predicted better than new ones by more than chance."""

    verdicts: Mapping[str, Verdict]
    memorized: bool


def judge(pairs: Mapping[str, tuple[Metric, Pair]], trained: Figures = (), held_out: Figures = ()) -> Told:
    """Test all claims together: `pairs` by names of any kind, and the adapter's losses on rows that it was
    trained on against those on new ones, nats a token. Raises ValueError if the sides of a pair have other
    rows.
    """
    chance = _chance(np.asarray(trained, np.float64), np.asarray(held_out, np.float64))
    verdicts, held = judge_with(pairs, {} if chance is None else {HEART: chance})
    return Told(verdicts, HEART in held)


def _chance(trained: np.ndarray, held_out: np.ndarray) -> float | None:
    """How likely losses on the trained rows are as much lower, if those rows are like the new ones: a lot
    decides which row is held out, so without learning by heart the two are exchangeable (Mann-Whitney, one
    side). None where there are too few, or what is no number."""
    finite = np.isfinite(trained).all() and np.isfinite(held_out).all()
    if min(len(trained), len(held_out)) < LEAST_ROWS or not finite:
        return None
    return float(stats.mannwhitneyu(trained, held_out, alternative="less").pvalue)
