"""The queue: what people put into it and change in it, and what the worker takes from it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import LabError
from pipeline.store import run_file
from pipeline.store.base import Base
from pipeline.store.records import insert_run, insert_stage, inside, require_short
from pipeline.store.run import CANCELED, DONE, ENDED, PUBLISH, QUEUED, RETRYABLE, RUNNING
from pipeline.store.turns import Waiting, in_turn
from pipeline.system.files import make_room, to_json

MOVES = ("up", "down", "first", "last")
ALL = ("any", "cpu")
AND = ","  # between the GPUs of a stage
# How many GPUs the next stage of a run uses.
GPUS = """SELECT json_extract(options, '$.gpus') FROM stages WHERE run = runs.id AND stages.status = 'queued'
 AND stages.name NOT LIKE 'publish%' ORDER BY position LIMIT 1"""
PAUSED = "paused"
# Without these a browser could add for ever, and looks at the queue, the history and the disk read them all.
MOST_WAITING = 1_000  # runs
RESERVED = 100  # of these places, for runs that are queued alone
MOST_RUNS = 20_000  # of a home, deleted ones included until they are gone for good
MOST_PUBLISHINGS = 50  # of a run, failed ones included; those canceled before they ran make room
CROWDED = "{:,} runs wait already, as many as may; wait until some have ended, or cancel some."
SHARED = (
    "Up to {:,} runs may be queued at once now, half of the places that are free; queue fewer, or wait until"
    " some have ended."
)
FULL = (
    "This lab keeps {:,} runs, as many as it may; delete some that nobody needs on the Runs tab, which makes"
    " room a day later."
)
OFTEN = "This run was published {} times; use its recipe again, and publish the new run."


class New(NamedTuple):
    """A run to be queued; `stages` are names and options, in order."""

    name: str
    recipe: dict[str, Any]
    data: Path
    stages: dict[str, dict[str, Any]]


class Queue(Base):
    """Runs from queued to ended."""

    # -- what the page and the command line do -------------------------------------------------------

    def add(
        self,
        name: str,
        recipe: dict[str, Any],
        data: Path,
        stages: dict[str, dict[str, Any]],
        owner: str = "",
    ) -> str:
        """Queue a run and return its id, such as `20261122-143000-7f3a9c`: sortable, and not guessable."""
        (run,) = self.add_all([New(name, recipe, data, stages)], owner)
        return run

    def add_all(self, wanted: Sequence[New], owner: str = "") -> list[str]:
        """Queue several runs, all or none; return their ids. Raises LabError for more than there may be, and
        InputError for a recipe that is too long."""
        for new in wanted:
            require_short("The recipe", [new.recipe])
        make_room(self.home, 0)
        folders: list[Path] = []
        try:
            with self._write() as db:
                _require_room(db, waiting=len(wanted), runs=len(wanted))
                return [self._add(db, new, owner, folders) for new in wanted]
        except BaseException:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _add(self, db: sqlite3.Connection, new: New, owner: str, folders: list[Path]) -> str:
        """Queue one, whose folder is noted in `folders` once it is there."""
        run = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"
        facts = {
            "id": run,
            "name": new.name,
            "created": time.time(),
            "recipe": new.recipe,
            "data": inside(self.home, new.data),
            "owner": owner,
            "stages": new.stages,
        }
        folder = self.folder(run)
        folder.mkdir(mode=0o700)  # inside the transaction, or `disk.collect` might remove it as empty
        folders.append(folder)
        insert_run(db, facts)
        for position, (stage, options) in enumerate(new.stages.items()):
            insert_stage(db, run, position, stage, options)
        run_file.write(folder, facts)
        return run

    def add_publish(self, run: str, options: dict[str, Any]) -> str:
        """Queue the publishing of a run's result; return the name of the new stage row. Raises what
        `require_publishable` does."""
        with self._write() as db:
            earlier, gone = _publishings(db, run, options)
            for one in gone:
                db.execute("DELETE FROM stages WHERE run = ? AND name = ?", (run, one))
            number = max((int(one.partition("-")[2] or 1) for one in earlier), default=0) + 1
            name = f"{PUBLISH}-{number}" if number > 1 else PUBLISH
            last = db.execute("SELECT MAX(position) FROM stages WHERE run = ?", (run,)).fetchone()[0]
            insert_stage(db, run, last + 1, name, options)
            facts = run_file.read(self.folder(run) / run_file.FILE)
            if facts is not None:  # runs of older versions have none
                stages = {one: given for one, given in facts["stages"].items() if one not in gone}
                facts["stages"] = {**stages, name: options}
                run_file.write(self.folder(run), facts)
        return name

    def require_publishable(self, run: str, options: dict[str, Any]) -> None:
        """Raise LabError for more than MOST_PUBLISHINGS: all that is said of a run has a part for each;
        InputError where their options are too long together."""
        with self._read() as db:
            _publishings(db, run, options)

    def request_cancel(self, run: str) -> None:
        """Request a run's cancellation. A queued one ends at once; the worker ends a running one."""
        with self._write() as db:
            status = _status(db, run)
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
        """Queue a run again from the first stage that did not finish. Raises LabError if there is none, or
        too many wait."""
        with self._write() as db:
            status = _status(db, run)
            if status not in RETRYABLE:
                raise LabError(
                    f"Run {run} is {status}; only a failed, canceled or interrupted one is retried."
                )
            _require_room(db, waiting=1)
            db.execute(
                "UPDATE runs SET status = ?, cancel_requested = 0, deleted = NULL WHERE id = ?", (QUEUED, run)
            )
            db.execute(
                "UPDATE stages SET status = ?, started = NULL, finished = NULL, seconds = NULL, error = NULL,"
                " reused = 0, attempts = 0 WHERE run = ? AND status != ? AND name NOT LIKE 'publish%'",
                (QUEUED, run, DONE),
            )

    def pause(self, paused: bool) -> None:
        """Pause or resume the queue. While it is paused, running jobs finish and nothing new starts."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (PAUSED, str(int(paused))))

    @property
    def paused(self) -> bool:
        """Whether the queue is paused."""
        with self._read() as db:
            return _paused(db)

    def queue(self) -> list[Waiting]:
        """Waiting runs, in the order in which they will start."""
        with self._read() as db:
            return in_turn(_waiting(db, ALL))

    def move(self, run: str, where: str) -> None:
        """Move a waiting run among those of its owner; the turns of others stay. `where` is one of MOVES.

        An interrupted run stays ahead of all others, unless it is itself moved behind another one.
        Raises LabError if it no longer waits.
        """
        with self._write() as db:
            if _status(db, run) != QUEUED:
                raise LabError(
                    f"Run {run} is {_status(db, run)}; only waiting runs have a position in the queue."
                )
            rows = db.execute(
                "SELECT id, place, urgent FROM runs WHERE status = ? AND owner ="
                " (SELECT owner FROM runs WHERE id = ?) ORDER BY urgent DESC, place",
                (QUEUED, run),
            ).fetchall()
            ids = [row["id"] for row in rows]
            at = ids.index(run)
            ids.remove(run)
            ids.insert({"up": max(at - 1, 0), "down": at + 1, "first": 0, "last": len(ids)}[where], run)
            urgent = {row["id"] for row in rows if row["urgent"]}
            if not urgent.issuperset(ids[: ids.index(run)]):
                urgent.discard(run)  # a run that is moved behind another one is not urgent
            # Places are swapped among urgent runs and among the others, never across: other owners' runs are
            # in between.
            there = {row["id"]: (row["place"], row["urgent"]) for row in rows}
            for first in (True, False):
                group = [one for one in ids if (one in urgent) is first]
                places = sorted(there[one][0] for one in group)
                assert all(a < b for a, b in pairwise(places)), "no two runs share a place"
                for one, place in zip(group, places, strict=True):
                    if there[one] != (place, int(first)):
                        query = "UPDATE runs SET place = ?, urgent = ? WHERE id = ?"
                        db.execute(query, (place, int(first), one))

    # -- what the worker does ------------------------------------------------------------------------

    def claim(self, device: str, wanted: Sequence[str] = ALL) -> tuple[str, str] | None:
        """Take the next stage of the run whose turn it is: (run, stage), now running; None if there is none.

        `wanted` are the values of `runs_on` that runs may have.
        """
        with self._read() as db:  # usually there is nothing, and then no write lock is needed
            if _paused(db) or not _waiting(db, wanted):
                return None
        with self._write() as db:
            turns = [] if _paused(db) else in_turn(_waiting(db, wanted))
            return _start_next(db, turns[0].id, device) if turns else None

    def claim_gpus(self, idle: Sequence[str], soon: int, most: int) -> tuple[str, str, list[str]] | None:
        """Take the next stage of the run whose turn it is on as many of the `idle` GPUs as it uses: (run,
        stage, GPUs), now running; None if there is none.

        A stage that uses more keeps younger runs from them, until as many are idle; but not if it uses more
        than the `soon` ones that are idle or have a run which ends: others serve a model. One that uses more
        than the `most` of this machine gets one, to say so.
        """
        with self._read() as db:  # as for `claim`
            if _on_gpus(db, len(idle), soon, most) is None:
                return None
        with self._write() as db:
            found = _on_gpus(db, len(idle), soon, most)
            if found is None:
                return None
            gpus = list(idle[: found[1]])
            started = _start_next(db, found[0], AND.join(gpus))
            return (*started, gpus) if started else None

    def claim_next(self, run: str, device: str) -> str | None:
        """Take the next stage of a run that holds `device`; None when it has no more and is done, or when the
        stage uses several GPUs: then it waits for those at the head of the queue.
        """
        with self._write() as db:
            if _wants_cancel(db, run) and _next(db, run):
                _end(db, run, CANCELED)
                return None
            if _gpus(db, run) > 1:
                db.execute("UPDATE runs SET status = ?, urgent = 1 WHERE id = ?", (QUEUED, run))
                return None
            started = _start_next(db, run, device)
            return started[1] if started else None

    def claim_publish(self) -> tuple[str, str] | None:
        """Take the oldest queued publish whose run is done: (run, stage)."""
        with self._read() as db:  # as for `claim`
            if _next_publish(db) is None:
                return None
        with self._write() as db:
            found = _next_publish(db)
            if found is not None:
                _mark_running(db, *found, None)
            return found

    def finish(
        self,
        run: str,
        stage: str,
        status: str,
        *,
        error: str | None = None,
        seconds: float | None = None,
        finished: float | None = None,
        reused: bool = False,
        metrics: dict[str, Any] | None = None,
        artifacts: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Record how a stage ended. A stage that is not done ends its run with the same status.

        `finished` is when, in seconds since the epoch; by default now.
        """
        kept = [{**given, "path": inside(self.home, given["path"])} for given in artifacts or []]
        with self._write() as db:
            db.execute(
                "UPDATE stages SET status = ?, finished = ?, seconds = ?, reused = ?, error = ?, metrics = ?,"
                " artifacts = ? WHERE run = ? AND name = ?",
                (
                    status,
                    finished or time.time(),
                    seconds,
                    int(reused),
                    error,
                    to_json(metrics or {}),
                    to_json(kept),
                    run,
                    stage,
                ),
            )
            if stage.startswith(PUBLISH):
                db.execute("UPDATE runs SET cancel_requested = 0 WHERE id = ?", (run,))
            elif status != DONE:
                _end(db, run, status)

    def running(self) -> Sequence[tuple[str, str, str | None]]:
        """(run, stage, device) of every stage marked running, for a worker that has just started. Several
        devices have AND between them."""
        with self._read() as db:
            rows = db.execute("SELECT run, name, device FROM stages WHERE status = ?", (RUNNING,)).fetchall()
            return [(row["run"], row["name"], row["device"]) for row in rows]

    def between_stages(self) -> Sequence[str]:
        """Runs marked running without a running stage: their worker died between two stages."""
        with self._read() as db:
            rows = db.execute(
                "SELECT id FROM runs WHERE status = ? AND NOT EXISTS"
                " (SELECT 1 FROM stages WHERE run = runs.id AND stages.status = ?)",
                (RUNNING, RUNNING),
            ).fetchall()
            return [row["id"] for row in rows]

    def requeue(self, run: str, stage: str | None = None) -> None:
        """Put a run back at the head of the queue, with its `stage`, or cancel it if that was requested."""
        with self._write() as db:
            if stage is not None:
                db.execute(
                    "UPDATE stages SET status = ?, started = NULL WHERE run = ? AND name = ?",
                    (QUEUED, run, stage),
                )
            if stage is not None and stage.startswith(PUBLISH):
                return
            if _wants_cancel(db, run) and _next(db, run):
                _end(db, run, CANCELED)
            else:
                db.execute("UPDATE runs SET status = ?, urgent = 1 WHERE id = ?", (QUEUED, run))

    def attempts(self, run: str, stage: str) -> int:
        """How often the stage has been started since a person queued it."""
        with self._read() as db:
            query = "SELECT attempts FROM stages WHERE run = ? AND name = ?"
            return int(db.execute(query, (run, stage)).fetchone()[0])

    def cancels(self) -> set[str]:
        """Runs whose cancellation was requested."""
        with self._read() as db:
            return {row["id"] for row in db.execute("SELECT id FROM runs WHERE cancel_requested = 1")}

    def waiting(self) -> bool:
        """Whether there is work for a worker: something queued or running."""
        with self._read() as db:
            runs = db.execute(
                "SELECT 1 FROM runs WHERE status = ? OR (status = ? AND NOT ?) LIMIT 1",
                (RUNNING, QUEUED, _paused(db)),
            ).fetchone()
            publish = db.execute(
                "SELECT 1 FROM stages JOIN runs ON runs.id = run WHERE runs.status = ?"
                " AND stages.status IN (?, ?) LIMIT 1",
                (DONE, QUEUED, RUNNING),
            ).fetchone()
            return bool(runs or publish)


def _require_room(db: sqlite3.Connection, waiting: int, runs: int = 0) -> None:
    """Raise LabError unless so many more may wait, and so many more be kept.

    Sweeps take half of what is left each time, under whatever names, so that a single run finds a place.
    """
    there = db.execute("SELECT COUNT(*) FROM runs WHERE status = ?", (QUEUED,)).fetchone()[0]
    if there + waiting > MOST_WAITING:
        raise LabError(CROWDED.format(there))
    if 1 < waiting > (most := max((MOST_WAITING - RESERVED - there) // 2, 1)):
        raise LabError(SHARED.format(most))
    if runs and db.execute("SELECT COUNT(*) FROM runs").fetchone()[0] + runs > MOST_RUNS:
        raise LabError(FULL.format(MOST_RUNS))


def _publishings(db: sqlite3.Connection, run: str, options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The publishings that a run keeps if one more with these options follows, and those that make room.

    The oldest of those that were canceled before they ran do, only where that is needed: anybody can add and
    cancel as many as there may be. Raises what `require_publishable` does.
    """
    query = "SELECT * FROM stages WHERE run = ? AND name LIKE 'publish%' ORDER BY position"
    rows = db.execute(query, (run,)).fetchall()
    earlier = {row["name"]: json.loads(row["options"]) for row in rows}
    idle = [row["name"] for row in rows if row["status"] == CANCELED and not row["attempts"]]
    gone: list[str] = []
    while True:
        try:
            if len(earlier) >= MOST_PUBLISHINGS:
                raise LabError(OFTEN.format(MOST_PUBLISHINGS))
            require_short("This publishing, with the earlier ones of its run,", [*earlier.values(), options])
        except LabError:
            if not idle:
                raise
            gone.append(idle.pop(0))
            del earlier[gone[-1]]
        else:
            return list(earlier), gone


def _status(db: sqlite3.Connection, run: str) -> str:
    return str(db.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()["status"])


def _paused(db: sqlite3.Connection) -> bool:
    row = db.execute("SELECT value FROM facts WHERE name = ?", (PAUSED,)).fetchone()
    return row is not None and row["value"] == "1"


def _waiting(db: sqlite3.Connection, wanted: Sequence[str]) -> list[Waiting]:
    """Queued runs with these values of `runs_on`, and when their owners were last served, counted in runs."""
    marks = ", ".join("?" for _ in wanted)
    rows = db.execute(
        f"SELECT id, owner, place, urgent, name, created, ({GPUS}) AS gpus FROM runs WHERE status = ?"  # noqa: S608
        f" AND runs_on IN ({marks})",
        (QUEUED, *wanted),
    ).fetchall()
    served = dict(db.execute("SELECT owner, MAX(begun) FROM runs GROUP BY owner").fetchall())
    return [
        Waiting(
            row["id"], row["owner"], row["place"], bool(row["urgent"]), served[row["owner"]], row["name"],
            row["created"], row["gpus"] or 1,
        )
        for row in rows
    ]  # fmt: skip


def _mark_running(db: sqlite3.Connection, run: str, stage: str, device: str | None) -> None:
    db.execute(
        "UPDATE stages SET status = ?, started = ?, finished = NULL, error = NULL, device = ?,"
        " attempts = attempts + 1 WHERE run = ? AND name = ?",
        (RUNNING, time.time(), device, run, stage),
    )


def _end(db: sqlite3.Connection, run: str, status: str) -> None:
    """End a run that is not done; its remaining stages are canceled."""
    db.execute("UPDATE runs SET status = ?, cancel_requested = 0, urgent = 0 WHERE id = ?", (status, run))
    _cancel_queued(db, run)


def _cancel_queued(db: sqlite3.Connection, run: str) -> int:
    """Cancel the run's stages that have not started; return how many."""
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


def _on_gpus(db: sqlite3.Connection, idle: int, soon: int, most: int) -> tuple[str, int] | None:
    """The run whose turn it is on GPUs, and how many it gets: see `claim_gpus`."""
    if not idle or _paused(db):
        return None
    for turn in in_turn(_waiting(db, (ALL[0],))):
        count = turn.gpus if turn.gpus <= most else 1
        if count <= idle:
            return turn.id, count
        if count <= soon:
            return None
    return None


def _gpus(db: sqlite3.Connection, run: str) -> int:
    """How many GPUs the run's next stage uses."""
    row = db.execute(f"SELECT ({GPUS}) AS gpus FROM runs WHERE id = ?", (run,)).fetchone()  # noqa: S608
    return row["gpus"] or 1


def _next_publish(db: sqlite3.Connection) -> tuple[str, str] | None:
    """The oldest queued publish whose run is done."""
    row = db.execute(
        "SELECT run, stages.name FROM stages JOIN runs ON runs.id = run WHERE stages.status = ?"
        " AND stages.name LIKE 'publish%' AND runs.status = ? ORDER BY stages.rowid LIMIT 1",
        (QUEUED, DONE),
    ).fetchone()
    return (row["run"], row["name"]) if row else None


def _start_next(db: sqlite3.Connection, run: str, device: str) -> tuple[str, str] | None:
    """Mark the run's next queued stage running, or the run done if it has none."""
    name = _next(db, run)
    if name is None:
        db.execute("UPDATE runs SET status = ?, cancel_requested = 0 WHERE id = ?", (DONE, run))
        return None
    if _status(db, run) == QUEUED:  # its turn has come; stages after the first one take no turn
        db.execute(
            "UPDATE runs SET status = ?, urgent = 0, begun = (SELECT MAX(begun) + 1 FROM runs) WHERE id = ?",
            (RUNNING, run),
        )
    _mark_running(db, run, name, device)
    return run, name
