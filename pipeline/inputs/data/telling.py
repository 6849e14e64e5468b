"""When it is time to say how far long work is, for whoever waits or wants to leave."""

from __future__ import annotations

import time

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
