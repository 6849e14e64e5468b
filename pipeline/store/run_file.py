"""A run's facts in its folder, in case the database is lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from pipeline.system.files import write_whole

FILE = "run.json"
UNREAD = (PermissionError, IsADirectoryError, NotADirectoryError)


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Keep id, name, created, recipe, data and owner of a run, and its stages with their options."""
    write_whole(folder / FILE, facts)


def read(path: Path) -> dict[str, Any] | None:
    """The facts in a file; None if there are none, or a power cut damaged them."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def all_of(runs: Path) -> tuple[list[dict[str, Any]], int]:
    """The runs that have a folder, oldest first, and how many folders are not ours to read."""
    found, unread = [], 0
    for folder in runs.glob("[!.]*"):  # hidden are those that are being deleted
        try:
            found.append(read(folder / FILE))
        except UNREAD:
            unread += 1
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link to itself
                raise
            unread += 1
    return sorted((facts for facts in found if facts), key=_created), unread


def _created(facts: dict[str, Any]) -> float:
    created = facts.get("created")
    return created if isinstance(created, int | float) else 0.0
