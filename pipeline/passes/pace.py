"""How far long work on rows is, and how long the rest takes at the pace so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.stages.events import emit

MOST_OFTEN = 0.5  # seconds between two reports,
RARER = 1e-3  # and this share of the time so far: work of a month writes a megabyte
SURE = 5.0  # seconds of work after which its pace tells something
LONG = 60.0  # seconds that are left, from which on they are told: what comes after is short against them


@dataclass(frozen=True)
class Part:
    """A part of the work: what it is called, how many rows it has, and the effort of one, in any unit."""

    words: str
    count: int
    effort: float = 1.0


class Pace:
    """Reports parts of a stage, which together are `share` of it from `begin` on.

    Rows that an earlier attempt has measured are done, and say nothing about the pace.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        begin: float,
        share: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts, self._begin, self._share, self._clock = parts, begin, share, clock
        self._whole = sum(part.count * part.effort for part in parts.values())
        self._part = ""
        self._finished: set[str] = set()
        self._started: float | None = None
        self._worked = 0.0  # effort since then
        self._told = 0.0

    def tell(self, name: str, done: int) -> None:
        """The part has `done` rows behind it, and works on the next."""
        now = self._clock()
        if name != self._part:
            self._finished |= {self._part} if self._part else set()
            self._part = name
        elif now - self._told < max(MOST_OFTEN, RARER * (now - (self._started or now))):
            return
        self._told = now
        part = self._parts[name]
        behind = sum(self._parts[one].count * self._parts[one].effort for one in self._finished)
        behind += done * part.effort
        emit(
            message=f"{part.words}: {done + 1:,} of {part.count:,}",
            progress=self._begin + self._share * (behind / self._whole if self._whole else 1.0),
            eta_seconds=self._left(self._whole - behind, now),
        )

    def worked(self, name: str) -> None:
        """One row of the part was measured, not found measured before."""
        if self._started is None:
            self._started = self._clock()  # the first one takes longer than the others, so it does not count
            return
        self._worked += self._parts[name].effort

    def end(self) -> None:
        """All parts are done: what is left is for others to say."""
        emit(eta_seconds=None)

    def _left(self, effort: float, now: float) -> float | None:
        """Seconds at the pace so far; None while that says little, or little is left."""
        if self._started is None or now - self._started < SURE or not self._worked:
            return None
        left = effort * (now - self._started) / self._worked
        return left if left >= LONG else None
