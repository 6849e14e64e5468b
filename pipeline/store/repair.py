"""Repair: set a damaged database aside, restore the newest good copy, read the rest from run folders."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.store import backup, run_file
from pipeline.store.records import insert_run, insert_stage, inside
from pipeline.store.run import (
    CANCELED,
    DONE,
    EVENTS,
    FAILED,
    INTERRUPTED,
    LOCK,
    PUBLISH,
    QUEUED,
    RESULT,
    RUNNING,
)
from pipeline.store.schema import bring_up, version_of
from pipeline.system import hardware, locks
from pipeline.system.files import to_json

NOTICE = "notice"  # in `facts`: what users should know
REBUILT = "The record of this run was lost and read again from its folder; retry it."

# What facts in a file lead to that are not those of a run; a full disk is something else.
UNFIT = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError,
    sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    *run_file.UNREAD,
)  # fmt: skip


def mend(home: Path, path: Path) -> None:
    """Replace a damaged or lost database by a whole one, and leave a notice.

    Nobody else may use the database meanwhile. The damaged one is touched only when the new one is complete,
    so a full disk leaves everything unchanged.
    """
    part = path.with_name(f".{path.name}.part")
    good = next((copy for copy in backup.paths(path) if _is_good(copy)), None)
    since = good.stat().st_mtime if good else 0.0
    try:
        _remove(part)
        if good:
            shutil.copyfile(good, part)
        with closing(backup.connect(part)) as db:
            part.chmod(0o600)
            bring_up(db, version_of(db))
            db.execute("BEGIN IMMEDIATE")
            added, unfit = _complete(db, home, since)
            aside = _free_name(path) if path.exists() else None
            text = _notice(path, aside, since, added, unfit)
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (NOTICE, text))
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # First the write-ahead log: left behind, it would be applied to the new database.
        for suffix in ("-wal", "-shm", ""):
            file = path.with_name(f"{path.name}{suffix}")
            if file.exists() and aside is not None:
                file.replace(aside.with_name(f"{aside.name}{suffix}"))
            file.unlink(missing_ok=True)
        part.replace(path)
    finally:
        _remove(part)


def is_lost(home: Path, path: Path) -> bool:
    """Whether a home without a database had one."""
    if any(copy.exists() for copy in backup.paths(path)):
        return True
    return next((home / "runs").glob(f"[!.]*/{run_file.FILE}"), None) is not None


def _is_good(copy: Path) -> bool:
    return copy.exists() and backup.damage(copy, thoroughly=True) is None


def _free_name(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    return aside if not aside.exists() else aside.with_name(f"{aside.name}-{time.time_ns()}")


def _remove(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        part.with_name(f"{part.name}{suffix}").unlink(missing_ok=True)


def _notice(path: Path, aside: Path | None, since: float, added: int, unfit: int) -> str:
    now, kept = display.moment(time.time()), display.moment(since)
    words = [f"The database of runs was {'damaged' if aside else 'missing'} on {now}."]
    if since:
        words.append(f"It is restored as of {kept}; what is newer was read from the run folders")
    else:
        words.append("There was no copy of it, so it was read from the run folders")
    words[-1] += f" ({added} {'run' if added == 1 else 'runs'} added)."
    if unfit:
        words.append(f"{unfit} {'folder' if unfit == 1 else 'folders'} of runs could not be read.")
    words.append("Notes, tags and cancellations may be missing.")
    if aside:
        words.append(f"The damaged file is kept as {aside.name}.")
    return " ".join(words)


def _complete(db: sqlite3.Connection, home: Path, since: float) -> tuple[int, int]:
    """Add runs found only in folders, and what stages did after `since`; return how many runs were added, and
    how many could not be read, which keeps no other."""
    known = {row["id"] for row in db.execute("SELECT id FROM runs")}
    found, unfit = run_file.all_of(home / "runs")
    added = 0
    for facts in found:
        db.execute("SAVEPOINT one")
        try:
            added += _take_over(db, home, facts, known, since)
        except UNFIT:
            db.execute("ROLLBACK TO one")
            unfit += 1
        db.execute("RELEASE one")
    return added, unfit


def _take_over(
    db: sqlite3.Connection, home: Path, facts: dict[str, Any], known: set[str], since: float
) -> bool:
    """Take over a run from its folder; return whether it is a new one."""
    run = facts["id"]
    is_new = run not in known
    if is_new:
        insert_run(db, facts)
    _insert_stages(db, facts)
    if _catch_up(db, home, run, 0.0 if is_new else since) or is_new:
        _sum_up(db, run)
    return is_new


def _insert_stages(db: sqlite3.Connection, facts: dict[str, Any]) -> None:
    query = "SELECT name FROM stages WHERE run = ?"
    known = {row["name"] for row in db.execute(query, (facts["id"],))}
    for position, (name, options) in enumerate(facts["stages"].items()):
        if name not in known:
            insert_stage(db, facts["id"], position, name, options)


def _catch_up(db: sqlite3.Connection, home: Path, run: str, since: float) -> bool:
    """Take over newer facts from the folders of a run's stages; return whether there were any."""
    changed = False
    query = "SELECT name, status, device FROM stages WHERE run = ? AND status != ?"
    for row in db.execute(query, (run, DONE)).fetchall():
        found = _found(home / "runs" / run / row["name"], since, row["status"])
        if found is None:
            continue
        changed = True
        artifacts = [{**given, "path": inside(home, given["path"])} for given in found.get("artifacts", [])]
        device = None if row["name"].startswith(PUBLISH) else row["device"] or hardware.devices()[0]
        db.execute(
            "UPDATE stages SET status = ?, error = ?, seconds = ?, started = COALESCE(started, ?),"
            " finished = ?, reused = ?, metrics = ?, artifacts = ?, device = ? WHERE run = ? AND name = ?",
            (
                found["status"], found.get("error"), found.get("seconds"),
                found["time"] - (found.get("seconds") or 0.0),
                None if found["status"] == RUNNING else found["time"], int(found.get("reused", False)),
                to_json(found.get("metrics", {})), to_json(artifacts), device, run, row["name"],
            ),
        )  # fmt: skip
    return changed


def _found(folder: Path, since: float, status: str) -> dict[str, Any] | None:
    """A stage's status according to its folder, with `time`; None if that is nothing new."""
    result, told = folder / RESULT, folder / EVENTS
    if locks.held(folder / LOCK):
        return {"status": RUNNING, "time": _age(told)}
    facts = run_file.read(result)
    if facts is not None and _age(result) > since:
        return {**facts, "time": _age(result)}
    if status == RUNNING or _age(told) > since:
        return {"status": INTERRUPTED, "error": REBUILT, "time": _age(told)}
    return None


def _age(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _sum_up(db: sqlite3.Connection, run: str) -> None:
    """Make a run's status agree with those of its stages."""
    query = "SELECT status FROM stages WHERE run = ? AND name NOT LIKE 'publish%' ORDER BY position"
    found = [row["status"] for row in db.execute(query, (run,))]
    badly = next((status for status in found if status in (FAILED, INTERRUPTED, CANCELED)), None)
    if RUNNING in found:
        status = RUNNING
    elif badly:
        status = badly
        query = "UPDATE stages SET status = ? WHERE run = ? AND status = ?"
        db.execute(query, (CANCELED, run, QUEUED))
    else:
        status = QUEUED if QUEUED in found else DONE
    begun = status == QUEUED and DONE in found
    db.execute("UPDATE runs SET status = ?, urgent = ? WHERE id = ?", (status, int(begun), run))
