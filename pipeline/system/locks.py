"""Locks that die with the process that holds them, however it ends (flock(2)).

A lock is an open file descriptor. A child process that inherits it holds the lock too, so the lock
is held from the moment a process starts.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Not through a link, which would make a file elsewhere: some locks lie in a folder of others.
_MADE = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def take(path: Path) -> int | None:
    """Take the lock if it is free: the descriptor that holds it until closed, or None."""
    descriptor = _open(path)
    while not _try(descriptor, fcntl.LOCK_EX):
        # It may be held only for a moment by `held`, so try again.
        if not _try(descriptor, fcntl.LOCK_SH):
            os.close(descriptor)
            return None
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    return descriptor


def take_within(path: Path, seconds: float) -> int | None:
    """Take the lock as soon as nobody holds or shares it; None if that takes longer."""
    deadline = time.monotonic() + seconds
    descriptor = _open(path)
    while not _try(descriptor, fcntl.LOCK_EX):  # not `retry`: a waiter wants the lock at once
        if time.monotonic() > deadline:
            os.close(descriptor)
            return None
        time.sleep(0.01)
    return descriptor


def held(path: Path) -> bool:
    """Whether a living process holds the lock. Asks with a shared lock, so that two askers agree."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | _MADE, 0o600)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Share the lock inside the block, so that nobody holds it alone. Waits as long as it takes."""
    descriptor = os.open(path, os.O_RDONLY | _MADE, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock inside the block, waiting for it as long as it takes."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
