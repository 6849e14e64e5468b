"""Folders for what a process makes, of which nothing stays, however that process ends.

A process that checks what somebody brought (`runs.check_pool`) is killed when nobody waits for it any more,
and has no time to remove what it was making. So whoever starts it gives it a folder in the home, where kept
files are moved from, with one for temporary files in it, and removes that after it. Who starts it may be
killed too: a folder that nobody holds is removed when the app starts, and with results that no run uses.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from pipeline import settings
from pipeline.system import locks

FOLDER = "scratch"
LOCK = "lock"  # in each folder


class Scratch:
    """A folder in the home, with one for temporary files in it, until `remove`. Raises OSError."""

    def __init__(self, home: Path) -> None:
        self.folder, held = _held(home)
        self._held: int | None = held
        temporary = self.folder / "tmp"
        try:
            temporary.mkdir(mode=0o700)
        except BaseException:
            self.remove()
            raise
        self.environment = {settings.SCRATCH: str(self.folder), "TMPDIR": str(temporary)}

    def remove(self) -> None:
        """Remove it, once; for who has seen the end of the process that wrote there."""
        held, self._held = self._held, None
        if held is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(held)


def room(otherwise: Path) -> Path:
    """Where this process makes what it keeps or removes later: its scratch folder if it was given one."""
    given = settings.scratch()
    return otherwise if given is None else given


def clear(home: Path) -> None:
    """Remove the folders that nobody holds any more."""
    for lock in (home / FOLDER).glob(f"*/{LOCK}"):
        held = locks.take(lock)
        if held is not None:
            shutil.rmtree(lock.parent, ignore_errors=True)
            os.close(held)


def _held(home: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds it until closed."""
    while True:
        folder = home / FOLDER / secrets.token_hex(4)
        try:
            held = locks.take(folder / LOCK)
        except OSError:  # no more files can be open; `clear` looks only at folders with a lock
            with suppress(OSError):
                folder.rmdir()
            raise
        if held is not None:
            if (folder / LOCK).exists():
                return folder, held
            os.close(held)  # `clear` took it for one that is left
