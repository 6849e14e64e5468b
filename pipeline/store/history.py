"""Reading, annotating and deleting recorded runs."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.store.base import Base
from pipeline.store.records import run_of, stages_of
from pipeline.store.run import ENDED, QUEUED, RUNNING, Run
from pipeline.system.files import to_json

# Which runs a list has: those with an artifact of a kind, published to somewhere, of groups that begin so.
SUCH = (
    "EXISTS (SELECT 1 FROM stages, json_each(stages.artifacts) AS made WHERE run = runs.id"
    " AND stages.status = 'done' AND json_extract(made.value, '$.kind') = ?)",
    "EXISTS (SELECT 1 FROM stages WHERE run = runs.id AND stages.status = 'done'"
    " AND stages.name LIKE 'publish%' AND json_extract(options, '$.to') = ?)",
    "instr(json_extract(recipe, '$.group'), ?) = 1",
)


@dataclass(frozen=True)
class Inventory:
    """What runs refer to, including deleted runs that can be restored. Paths as the database has them."""

    runs: frozenset[str]
    data: frozenset[str]  # paths of datasets that runs were given
    artifacts: dict[str, set[str]]  # paths of artifacts, and the runs that refer to each
    running: frozenset[str]  # names of the stages that run now
    # Base models, as recipes name them, of runs of which something is to come; none unless asked for.
    models: dict[str, set[str]]


class History(Base):
    """Runs as they were recorded."""

    def get(self, run: str, *, whole: bool = False) -> Run:
        """One run, by its id or an unambiguous beginning or end of it; deleted ones only by their full id.

        With `whole` the id alone names it, and no run is looked through for others. Raises InputError.
        """
        with self._read() as db:
            ids = [run] if whole else _named(db, run)
            row = db.execute("SELECT * FROM runs WHERE id = ?", ids).fetchone() if len(ids) == 1 else None
            if row is None:
                what = "is the beginning of several runs" if len(ids) > 1 else "no such run"
                raise InputError(f"{display.line(run)}: {what}; `{settings.command()} list` shows them")
            return run_of(row, self.home, stages_of(db, self.home, ids)[row["id"]])

    def list(
        self, limit: int = 1000, *, deleted: bool = False, artifact: str = "", to: str = "", group: str = ""
    ) -> list[Run]:
        """Runs, newest first; with `deleted`, only the deleted ones.

        Only those are read, which takes long, that have an `artifact` of this kind, were published `to` this
        publisher, or are of a group of which `group` is the beginning.
        """
        wanted = [(sql, value) for sql, value in zip(SUCH, (artifact, to, group), strict=True) if value]
        which = " AND ".join(
            ["deleted IS " + ("NOT NULL" if deleted else "NULL"), *[sql for sql, _ in wanted]]
        )
        with self._read() as db:
            rows = db.execute(
                f"SELECT * FROM runs WHERE {which} ORDER BY rowid DESC LIMIT ?",  # noqa: S608
                (*[value for _, value in wanted], limit),
            ).fetchall()
            stages = stages_of(db, self.home, [row["id"] for row in rows])
            return [run_of(row, self.home, stages[row["id"]]) for row in rows]

    def newest(self, limit: int) -> Sequence[tuple[str, str]]:
        """Ids of the newest runs, newest first, and their status; nothing else is read."""
        query = "SELECT id, status FROM runs WHERE deleted IS NULL ORDER BY rowid DESC LIMIT ?"
        with self._read() as db:
            return [(row["id"], row["status"]) for row in db.execute(query, (limit,))]

    def models(self) -> dict[str, float]:
        """Base models as recipes name them, and when the newest run of each was queued."""
        query = (
            "SELECT json_extract(recipe, '$.model') AS model, MAX(created) AS used FROM runs"
            " WHERE deleted IS NULL GROUP BY model"
        )
        with self._read() as db:
            return {str(row["model"] or ""): row["used"] for row in db.execute(query)}

    def annotate(self, run: str, *, notes: str | None = None, tags: Sequence[str] | None = None) -> None:
        """Keep notes and tags on a run; None leaves what is there."""
        with self._write() as db:
            if notes is not None:
                db.execute("UPDATE runs SET notes = ? WHERE id = ?", (notes, run))
            if tags is not None:
                db.execute("UPDATE runs SET tags = ? WHERE id = ?", (to_json(list(tags)), run))

    def delete(self, run: str) -> None:
        """Mark an ended run as deleted. Raises LabError if it is queued, running or being published."""
        with self._write() as db:
            status = db.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()["status"]
            if status not in ENDED:
                raise LabError(f"Run {run} is {status}; cancel it before it is deleted.")
            if _busy(db, run):
                raise LabError(f"Run {run} is being published; delete it when that has ended.")
            # A clock that was set back must not make this look older: the time is at least that of the newest
            # record.
            db.execute(
                "UPDATE runs SET deleted = MAX(?, (SELECT MAX(created) FROM runs),"
                " (SELECT COALESCE(MAX(finished), 0) FROM stages)) WHERE id = ?",
                (time.time(), run),
            )

    def restore(self, run: str) -> None:
        """Restore a deleted run."""
        with self._write() as db:
            db.execute("UPDATE runs SET deleted = NULL WHERE id = ?", (run,))

    def deleted_before(self, before: float) -> Sequence[str]:
        """Ids of runs that were deleted at `before` or earlier, those first that were deleted first."""
        with self._read() as db:
            query = "SELECT id FROM runs WHERE deleted <= ? ORDER BY deleted"
            return [row["id"] for row in db.execute(query, (before,))]

    def forget(self, run: str, before: float) -> bool:
        """Remove the rows of a run that was deleted at `before` or earlier; the caller deletes its folder.

        False if it was not deleted, was restored meanwhile, or is queued or running.
        """
        with self._write() as db:
            if _busy(db, run):
                return False
            query = "DELETE FROM runs WHERE id = ? AND deleted <= ?"
            return db.execute(query, (run, before)).rowcount == 1

    def inventory(self, *, models: bool = False) -> Inventory:
        """What runs refer to; with `models`, which takes longer, their base models too."""
        with self._read() as db:
            return _inventory(db, models)

    @contextmanager
    def held_still(self, *, models: bool = False) -> Iterator[Inventory]:
        """`inventory`, while nobody can queue a run, start a stage, or record how one ended."""
        with self._write() as db:
            yield _inventory(db, models)


def _named(db: sqlite3.Connection, run: str) -> list[str]:
    """The id that is meant; two if it is not clear, none if there is none."""
    if not run or db.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone():
        return [run] if run else []
    ending = run.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    query = (
        "SELECT id FROM runs WHERE deleted IS NULL AND (instr(id, ?) = 1 OR id LIKE ? ESCAPE '\\') LIMIT 2"
    )
    return [row["id"] for row in db.execute(query, (run, f"%-{ending}"))]


def _busy(db: sqlite3.Connection, run: str) -> bool:
    query = "SELECT 1 FROM stages WHERE run = ? AND status IN (?, ?)"
    return db.execute(query, (run, QUEUED, RUNNING)).fetchone() is not None


def _inventory(db: sqlite3.Connection, with_models: bool) -> Inventory:
    runs = db.execute("SELECT id, data FROM runs").fetchall()
    # Files that stages read besides the data, by the options' name for them.
    files = db.execute(
        "SELECT DISTINCT json_extract(options, '$.data') AS data FROM stages"
        " WHERE json_extract(options, '$.data') != ''"
    ).fetchall()
    artifacts: dict[str, set[str]] = {}
    for row in db.execute("SELECT run, artifacts FROM stages WHERE artifacts != '[]'"):
        for artifact in json.loads(row["artifacts"]):
            artifacts.setdefault(artifact["path"], set()).add(row["run"])
    running = db.execute("SELECT DISTINCT name FROM stages WHERE status = ?", (RUNNING,))
    return Inventory(
        runs=frozenset(row["id"] for row in runs),
        data=frozenset(row["data"] for row in (*runs, *files)),
        artifacts=artifacts,
        running=frozenset(row["name"] for row in running),
        models=_models(db) if with_models else {},
    )


def _models(db: sqlite3.Connection) -> dict[str, set[str]]:
    """Which runs that are queued or running name each base model. Their whole recipes are read for that."""
    found: dict[str, set[str]] = {}
    open_ = "SELECT DISTINCT run FROM stages WHERE status IN (?, ?)"
    for row in db.execute(f"SELECT id, recipe FROM runs WHERE id IN ({open_})", (QUEUED, RUNNING)):  # noqa: S608
        found.setdefault(str(json.loads(row["recipe"]).get("model", "")), set()).add(row["id"])
    return found
