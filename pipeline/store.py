"""The one record of all runs: SQLite in WAL mode, and a folder for each run. The only SQL of the project.

The web process and the command line add queued rows and cancel requests; the worker writes the rest.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline import locks
from pipeline.errors import InputError, LabError
from pipeline.run import CANCELED, DONE, ENDED, PUBLISH, QUEUED, RETRYABLE, RUNNING, Run, StageRun

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL,
    recipe TEXT NOT NULL, data TEXT NOT NULL, cancel_requested INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE stages (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, position INTEGER NOT NULL, name TEXT NOT NULL,
    status TEXT NOT NULL, options TEXT NOT NULL, started REAL, finished REAL, seconds REAL,
    reused INTEGER NOT NULL DEFAULT 0, error TEXT, metrics TEXT NOT NULL DEFAULT '{}',
    artifacts TEXT NOT NULL DEFAULT '[]', device TEXT,
    PRIMARY KEY (run, position), UNIQUE (run, name)
);
CREATE INDEX runs_by_status ON runs(status);
CREATE INDEX stages_by_status ON stages(status);
"""

# What is wrong with the disk or another process, and not with us.
OUTSIDE = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB,
}  # fmt: skip


class Store:
    """Runs and their stages. Every call opens its own connection, so any thread or process may use it."""

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
            if version == 0:
                with self._write() as db:
                    version = _create(db)
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

    # -- what the page and the command line do -------------------------------------------------------

    def add(self, name: str, recipe: dict[str, Any], data: Path, stages: dict[str, dict[str, Any]]) -> str:
        """Queue a run and return its id, such as `20261122-143000-7f3a9c`: sortable, and not guessable."""
        run = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self.folder(run).mkdir(mode=0o700)
        with self._write() as db:
            db.execute(
                "INSERT INTO runs (id, name, status, created, recipe, data) VALUES (?, ?, ?, ?, ?, ?)",
                (run, name, QUEUED, time.time(), json.dumps(recipe), str(data)),
            )
            for position, (stage, options) in enumerate(stages.items()):
                _insert_stage(db, run, position, stage, options)
        return run

    def add_publish(self, run: str, options: dict[str, Any]) -> str:
        """Queue the publishing of a run's result; return the name of the new stage row."""
        with self._write() as db:
            rows = db.execute("SELECT position, name FROM stages WHERE run = ?", (run,)).fetchall()
            count = sum(row["name"].split("-")[0] == PUBLISH for row in rows)
            name = f"{PUBLISH}-{count + 1}" if count else PUBLISH
            _insert_stage(db, run, max(row["position"] for row in rows) + 1, name, options)
        return name

    def request_cancel(self, run: str) -> None:
        """Ask for the end of a run. A queued one ends at once; the worker ends a running one."""
        with self._write() as db:
            status = db.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()["status"]
            busy = db.execute(
                "SELECT COUNT(*) FROM stages WHERE run = ? AND status = ?", (run, RUNNING)
            ).fetchone()[0]
            if busy or status == RUNNING:
                db.execute("UPDATE runs SET cancel_requested = 1 WHERE id = ?", (run,))
            elif status == QUEUED:
                _end(db, run, CANCELED)
            if status in ENDED and not _cancel_queued(db, run) and not busy:
                raise LabError(f"Run {run} has already ended ({status}).")

    def retry(self, run: str) -> None:
        """Queue a run again from the first stage that did not end well. Raises LabError if none did."""
        with self._write() as db:
            status = db.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()["status"]
            if status not in RETRYABLE:
                raise LabError(
                    f"Run {run} is {status}; only a failed, canceled or interrupted one is retried."
                )
            db.execute("UPDATE runs SET status = ?, cancel_requested = 0 WHERE id = ?", (QUEUED, run))
            db.execute(
                "UPDATE stages SET status = ?, started = NULL, finished = NULL, seconds = NULL, error = NULL,"
                " reused = 0 WHERE run = ? AND status != ? AND name NOT LIKE 'publish%'",
                (QUEUED, run, DONE),
            )

    def get(self, run: str) -> Run:
        """One run, by its id or by the unambiguous beginning or end of it. Raises InputError."""
        with self._read() as db:
            rows = db.execute("SELECT * FROM runs WHERE id = ?", (run,)).fetchall()
            if not rows and run:
                query = "SELECT * FROM runs WHERE instr(id, ?) = 1 OR id LIKE ? ESCAPE '\\'"
                ending = run.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
                rows = db.execute(query, (run, f"%-{ending}")).fetchall()
            if len(rows) != 1:
                what = "is the beginning of several runs" if rows else "no such run"
                raise InputError(f"{run}: {what}; `python -m pipeline list` shows them")
            return _run(rows[0], _stages(db, [rows[0]["id"]]))

    def list(self, limit: int = 1000) -> list[Run]:
        """Runs, newest first."""
        with self._read() as db:
            rows = db.execute(
                "SELECT * FROM runs ORDER BY created DESC, id DESC LIMIT ?", (limit,)
            ).fetchall()
            stages = _stages(db, [row["id"] for row in rows])
            return [_run(row, stages) for row in rows]

    # -- what the worker does ------------------------------------------------------------------------

    def claim(self, device: str) -> tuple[str, str] | None:
        """Take the next stage of the oldest queued run: (run, stage), now running; None if there is none."""
        with self._write() as db:
            row = db.execute(
                "SELECT id FROM runs WHERE status = ? ORDER BY created, id LIMIT 1", (QUEUED,)
            ).fetchone()
            return None if row is None else _start_next(db, row["id"], device)

    def claim_next(self, run: str, device: str) -> str | None:
        """Take the next stage of a run that holds `device`; None when it has no more, and so is done."""
        with self._write() as db:
            if _wants_cancel(db, run) and _next(db, run):
                _end(db, run, CANCELED)
                return None
            started = _start_next(db, run, device)
            return started[1] if started else None

    def claim_publish(self) -> tuple[str, str] | None:
        """Take the oldest queued publish whose run is done: (run, stage)."""
        with self._write() as db:
            row = db.execute(
                "SELECT run, stages.name FROM stages JOIN runs ON runs.id = run WHERE stages.status = ?"
                " AND stages.name LIKE 'publish%' AND runs.status = ? ORDER BY stages.rowid LIMIT 1",
                (QUEUED, DONE),
            ).fetchone()
            if row is None:
                return None
            _mark_running(db, row["run"], row["name"], None)
            return row["run"], row["name"]

    def finish(
        self,
        run: str,
        stage: str,
        status: str,
        *,
        error: str | None = None,
        seconds: float | None = None,
        reused: bool = False,
        metrics: dict[str, Any] | None = None,
        artifacts: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Record how a stage ended. A stage that is not done ends its run with the same status."""
        with self._write() as db:
            db.execute(
                "UPDATE stages SET status = ?, finished = ?, seconds = ?, reused = ?, error = ?, metrics = ?,"
                " artifacts = ? WHERE run = ? AND name = ?",
                (
                    status,
                    time.time(),
                    seconds,
                    int(reused),
                    error,
                    json.dumps(metrics or {}),
                    json.dumps(artifacts or []),
                    run,
                    stage,
                ),
            )
            if stage.startswith(PUBLISH):
                db.execute("UPDATE runs SET cancel_requested = 0 WHERE id = ?", (run,))
            elif status != DONE:
                _end(db, run, status)

    def running(self) -> Sequence[tuple[str, str, str | None]]:
        """(run, stage, device) of every stage marked running, for a worker that has just started."""
        with self._read() as db:
            rows = db.execute("SELECT run, name, device FROM stages WHERE status = ?", (RUNNING,)).fetchall()
            return [(row["run"], row["name"], row["device"]) for row in rows]

    def between_stages(self) -> Sequence[str]:
        """Runs marked running of which no stage is: their worker died between two stages."""
        with self._read() as db:
            rows = db.execute(
                "SELECT id FROM runs WHERE status = ? AND NOT EXISTS"
                " (SELECT 1 FROM stages WHERE run = runs.id AND stages.status = ?)",
                (RUNNING, RUNNING),
            ).fetchall()
            return [row["id"] for row in rows]

    def requeue(self, run: str) -> None:
        """Put a run back into the queue as it is, or end it if that was asked for."""
        with self._write() as db:
            if _wants_cancel(db, run) and _next(db, run):
                _end(db, run, CANCELED)
            else:
                db.execute("UPDATE runs SET status = ? WHERE id = ?", (QUEUED, run))

    def cancels(self) -> set[str]:
        """Runs whose cancellation was asked for."""
        with self._read() as db:
            return {row["id"] for row in db.execute("SELECT id FROM runs WHERE cancel_requested = 1")}

    def waiting(self) -> bool:
        """Whether there is work for a worker: something queued, or running and so to be looked after."""
        with self._read() as db:
            runs = db.execute(
                "SELECT 1 FROM runs WHERE status IN (?, ?) LIMIT 1", (QUEUED, RUNNING)
            ).fetchone()
            publish = db.execute(
                "SELECT 1 FROM stages JOIN runs ON runs.id = run WHERE runs.status = ?"
                " AND stages.status IN (?, ?) LIMIT 1",
                (DONE, QUEUED, RUNNING),
            ).fetchone()
            return bool(runs or publish)

    # -- connections ---------------------------------------------------------------------------------

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


def _create(db: sqlite3.Connection) -> int:
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return SCHEMA_VERSION


def _insert_stage(
    db: sqlite3.Connection, run: str, position: int, name: str, options: dict[str, Any]
) -> None:
    db.execute(
        "INSERT INTO stages (run, position, name, status, options) VALUES (?, ?, ?, ?, ?)",
        (run, position, name, QUEUED, json.dumps(options)),
    )


def _mark_running(db: sqlite3.Connection, run: str, stage: str, device: str | None) -> None:
    db.execute(
        "UPDATE stages SET status = ?, started = ?, finished = NULL, error = NULL, device = ?"
        " WHERE run = ? AND name = ?",
        (RUNNING, time.time(), device, run, stage),
    )


def _end(db: sqlite3.Connection, run: str, status: str) -> None:
    """End a run that is not done; what it had still to do is canceled with it."""
    db.execute("UPDATE runs SET status = ?, cancel_requested = 0 WHERE id = ?", (status, run))
    _cancel_queued(db, run)


def _cancel_queued(db: sqlite3.Connection, run: str) -> int:
    """Cancel the run's stages that have not begun; return how many."""
    query = "UPDATE stages SET status = ? WHERE run = ? AND status = ?"
    return db.execute(query, (CANCELED, run, QUEUED)).rowcount


def _wants_cancel(db: sqlite3.Connection, run: str) -> bool:
    return bool(db.execute("SELECT cancel_requested FROM runs WHERE id = ?", (run,)).fetchone()[0])


def _next(db: sqlite3.Connection, run: str) -> str | None:
    """The run's next queued stage."""
    row = db.execute(
        "SELECT name FROM stages WHERE run = ? AND status = ? AND name NOT LIKE 'publish%'"
        " ORDER BY position LIMIT 1",
        (run, QUEUED),
    ).fetchone()
    return row["name"] if row else None


def _start_next(db: sqlite3.Connection, run: str, device: str) -> tuple[str, str] | None:
    """Mark the run's next queued stage running, or the run done if it has none."""
    name = _next(db, run)
    if name is None:
        db.execute("UPDATE runs SET status = ?, cancel_requested = 0 WHERE id = ?", (DONE, run))
        return None
    db.execute("UPDATE runs SET status = ? WHERE id = ?", (RUNNING, run))
    _mark_running(db, run, name, device)
    return run, name


def _stages(db: sqlite3.Connection, runs: list[str]) -> dict[str, list[StageRun]]:
    """The stages of these runs, by run."""
    found: dict[str, list[StageRun]] = {run: [] for run in runs}
    marks = ", ".join("?" for _ in runs)
    query = f"SELECT * FROM stages WHERE run IN ({marks}) ORDER BY run, position"  # noqa: S608
    for row in db.execute(query, runs):
        found[row["run"]].append(
            StageRun(
                name=row["name"],
                status=row["status"],
                options=json.loads(row["options"]),
                started=row["started"],
                finished=row["finished"],
                seconds=row["seconds"],
                reused=bool(row["reused"]),
                error=row["error"],
                metrics=json.loads(row["metrics"]),
                artifacts=json.loads(row["artifacts"]),
            )
        )
    return found


def _run(row: sqlite3.Row, stages: dict[str, list[StageRun]]) -> Run:
    return Run(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        created=row["created"],
        recipe=json.loads(row["recipe"]),
        data=row["data"],
        stages=tuple(stages[row["id"]]),
        cancel_requested=bool(row["cancel_requested"]),
    )
