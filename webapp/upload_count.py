"""What uploads take, known without looking at them: counted as they come and go.

Whoever uploads asks for it several times a request, and looking at thousands of folders takes a second. What
goes without our doing (Gradio removes old files, and somebody may) is found by looking at all of them in a
thread of its own: once at first, then at most once a minute, however many ask.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline import settings
from pipeline.system import files
from webapp import threads

COPIES = ".copies"  # beside Gradio's folders, whose names are digests
DIGEST = r"[0-9a-f]{64}"
LEAST_FILE = 4096  # bytes that a small one takes on a disk
LOOK_SECONDS = 60.0  # between two looks at all folders
QUIET_SECONDS = 1.0  # between two sums of what is unread


@dataclass(frozen=True)
class Held:
    """What a folder holds: bytes, files, and when it was last changed, in seconds since the epoch."""

    size: int = 0
    files: int = 0
    changed: float = 0.0


class Count:
    """What is in the folder of uploads, in this process's memory; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Know nothing, as at the start of an app: the next request has all folders looked at."""
        with self._lock:
            self._folders: dict[str, Held] = {}
            self._inside = Held()  # all these folders
            self._loose = Held()  # what lies in none of them
            self._arriving = Held()  # by requests that have not ended
            self._copied = 0  # bytes of copies that handlers read
            self._quiet: tuple[float, Held] | None = None  # when it was asked for
            self._looked: float | None = None
            self._looking: Future[None] | None = None
            self._touched: set[str] | None = None  # folders that changed during a look

    @property
    def size(self) -> int:
        """Bytes of all uploads, of those that arrive, and of their copies."""
        return self._inside.size + self._loose.size + self._arriving.size + self._copied

    @property
    def files(self) -> int:
        """All files; an empty folder counts as one."""
        return self._inside.files + self._loose.files + self._arriving.files

    def folders(self) -> list[tuple[str, Held]]:
        """Each upload's folder by its name, and what it holds."""
        with self._lock:
            return list(self._folders.items())

    def quiet(self, ask: Callable[[], Held]) -> Held:
        """What `ask` says is unread, of at most a second ago: it goes through all folders, and refused
        requests may be many."""
        known = self._quiet
        if known is None or time.monotonic() - known[0] > QUIET_SECONDS:
            known = self._quiet = time.monotonic(), ask()
        return known[1]

    def arrive(self, size: int, number: int = 0) -> None:
        """Count what has arrived of a request, or take it back, where negative."""
        with self._lock:
            self._arriving = _sum(self._arriving, size, number)

    def leave(self, size: int) -> None:
        """A request has ended and left so much, nobody knows where: it counts until the next look."""
        with self._lock:
            self._loose = _sum(self._loose, size, 1)

    def copy(self, size: int) -> None:
        """Count a copy, or take it back, where negative."""
        with self._lock:
            self._copied = max(0, self._copied + size)

    def measure(self, names: Iterable[str]) -> None:
        """Look at these folders only: they have just been filled, or removed."""
        for name in names:
            held = _held(settings.uploads() / name)
            with self._lock:
                self._put(name, held)
                if self._touched is not None:
                    self._touched.add(name)

    async def known(self) -> None:
        """Wait for the first look. Later ones go on meanwhile. Raises InputError, OSError."""
        looking = self._look()
        if looking is not None and self._looked is None:
            await asyncio.shield(asyncio.wrap_future(looking))  # others wait for the same one

    async def anew(self) -> None:
        """Wait for a look that is due, or going on. Raises InputError, OSError."""
        looking = self._look()
        if looking is not None:
            await asyncio.shield(asyncio.wrap_future(looking))

    def _look(self) -> Future[None] | None:
        """The look that is going on; it starts if one is due."""
        with self._lock:
            if self._looking is None:
                if self._looked is not None and time.monotonic() - self._looked < LOOK_SECONDS:
                    return None
                touched: set[str] = set()
                self._looking = threads.LOOKS.submit(self._see, touched)
                self._touched = touched
            return self._looking

    def _see(self, touched: set[str]) -> None:
        """Look at all folders. What changed meanwhile, and so is in `touched`, is known better already."""
        try:
            folders, loose = _everything(settings.uploads())
        except BaseException:
            self._end(touched)
            raise
        with self._lock:
            if self._touched is not touched:  # all was forgotten meanwhile
                return
            for name in touched:
                folders.pop(name, None)
            kept = {name: held for name, held in self._folders.items() if name in touched}
            self._folders, self._inside = {}, Held()
            for name, held in (folders | kept).items():
                self._put(name, held)
            # Parts of requests that have not ended lie there too, and are counted already.
            arriving = self._arriving
            self._loose = _sum(loose, -arriving.size, -arriving.files)
            self._looked = time.monotonic()
        self._end(touched)

    def _end(self, touched: set[str]) -> None:
        with self._lock:
            if self._touched is touched:
                self._looking = self._touched = None

    def _put(self, name: str, held: Held | None) -> None:
        """Note what a folder holds, None if it has gone; the lock is held."""
        before = self._folders.pop(name, Held())
        self._inside = _sum(self._inside, -before.size, -before.files)
        if held is not None:
            self._folders[name] = held
            self._inside = _sum(self._inside, held.size, held.files)


def _sum(held: Held, size: int, number: int) -> Held:
    return Held(max(0, held.size + size), max(0, held.files + number))


def _everything(top: Path) -> tuple[dict[str, Held], Held]:
    """All folders of uploads by name, and what else is there, but for copies: who makes them counts them."""
    folders, loose = {}, Held()
    for path in top.iterdir():
        if re.fullmatch(DIGEST, path.name) and (held := _held(path)) is not None:
            folders[path.name] = held
        elif path.name != COPIES:
            for facts in _below(path):
                loose = _sum(loose, max(LEAST_FILE, facts.st_size), 1)
    return folders, loose


def _below(path: Path) -> Iterable[os.stat_result]:
    with suppress(FileNotFoundError):  # a part that is complete now
        facts = path.lstat()
        return files.stats([path]) if stat.S_ISDIR(facts.st_mode) else [facts]
    return []


def _held(folder: Path) -> Held | None:
    """What is in a folder, without following links; None where there is none."""
    try:
        facts = folder.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(facts.st_mode):
        return None
    found = list(files.stats([folder]))
    size = sum(max(LEAST_FILE, file.st_size) for file in found)
    changed = max(file.st_mtime for file in (facts, *found))
    return Held(max(LEAST_FILE, size), max(1, len(found)), changed)
