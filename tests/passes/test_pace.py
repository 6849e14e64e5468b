"""How far long work on rows is, told by a clock of the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.passes.pace import Pace, Part

Reported = Callable[[], list[dict[str, Any]]]


class Clock:
    """Seconds as the test sets them."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def work(clock: Clock, pace: Pace, kind: str, rows: range, seconds: float) -> None:
    for done in rows:
        pace.tell(kind, done)
        clock.now += seconds
        pace.worked(kind)


def test_parts_count_by_their_effort(reported: Reported) -> None:
    clock = Clock()
    pace = Pace({"a": Part("First", 100, 2.0), "b": Part("Second", 200)}, 0.1, 0.4, clock)
    pace.tell("a", 0)
    clock.now += 1
    pace.tell("a", 50)
    pace.tell("b", 0)
    said = [(event["message"], event["progress"]) for event in reported()]
    assert said == [
        ("First: 1 of 100", pytest.approx(0.1)),
        ("First: 51 of 100", pytest.approx(0.2)),
        ("Second: 1 of 200", pytest.approx(0.3)),
    ]
    assert {event["eta_seconds"] for event in reported()} == {None}


def test_what_is_left_is_told_at_the_pace_of_rows_that_were_measured_now(reported: Reported) -> None:
    """Not of those that an earlier attempt has measured, nor of the first, which takes longer."""
    clock = Clock()
    pace = Pace({"a": Part("Rows", 1_000_000)}, 0.0, 1.0, clock)
    pace.tell("a", 400_000)
    clock.now += 30
    pace.worked("a")
    work(clock, pace, "a", range(400_001, 400_101), 0.1)
    last = reported()[-1]
    assert last["eta_seconds"] == pytest.approx(599_900 * 0.1, rel=0.02)
    assert last["progress"] == pytest.approx(0.4, abs=0.001)
    pace.end()
    assert reported()[-1]["eta_seconds"] is None


def test_a_month_of_work_is_told_in_some_thousand_lines(reported: Reported) -> None:
    clock = Clock()
    pace = Pace({"a": Part("Rows", 30_000)}, 0.0, 1.0, clock)
    work(clock, pace, "a", range(30_000), 86.4)
    assert 300 < len(reported()) < 8_000
