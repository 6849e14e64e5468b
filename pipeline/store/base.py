"""The database itself: its schema, how an older one becomes today's, connections and transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline import locks
from pipeline.errors import LabError

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL,
    recipe TEXT NOT NULL, data TEXT NOT NULL, cancel_requested INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', place REAL NOT NULL DEFAULT 0, begun INTEGER NOT NULL DEFAULT 0,
    urgent INTEGER NOT NULL DEFAULT 0, runs_on TEXT NOT NULL DEFAULT 'any', notes TEXT NOT NULL DEFAULT '',
    tags TEXT NOT NULL DEFAULT '[]', deleted REAL
);
CREATE TABLE stages (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, position INTEGER NOT NULL, name TEXT NOT NULL,
    status TEXT NOT NULL, options TEXT NOT NULL, started REAL, finished REAL, seconds REAL,
    reused INTEGER NOT NULL DEFAULT 0, error TEXT, metrics TEXT NOT NULL DEFAULT '{}',
    artifacts TEXT NOT NULL DEFAULT '[]', device TEXT, attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, position), UNIQUE (run, name)
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX runs_by_status ON runs(status);
CREATE INDEX runs_by_owner ON runs(owner, begun);
CREATE INDEX stages_by_status ON stages(status);
"""
# What turns a database of the version before into one of this version.
CHANGES = {
    2: """
ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN place REAL NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN urgent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN runs_on TEXT NOT NULL DEFAULT 'any';
ALTER TABLE runs ADD COLUMN notes TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE runs ADD COLUMN deleted REAL;
ALTER TABLE stages ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX runs_by_owner ON runs(owner, begun);
UPDATE runs SET place = rowid;
""",
}

# What is wrong with the disk or another process, and not with us.
OUTSIDE = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB,
}  # fmt: skip


class Base:
    """A database file in a home. Every call opens its own connection, so any thread or process may use it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "runs.db"
        for folder in (home, self.runs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite does not wait for others when it turns a new file to WAL mode, so one opens it at a time.
        with locks.locked(home / "runs.lock"):
            with self._read() as db:
                version = _version(db)
                if version == 0:
                    db.execute("PRAGMA journal_mode = WAL")
            if version < SCHEMA_VERSION:
                with self._write() as db:
                    version = _bring_up(db, version)
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

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with _plainly(self.path), closing(self._connect()) as db:
            yield db

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that takes the write lock at once, so that a claim cannot be made twice."""
        with _plainly(self.path), closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")  # closing a connection rolls back what was not committed
            yield db
            db.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        new = not self.path.exists()
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        if new:
            self.path.chmod(0o600)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        return db


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Say what the user can do about a database that cannot be used: a full disk, or a lock held too long."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in OUTSIDE:
            raise
        raise LabError(
            f"{path}: {error}; see that its disk has space and can be written, and try again."
        ) from error


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _bring_up(db: sqlite3.Connection, version: int) -> int:
    """Create the tables, or change those of an older version one version at a time."""
    steps = [SCHEMA] if version == 0 else [CHANGES[to] for to in range(version + 1, SCHEMA_VERSION + 1)]
    for statement in ";".join(steps).split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return SCHEMA_VERSION
