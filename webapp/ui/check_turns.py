"""Time for what reads a whole dataset: everybody's check gets a short turn at once, few a long one.

Such events share a few places (`parts.CHECKS`). If long ones could have all of these, nobody else's check,
not even one of ten rows, would be answered until they end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.data import datasets

PLACES = 8
LONG = 3  # of them, for checks that take longer than
BRIEF_SECONDS = 5.0
MOST_SECONDS = 600.0
BUSY = (
    f"Checking this takes longer than {BRIEF_SECONDS:.0f} seconds, and {LONG} such checks are in progress;"
    " try again in some minutes."
)
TOO_LONG = (
    f"Checking takes longer than {MOST_SECONDS / 60:.0f} minutes; use the command line"
    " ({} check, and run), or a part of the file."
)
_long = threading.BoundedSemaphore(LONG)


class Turn:
    """The time of one check, from now on. To be left with `close`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._is_long = False

    def go_on(self) -> None:
        """Raises LabError if the check is to end, because it takes long or many others do."""
        spent = time.monotonic() - self._began
        if spent > MOST_SECONDS:
            raise LabError(TOO_LONG.format(settings.command()))
        if spent > BRIEF_SECONDS and not self._is_long:
            if not _long.acquire(blocking=False):
                raise LabError(BUSY)
            self._is_long = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile what this thread reads of datasets takes time of this turn. A generator may not yield."""
        token = datasets.go_on.set(self.go_on)
        try:
            yield
        finally:
            datasets.go_on.reset(token)

    def close(self) -> None:
        """Leave the time to others."""
        if self._is_long:
            _long.release()
            self._is_long = False


@contextmanager
def turn() -> Iterator[None]:
    """A turn for all checks that this thread makes meanwhile; they raise what `Turn.go_on` does."""
    with closing(Turn()) as mine, mine.held():
        yield
