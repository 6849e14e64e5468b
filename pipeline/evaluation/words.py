"""What else a comparison says about an adapter, each as the end of a sentence; "" where it says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.verdict import BETTER, CANNOT_TELL, Figures, Metric, Verdict

GENERAL = Metric("general_loss", "loss on general text", less_is_better=True, of_base=True)
LEAST_SHARE = 0.03  # of speed: less is noise
LEAST_TOKENS = 8  # of an answer whose speed counts
BY_HEART = 0.6  # loss on trained rows as a share of that on new ones, from which on it is named


def forgot(found: Verdict, base: Figures) -> str:
    """Whether general text became harder to predict, by the verdict on its blocks and the base's losses."""
    if found.outcome == CANNOT_TELL or found.difference is None:
        return "" if found.difference is None else "forgot nothing measurable"
    share = 100 * abs(found.difference) / float(np.mean(base))
    side = "better" if found.outcome == BETTER else "worse"
    shown = f"{share:.0f}" if share >= 10 else f"{share:.1f}".removesuffix(".0")
    return f"predicts general text {shown} % {side}"


def speed(answers: Sequence[tuple[tuple[int, float], tuple[int, float]]]) -> str:
    """What the adapter costs in speed, from (tokens, tokens per second) of the base's and its own answers."""
    shares = [
        1 - adapter[1] / base[1]
        for base, adapter in answers
        if base[1] > 0 and min(base[0], adapter[0]) >= LEAST_TOKENS
    ]
    if not shares:
        return ""
    lost = sum(shares) / len(shares)
    return f"costs {100 * lost:.0f} % speed" if lost >= LEAST_SHARE else "costs no measurable speed"


def by_heart(trained: float, held_out: float) -> str:
    """Whether the adapter knows what it was trained on much better than what is new, by its mean losses."""
    if not trained < BY_HEART * held_out:  # also where one is not a number
        return ""
    return f"memorized rows: a loss of {trained:.2f} where it was trained, {held_out:.2f} on new rows"
