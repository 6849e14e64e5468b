"""What fails for the moment is tried again."""

from __future__ import annotations

import ast
import math
import time
from collections.abc import Callable

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.system import retry


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(f"failure {self.calls}")
        return "answer"


def always(seconds: float) -> Callable[[BaseException, int], float | None]:
    return lambda error, tries: seconds


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def test_it_is_tried_until_it_answers(slept: list[float]) -> None:
    call, waits, asked = Flaky(3), [], []

    def wait(error: BaseException, tries: int) -> float:
        asked.append((str(error), tries))
        return float(tries)

    assert retry.persist(call, wait=wait, left=lambda: 60, before_wait=lambda: waits.append(1)) == "answer"
    assert asked == [("failure 1", 0), ("failure 2", 1), ("failure 3", 2)], "once for each failure"
    assert (slept, len(waits)) == ([0.0, 1.0, 2.0], 3)


def test_what_no_further_try_cures_is_raised_at_once(slept: list[float]) -> None:
    call = Flaky(1)
    with pytest.raises(OSError, match="failure 1"):
        retry.persist(call, wait=lambda error, tries: None, left=lambda: math.inf)
    assert (call.calls, slept) == (1, [])


def test_nobody_waits_longer_than_there_is_patience(slept: list[float]) -> None:
    left = iter([10.0, 5.0, 3.0])
    with pytest.raises(OSError, match="failure 3"):
        retry.persist(Flaky(9), wait=always(4.0), left=lambda: next(left))
    assert slept == [4.0, 4.0]


def test_who_gives_up_may_say_so_in_other_words() -> None:
    with pytest.raises(LabError, match="given up after failure 1") as raised:
        retry.persist(
            Flaky(9), wait=always(1.0), left=lambda: 0.0, gave_up=lambda e: LabError(f"given up after {e}")
        )
    assert raised.value.__suppress_context__


def test_what_ends_the_process_ends_the_tries() -> None:
    def call() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retry.persist(call, wait=always(0.0), left=lambda: math.inf)


def test_a_backoff_ends_at_its_longest_however_many_tries_there_were() -> None:
    assert [retry.backoff(tries, 30.0) for tries in (0, 1, 6, 7, 1030, 10**9)] == [0.25, 0.5, 16, 30, 30, 30]


def test_nobody_else_sleeps_after_a_failure() -> None:
    root = settings.ROOT
    found = {
        path.relative_to(root).as_posix()
        for folder in ("pipeline", "webapp")
        for path in (root / folder).rglob("*.py")
        for handler in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(handler, ast.ExceptHandler) and "time.sleep" in ast.unparse(handler)
    }
    assert found == set()
