"""Places for fetching datasets, of which a home has a few: the oldest makes room where others wait.

A place is a file's lock, as several processes fetch. Who waits touches a file, which the holder sees.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path

from pipeline.errors import Busy
from pipeline.system import locks

AT_ONCE = 4
OLD_SECONDS = 15.0  # after which who fetches makes room for others
WAIT_SECONDS = 20.0  # for a place: until the youngest there may be is old, and some more
LOOK_SECONDS = 0.2  # how often who waits looks, and touches the file,
FRESH_SECONDS = 5.0  # and how long after the last time nobody waits any more
BUSY = "Other datasets are being fetched just now; try again in a minute."
WAITS = "Waiting until others have fetched their datasets…"
MADE_ROOM = "Others wait to fetch datasets, so this one makes room; fetch it again later: it resumes."


class Place:
    """A place that is held until it is closed."""

    def __init__(self, file: Path, descriptor: int) -> None:
        self._file = file
        self._descriptor = descriptor
        self._since = time.monotonic()
        os.utime(descriptor)  # so that others see which is the oldest

    def keep(self) -> None:
        """Raise Busy where it has been held for long, and somebody waits for it."""
        if time.monotonic() - self._since < OLD_SECONDS:
            return
        if time.time() - _changed(_wanted(self._file)) < FRESH_SECONDS:
            raise Busy(MADE_ROOM)

    def close(self) -> None:
        """Leave it to others."""
        os.close(self._descriptor)


def taking(folder: Path) -> Generator[str, None, Place]:
    """Take a place of a folder; says where it waits for one. Raises Busy."""
    files = [folder / f".{number}.lock" for number in range(AT_ONCE)]
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        for file in files:
            if (taken := locks.take(file)) is not None:
                return Place(file, taken)
        if time.monotonic() > deadline:
            raise Busy(BUSY)
        _wanted(min(files, key=_changed)).touch(mode=0o600)
        yield WAITS
        time.sleep(LOOK_SECONDS)


def _wanted(file: Path) -> Path:
    return file.with_suffix(".wanted")


def _changed(file: Path) -> float:
    """When a file was changed last; 0 where there is none."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
