"""Copies of the database, and whether one is whole."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline import display

EVERY_SECONDS = 120.0
BUSY_SECONDS = 10.0  # to wait for another writer
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def paths(path: Path) -> list[Path]:
    """Where the copies of a database are, newest first."""
    return [path.with_name(f"{path.name}.backup"), path.with_name(f"{path.name}.backup-before")]


def is_due(path: Path) -> bool:
    """Whether something was written since the newest copy, and that copy is old enough."""
    newest = paths(path)[0]
    if not newest.exists():
        return True
    made = newest.stat().st_mtime
    written = path.stat().st_mtime > made or _waits(path.with_name(f"{path.name}-wal"))
    return written and abs(time.time() - made) > EVERY_SECONDS


def _waits(log: Path) -> bool:
    """Whether the write-ahead log has data; the last connection that closes removes it."""
    try:
        return log.stat().st_size > 0
    except FileNotFoundError:
        return False


def make(path: Path) -> str | None:
    """Copy the database in a consistent state; the previous copy is kept too.

    If the database is damaged, returns what is wrong and leaves the copies unchanged.
    """
    newest, before = paths(path)
    part = path.with_name(f".{newest.name}.part")
    began = time.time()
    try:
        part.unlink(missing_ok=True)
        with closing(connect(path)) as source, closing(connect(part)) as copy:
            part.chmod(0o600)
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # else a copy would be two files
        wrong = damage(part, thoroughly=True)
        if wrong is None:
            _settle(part)
            os.utime(part, (began, began))
            if newest.exists():
                newest.replace(before)
            part.replace(newest)
        return wrong
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return str(error)
    finally:
        part.unlink(missing_ok=True)


def damage(path: Path, *, thoroughly: bool) -> str | None:
    """What is wrong with a database, None if it is whole. Raises sqlite3.Error if that is unknown."""
    try:
        with closing(connect(path)) as db:
            db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            found = db.execute("PRAGMA quick_check").fetchone()[0] if thoroughly else "ok"
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return str(error)
    return None if found == "ok" else str(found)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the file is damaged, not locked or on a full disk."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in DAMAGE


class _Connection(sqlite3.Connection):
    """Takes every text: errors and names may have half surrogates, which SQLite does not."""

    def execute(self, sql: str, given: Sequence[Any] = (), /) -> sqlite3.Cursor:  # type: ignore[override]
        """As SQLite's, for values by position."""
        return super().execute(sql, [display.valid(one) if isinstance(one, str) else one for one in given])


def connect(path: Path) -> sqlite3.Connection:
    """A connection without automatic transactions."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, factory=_Connection)
    db.row_factory = sqlite3.Row
    return db


def _settle(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
