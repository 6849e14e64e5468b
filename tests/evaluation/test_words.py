"""The sentences that follow a verdict."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import words
from pipeline.evaluation.verdict import judge


def blocks(change: float, spread: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    base = random.normal(4.0, 0.3, 12)
    return base, base + random.normal(change, spread, 12)


def forgot(base: Any, adapter: Any) -> str:
    return words.forgot(judge(words.GENERAL, base, adapter), base)


def test_what_was_forgotten_is_named_in_percent() -> None:
    assert forgot(*blocks(0.3)) == "predicts general text 7.4 % worse"
    assert forgot(*blocks(-0.6)) == "predicts general text 15 % better"
    assert forgot(*blocks(0.0)) == "forgot nothing measurable"
    assert forgot([4.0] * 12, [math.nan] * 12) == ""


def test_speed_is_compared_answer_by_answer() -> None:
    assert words.speed([((64, 100.0), (34, 80.0)), ((64, 50.0), (34, 38.0))]) == "costs 22 % speed"
    assert words.speed([((64, 100.0), (34, 99.0))]) == "costs no measurable speed"
    assert words.speed([((64, 100.0), (34, 130.0))]) == "costs no measurable speed"


@pytest.mark.parametrize("answers", [[], [((7, 100.0), (64, 50.0))], [((64, 0.0), (64, 50.0))]])
def test_short_answers_tell_no_speed(answers: list) -> None:
    assert words.speed(answers) == ""


def test_an_adapter_that_knows_its_rows_by_heart_is_named() -> None:
    said = "memorized rows: a loss of 0.53 where it was trained, 1.48 on new rows"
    assert words.by_heart(0.53, 1.48) == said
    assert words.by_heart(1.0, 1.48) == words.by_heart(math.nan, 1.0) == words.by_heart(1.0, math.nan) == ""
