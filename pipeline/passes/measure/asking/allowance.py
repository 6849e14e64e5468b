"""The time that answers may take: a large model on a slow processor writes a token a second."""

from __future__ import annotations

import time

from pipeline.passes.pace import LONG

clock = time.monotonic


class Allowance:
    """So many minutes, after which no further prompt is asked. The answer under way is finished."""

    def __init__(self, minutes: float) -> None:
        self._began = clock()
        self._ends = self._began + 60 * minutes
        self._answered = 0

    @property
    def is_over(self) -> bool:
        """Whether no further prompt is to be asked."""
        return clock() >= self._ends

    def answered(self) -> None:
        """One more prompt was asked, not found answered before."""
        self._answered += 1

    def seconds_left(self, prompts: int) -> float | None:
        """About how long so many more prompts take; None while nobody knows, or it is short."""
        if not self._answered:
            return None
        now = clock()
        left = min(prompts * (now - self._began) / self._answered, self._ends - now)
        return left if left >= LONG else None
