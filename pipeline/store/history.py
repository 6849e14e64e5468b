"""What is asked of runs that are there, and what people write on them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from pipeline.errors import InputError, LabError
from pipeline.run import ENDED, RUNNING, Run
from pipeline.store.base import Base
from pipeline.store.rows import run_of, stages_of


class History(Base):
    """Runs as they were recorded."""

    def get(self, run: str) -> Run:
        """One run, by its id or by the unambiguous beginning or end of it; deleted ones by their whole id.

        Raises InputError.
        """
        with self._read() as db:
            rows = db.execute("SELECT * FROM runs WHERE id = ?", (run,)).fetchall()
            if not rows and run:
                query = (
                    "SELECT * FROM runs WHERE deleted IS NULL AND (instr(id, ?) = 1 OR id LIKE ? ESCAPE '\\')"
                )
                ending = run.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
                rows = db.execute(query, (run, f"%-{ending}")).fetchall()
            if len(rows) != 1:
                what = "is the beginning of several runs" if rows else "no such run"
                raise InputError(f"{run}: {what}; `python -m pipeline list` shows them")
            return run_of(rows[0], self.home, stages_of(db, self.home, [rows[0]["id"]])[rows[0]["id"]])

    def list(self, limit: int = 1000, *, deleted: bool = False) -> list[Run]:
        """Runs, newest first; those that are deleted only where they are asked for, and then only they."""
        which = "NOT NULL" if deleted else "NULL"
        with self._read() as db:
            rows = db.execute(
                f"SELECT * FROM runs WHERE deleted IS {which} ORDER BY rowid DESC LIMIT ?",  # noqa: S608
                (limit,),
            ).fetchall()
            stages = stages_of(db, self.home, [row["id"] for row in rows])
            return [run_of(row, self.home, stages[row["id"]]) for row in rows]

    def annotate(self, run: str, *, notes: str | None = None, tags: Sequence[str] | None = None) -> None:
        """Keep notes and tags on a run; None leaves what is there."""
        with self._write() as db:
            if notes is not None:
                db.execute("UPDATE runs SET notes = ? WHERE id = ?", (notes, run))
            if tags is not None:
                db.execute("UPDATE runs SET tags = ? WHERE id = ?", (json.dumps(list(tags)), run))

    def delete(self, run: str) -> None:
        """Put a run that has ended among the deleted ones. Raises LabError if it has not ended."""
        with self._write() as db:
            row = db.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()
            busy = db.execute("SELECT 1 FROM stages WHERE run = ? AND status = ?", (run, RUNNING)).fetchone()
            if busy or row["status"] not in ENDED:
                raise LabError(f"Run {run} is {row['status']}; cancel it before it is deleted.")
            db.execute("UPDATE runs SET deleted = ? WHERE id = ?", (time.time(), run))

    def restore(self, run: str) -> None:
        """Take a run back from among the deleted ones."""
        with self._write() as db:
            db.execute("UPDATE runs SET deleted = NULL WHERE id = ?", (run,))

    def forget(self, run: str) -> None:
        """Remove a deleted run's rows for good; its folder is the caller's."""
        with self._write() as db:
            db.execute("DELETE FROM runs WHERE id = ? AND deleted IS NOT NULL", (run,))
