"""Retry what failed temporarily, until patience runs out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def persist(
    call: Callable[[], T],
    *,
    wait: Callable[[BaseException, int], float | None],
    left: Callable[[], float],
    before_wait: Callable[[], None] = lambda: None,
    gave_up: Callable[[BaseException], BaseException] = lambda error: error,
) -> T:
    """The result of `call`, retried as often as needed.

    `wait` is called once after each failure with the number of failures before it. It returns seconds until
    the next try, or None if no retry helps; then the error is raised. `left` returns the remaining patience
    in seconds. If that is less than the wait, what `gave_up` makes of the error is raised.
    """
    from tenacity import RetryCallState, Retrying  # slow to import, and few processes need it

    seconds: float | None = None

    def passes(state: RetryCallState) -> bool:
        nonlocal seconds
        error = state.outcome.exception() if state.outcome else None
        seconds = wait(error, state.attempt_number - 1) if isinstance(error, Exception) else None
        return seconds is not None

    def ended(state: RetryCallState) -> T:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None
        raise gave_up(error) from None

    tries = Retrying(
        retry=passes,
        wait=lambda _: seconds or 0.0,
        stop=lambda _: (seconds or 0.0) > left(),
        before_sleep=lambda _: before_wait(),
        retry_error_callback=ended,
        sleep=time.sleep,
    )
    return tries(call)


def backoff(tries: int, longest: float) -> float:
    """Seconds to wait before the next try after `tries` failures: twice as long each time, up to `longest`.

    `tries` may be any number: retries continue as long as something gets through now and then.
    """
    return min(0.25 * 2.0 ** min(tries, 60), longest)
