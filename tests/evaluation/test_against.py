"""A quantized model against the float one, row by row."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipeline.evaluation import against

EXACT = [float(loss) for loss in np.random.default_rng(0).normal(3.0, 0.5, 60)]


def test_a_loss_of_two_percent_is_told_with_its_interval() -> None:
    noise = np.random.default_rng(1).normal(0.06, 0.05, 60)
    found = against.of(EXACT, [one + float(more) for one, more in zip(EXACT, noise, strict=True)])
    assert found["outcome"] == "worse"
    assert found["words"] == "1.9 % more loss than float on your rows (1.5–2.3)"
    assert found["low"] < found["difference"] < found["high"]
    json.dumps(found, allow_nan=False)


def test_no_difference_is_told_with_its_range() -> None:
    noise = np.random.default_rng(2).normal(0.0, 0.05, 60)
    found = against.of(EXACT, [one + float(more) for one, more in zip(EXACT, noise, strict=True)])
    assert found["outcome"] == "cannot_tell"
    assert found["words"].startswith("no measurable difference from float on your 60 rows (−")


@pytest.mark.parametrize(
    ("exact", "other", "words"),
    [
        ([1.0], [2.0], "too few rows to compare with float"),
        (EXACT, [math.nan, *EXACT[1:]], "predicts what is no number"),
    ],
)
def test_without_an_interval_it_says_why(exact: list[float], other: list[float], words: str) -> None:
    assert against.of(exact, other)["words"] == words
