"""A quantized model against the float one on the same rows: the verdict, and a few words for a scorecard."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.verdict import CANNOT_TELL, Figures, Metric, Verdict, judge, relative

LOSS = Metric("loss_against_float", "loss on your rows", less_is_better=True, of_base=True)


def of(exact: Figures, other: Figures) -> dict[str, Any]:
    """The verdict on losses of rows in nats a token, as JSON with `words`: "2 % more loss than float on your
    rows (1–3)"; text by text, of the float model and of the other one.
    """
    return said(judge(LOSS, exact, other), exact, other)


def said(found: Verdict, exact: Figures, other: Figures) -> dict[str, Any]:
    """The same of a verdict that was corrected for others."""
    return {**found.to_json(), "words": words(found, exact, other)}


def words(found: Verdict, exact: Figures, other: Figures) -> str:
    """What a verdict on losses against the float model's says, for the middle of a sentence."""
    if found.low is None:
        return "too few rows to compare with float" if found.rows < 2 else "predicts what is no number"
    if found.outcome != CANNOT_TELL:
        said = found.text.partition(": ")[2].rpartition(", ")[0]
        return said.replace(LOSS.words, "loss than float on your rows")
    low, high = (f"{end:+.1f}".replace("-", "−") for end in relative(LOSS, exact, other))
    return f"no measurable difference from float on your {found.rows:,} rows ({low} to {high} %)"
