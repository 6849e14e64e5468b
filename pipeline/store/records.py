"""Rows of the database as records, and back. Paths inside the home are stored relative to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.store.run import QUEUED, Run, StageRun
from pipeline.system.files import to_json

# Bytes of a recipe, and of all options of a run's publishings: lists read those of a thousand runs.
LONGEST = 32_000


def require_short(what: str, given: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError where a record would have more than LONGEST bytes of what people wrote into it."""
    texts = (to_json(one, ensure_ascii=False).encode(errors="surrogatepass") for one in given)
    if (size := sum(map(len, texts))) > LONGEST:
        raise InputError(
            f"{what} has {size:,} bytes, and a run keeps up to {LONGEST:,}; shorten its texts, paths and"
            " names of columns"
        )


def inside(home: Path, path: str | Path) -> str:
    """A path as it is stored, so that a home can be moved or mounted elsewhere."""
    return str(Path(path).relative_to(home)) if Path(path).is_relative_to(home) else str(path)


def _absolute(home: Path, path: str) -> str:
    """The inverse of `inside`. As text, because a list of runs has thousands."""
    return path if path.startswith("/") else f"{home}/{path}"


def insert_run(db: sqlite3.Connection, facts: dict[str, Any]) -> None:
    """Insert a queued run from the facts in its folder (see `run_file`)."""
    db.execute(
        "INSERT INTO runs (id, name, status, created, recipe, data, owner, runs_on, place)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, (SELECT COALESCE(MAX(place), 0) + 1 FROM runs))",
        (
            facts["id"], facts["name"], QUEUED, facts["created"],
            to_json(facts["recipe"], ensure_ascii=False), facts["data"], facts["owner"],
            facts["recipe"].get("runs_on", "any"),
        ),
    )  # fmt: skip


def insert_stage(db: sqlite3.Connection, run: str, position: int, name: str, options: dict[str, Any]) -> None:
    """Insert a queued stage."""
    db.execute(
        "INSERT INTO stages (run, position, name, status, options) VALUES (?, ?, ?, ?, ?)",
        (run, position, name, QUEUED, to_json(options, ensure_ascii=False)),
    )


def stages_of(db: sqlite3.Connection, home: Path, runs: Sequence[str]) -> dict[str, list[StageRun]]:
    """The stages of these runs, by run."""
    found: dict[str, list[StageRun]] = {run: [] for run in runs}
    marks = ", ".join("?" for _ in runs)
    query = f"SELECT * FROM stages WHERE run IN ({marks}) ORDER BY run, position"  # noqa: S608
    for row in db.execute(query, list(runs)):
        # Parsed in one go: a list of runs has thousands of these.
        options, metrics, artifacts = json.loads(f"[{row['options']},{row['metrics']},{row['artifacts']}]")
        found[row["run"]].append(
            StageRun(
                name=row["name"],
                status=row["status"],
                options=options,
                started=row["started"],
                finished=row["finished"],
                seconds=row["seconds"],
                reused=bool(row["reused"]),
                error=row["error"],
                metrics=metrics,
                artifacts=[{**given, "path": _absolute(home, given["path"])} for given in artifacts],
                attempts=row["attempts"],
            )
        )
    return found


def run_of(row: sqlite3.Row, home: Path, stages: list[StageRun]) -> Run:
    """A row of `runs` with its stages."""
    return Run(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        created=row["created"],
        recipe=json.loads(row["recipe"]),
        data=_absolute(home, row["data"]),
        stages=tuple(stages),
        cancel_requested=bool(row["cancel_requested"]),
        owner=row["owner"],
        notes=row["notes"],
        tags=tuple(json.loads(row["tags"])),
        deleted=row["deleted"],
    )
