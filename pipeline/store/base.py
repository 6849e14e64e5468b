"""The database itself: opening and repairing it, connections and transactions."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pipeline.errors import LabError, sentence
from pipeline.store import backup, repair
from pipeline.store.schema import SCHEMA_VERSION, bring_up, version_of
from pipeline.system import locks

# Errors caused by the disk or another process, not by us.
OUTSIDE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
FORBIDDEN = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
HEARD = "notice heard"
MENDED = "it is restored now as far as possible, so try again."


class Base:
    """A database file in a home. Every call opens its own connection, so any thread or process may use it.

    While it is used, `runs.lock` is shared; nobody uses it while it is created, changed or repaired.
    """

    def __init__(self, home: Path, *, check: bool = False) -> None:
        """Open it; with `check`, read all of it first. A damaged one is repaired, with a notice."""
        self.home = home
        self.path = home / "runs.db"
        self.lock = home / "runs.lock"
        self._tried_backup = -backup.EVERY_SECONDS
        try:
            for folder in (home, self.runs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _plainly(self.path):
                version = self._open(check)
        except OSError as error:
            raise LabError(sentence(error)) from error
        if version != SCHEMA_VERSION:
            raise LabError(
                f"{self.path} was written by another version of Olive Lab (schema {version}, this one"
                f" reads {SCHEMA_VERSION}); use that version, or set OLIVE_LAB_HOME to an empty folder."
            )

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.home / "runs"

    def folder(self, run: str, stage: str | None = None) -> Path:
        """Where a run, or a stage of it, keeps its log, events and workflow."""
        return self.runs / run / stage if stage else self.runs / run

    def back_up(self) -> None:
        """Copy the database if something was written since the last copy, and that copy is old enough."""
        now = time.monotonic()
        if now - self._tried_backup < backup.EVERY_SECONDS:
            return
        self._tried_backup = now
        with _plainly(self.path):
            if not backup.is_due(self.path):
                return
            with locks.shared(self.lock):
                damaged = backup.make(self.path)
        if damaged:
            self._mend()

    def notice(self) -> str | None:
        """What users should know about the database, until it is dismissed."""
        return self._fact(repair.NOTICE)

    def unheard(self) -> str | None:
        """The notice, but only the first time; `notice` still returns it."""
        text = self.notice()
        if text is None or self._fact(HEARD) == text:
            return None
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (HEARD, text))
        return text

    def dismiss(self) -> None:
        """Remove the notice."""
        with self._write() as db:
            db.execute("DELETE FROM facts WHERE name IN (?, ?)", (repair.NOTICE, HEARD))

    def _fact(self, name: str) -> str | None:
        with self._read() as db:
            row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return None if row is None else str(row["value"])

    def _open(self, check: bool) -> int:
        """Make sure that there is a database of this version without known damage; return its version."""
        with locks.shared(self.lock):
            if self.path.exists() and not backup.damage(self.path, thoroughly=check):
                with closing(self._connect()) as db:
                    version = version_of(db)
                if version >= SCHEMA_VERSION:
                    return version
        with locks.locked(self.lock):
            return self._put_right(check)

    def _put_right(self, thoroughly: bool) -> int:
        """Repair, create or upgrade the database; return its version. Needs the exclusive lock."""
        gone = not self.path.exists() or self.path.stat().st_size == 0
        if repair.is_lost(self.home, self.path) if gone else backup.damage(self.path, thoroughly=thoroughly):
            repair.mend(self.home, self.path)
        with closing(self._connect()) as db:
            self.path.chmod(0o600)
            db.execute("PRAGMA journal_mode = WAL")
            if version_of(db) >= SCHEMA_VERSION:
                return version_of(db)
            db.execute("BEGIN IMMEDIATE")
            version = bring_up(db, version_of(db))
            db.execute("COMMIT")
            return version

    def _mend(self) -> None:
        """Repair it if it is damaged, as soon as nobody uses it; another process may have done so already."""
        lock = locks.take_within(self.lock, backup.BUSY_SECONDS)
        if lock is None:
            return
        try:
            with _plainly(self.path):
                self._put_right(thoroughly=True)
        finally:
            os.close(lock)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        try:
            with _plainly(self.path), locks.shared(self.lock):
                if not self.path.exists():
                    raise Damaged(f"{self.path} is gone; {MENDED}")
                with closing(self._connect()) as db:
                    yield db
        except Damaged:
            self._mend()
            raise

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that takes the write lock at once, so that a claim cannot be made twice."""
        with self._read() as db:
            db.execute("BEGIN IMMEDIATE")  # closing a connection rolls back what was not committed
            yield db
            db.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        db = backup.connect(self.path)
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        return db


class Damaged(LabError):
    """The database turned out to be damaged, and is repaired now."""


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Raise LabError for a database that cannot be used, such as on a full disk or locked for too long."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if backup.is_damage(error):
            raise Damaged(f"{path}: {error}; {MENDED}") from error
        if code in BUSY:
            raise LabError(
                f"{path}: another program has kept it locked for {backup.BUSY_SECONDS:g} seconds; close what"
                " has it open, and try again."
            ) from error
        if code in FORBIDDEN and _is_full(path.parent):
            raise LabError(f"{path}: its disk can hold no more files; remove some, and try again.") from error
        if code in FORBIDDEN:
            raise LabError(
                f"{path}: {error}; make its folder writable, or set OLIVE_LAB_HOME to another one."
            ) from error
        if code not in OUTSIDE:
            raise
        raise LabError(
            f"{path}: {error}; check that its disk has space and is writable, and try again."
        ) from error


def _is_full(folder: Path) -> bool:
    """Whether its file system can hold no more files: SQLite then says only that it cannot open one."""
    with suppress(OSError):
        facts = os.statvfs(folder)
        return facts.f_files > 0 and facts.f_favail == 0
    return False
