"""Progress, speed and remaining time of a transfer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

EVERY_SECONDS = 0.5
WINDOW_SECONDS = 20.0
Report = Callable[..., None]  # message, fraction, and facts by name


class Meter:
    """Reports transferred bytes to `report`, at most twice a second.

    Fractions go from `start` to `end`. The facts are `bytes_done`, `bytes_total` and, once there is a speed,
    `eta_seconds`.
    """

    def __init__(self, report: Report, total: int, start: float = 0.0, end: float = 1.0) -> None:
        self._report, self.total, self._start, self._span = report, total, start, end - start
        self.done = self.moved = 0
        self._began = time.monotonic()
        self._told = 0.0
        self._seen: deque[tuple[float, int]] = deque([(self._began, 0)])

    def add(self, count: int, message: str, moved: bool = True) -> None:
        """Count more bytes; `moved` is false if they had been there before."""
        self.done += count
        self.moved += count if moved else 0
        now = time.monotonic()
        if now - self._told < EVERY_SECONDS and self.done < self.total:
            return
        self._told = now
        self._seen.append((now, self.moved))
        while now - self._seen[0][0] > WINDOW_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        facts: dict[str, Any] = {"bytes_done": self.done, "bytes_total": self.total}
        if speed := self._speed(now):
            facts["eta_seconds"] = (self.total - self.done) / speed
        self._report(message, self._start + self._span * self.done / max(self.total, 1), **facts)

    def _speed(self, now: float) -> float:
        then, before = self._seen[0]
        return (self.moved - before) / (now - then) if now > then else 0.0

    @property
    def speed(self) -> float:
        """Average bytes per second that moved."""
        return self.moved / max(time.monotonic() - self._began, 1e-9)
