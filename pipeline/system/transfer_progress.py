"""How far bytes have got, how fast, and how long it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

EVERY_SECONDS = 0.5
WINDOW_SECONDS = 20.0
Report = Callable[..., None]  # message, fraction, and facts by name


class Meter:
    """Tells `report` of bytes that moved, at most twice a second.

    The fractions it tells go from `start` to `end`. `bytes_done` and `bytes_total` are in its facts, and
    `eta_seconds` once there is a speed.
    """

    def __init__(self, report: Report, total: int, start: float = 0.0, end: float = 1.0) -> None:
        self._report, self.total, self._start, self._span = report, total, start, end - start
        self.done = self.moved = 0
        self._began = time.monotonic()
        self._told = 0.0
        self._seen: deque[tuple[float, int]] = deque([(self._began, 0)])

    def add(self, count: int, message: str, moved: bool = True) -> None:
        """`count` more bytes are there; `moved` if they had to be, and were not there before."""
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
        """Bytes a second that moved, over the whole time."""
        return self.moved / max(time.monotonic() - self._began, 1e-9)
