"""How many rows a dataset has, and its hash: found once, by a process of its own, and noted beside it.

`python -m pipeline.inputs.data.content_facts PATH` reads the file in pieces and prints both as JSON. Whoever
writes a card, the app among them, asks `of` and never reads the dataset: a file may be one line of 300 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.data import datasets
from pipeline.system import files, own_process

NOTE = ".content.json"  # beside a dataset in the home, which nobody changes
LARGEST_NOTE = 1 << 12  # bytes
PIECE = 1 << 16  # bytes; as many lines may be in one
SECONDS = 60.0
NICE = 10
_counting = threading.Lock()  # one at a time: they take a disk and a core


@dataclass(frozen=True)
class Facts:
    """Lines that are not blank, and the SHA-256 of the file as hex."""

    rows: int
    sha256: str


def of(copy: Path) -> Facts | None:
    """The facts of a dataset; None if it is not there, or cannot be read through within SECONDS."""
    with suppress(OSError):
        if not copy.is_file():
            return None
        if (found := _noted(copy)) is not None:
            return found
        with _counting:
            return _noted(copy) or _counted(copy)
    return None


def sha256(copy: Path) -> str:
    """`datasets.kept_sha256`, without reading the file here: "" if it is not known."""
    if not copy.is_file():
        return datasets.named_sha256(copy)
    return datasets.named_sha256(copy) or getattr(of(copy), "sha256", "")


def _noted(copy: Path) -> Facts | None:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        with (copy.parent / NOTE).open("rb") as file:
            known: dict[str, Any] = json.loads(file.read(LARGEST_NOTE))
        if (known["name"], known["bytes"]) == (copy.name, copy.stat().st_size):
            return Facts(int(known["rows"]), str(known["sha256"]))
    return None


def _counted(copy: Path) -> Facts | None:
    """Have a process count, and note what it found if the dataset is one of the home."""
    size = copy.stat().st_size
    words = ["-m", "pipeline.inputs.data.content_facts", os.fspath(copy.resolve())]
    try:
        found = json.loads(own_process.run(words, SECONDS, settings.bare_environment()).stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    with suppress(OSError, LabError):  # a full disk: it is counted again
        if copy.resolve().parent.parent == settings.home() / "datasets":
            facts = {"name": copy.name, "bytes": size, **found}
            files.write_whole(copy.parent / NOTE, facts, shared=True)
    return Facts(found["rows"], found["sha256"])


def read(path: Path) -> Facts:
    """Read a file through in pieces, however long its lines are. Raises OSError."""
    digest, rows, in_row = hashlib.sha256(), 0, False
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            if not piece.strip():  # blank lines without end
                in_row = in_row and b"\n" not in piece
                continue
            first, *others = piece.split(b"\n")
            rows += not in_row and bool(first.strip())
            rows += sum(1 for line in filter(None, others) if line.strip())
            in_row = bool(others[-1].strip()) if others else in_row or bool(first.strip())
    return Facts(rows, digest.hexdigest())


def _main(path: str) -> int:
    os.nice(NICE)
    found = read(Path(path))
    print(files.to_json({"rows": found.rows, "sha256": found.sha256}))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
