"""A file of JSON lines that a stage adds to as it works, so that an interrupted one resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.system.files import finite, to_json


class KeptLines:
    """Entries of an earlier attempt with the same inputs, and those that are added.

    `take` gets each earlier entry, one at a time: there may be a million. A file of other inputs, or one that
    cannot be read, is replaced. A line that a killed process wrote only in part is dropped, with all behind
    it.
    """

    def __init__(self, file: Path, inputs: Mapping[str, Any], take: Callable[[dict[str, Any]], None]) -> None:
        head = to_json({"inputs": inputs}, sort_keys=True).encode() + b"\n"
        part = file.with_suffix(".part")
        self.resumed = 0
        with part.open("wb") as copy:
            copy.write(head)
            for line, entry in _kept(file, head):
                take(entry)
                copy.write(line)
                self.resumed += 1
        part.replace(file)
        self._file = file

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry, whatever happens next; a number that JSON does not have becomes null."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(entry), allow_nan=False) + "\n")


def _kept(file: Path, head: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a file that begins with `head`, and what they say, up to the first that is torn."""
    try:
        lines = file.open("rb")
    except FileNotFoundError:
        return
    with lines:
        if lines.readline(len(head) + 1) != head:
            return
        for line in lines:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(entry, dict):
                return
            yield line, entry
