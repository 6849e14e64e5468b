"""When it is time to say how far long work is, for whoever waits or wants to leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

T = TypeVar("T")

TELL_SECONDS = 1.0


class Clock:
    """Runs from when something was said last."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def is_due(self) -> bool:
        """Whether nothing was said for TELL_SECONDS; then something will be."""
        now = time.monotonic()
        if now - self._told <= TELL_SECONDS:
            return False
        self._told = now
        return True


def ended(steps: Generator[Any, None, T], tell: Callable[[Any], None] = lambda _: None) -> T:
    """What steps return in the end; `tell` gets what they say meanwhile. They are closed where it raises."""
    with closing(steps):
        while True:
            try:
                tell(next(steps))
            except StopIteration as end:
                found: T = end.value
                return found


def told(steps: Generator[None, None, T], sentence: str, clock: Clock) -> Generator[str, None, T]:
    """What steps return in the end; says the sentence when it is time."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
        if clock.is_due():
            yield sentence
