"""A file of JSON lines that a stage adds to as it works, so that an interrupted one resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.system.files import finite, to_json


class KeptLines:
    """Entries of an earlier attempt with the same inputs, and those that are added.

    A file of other inputs, or one that cannot be read, is replaced. A line that a killed process wrote only
    in part is dropped, with all behind it.
    """

    def __init__(self, file: Path, inputs: Mapping[str, Any]) -> None:
        head = to_json({"inputs": inputs}, sort_keys=True)
        self.entries = list(_kept(file, head))
        part = file.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in (head, *map(json.dumps, self.entries))), "utf-8")
        part.replace(file)
        self._file = file

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry, whatever happens next; a number that JSON does not have becomes null."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(entry), allow_nan=False) + "\n")


def _kept(file: Path, head: str) -> Iterator[dict[str, Any]]:
    """The entries of a file that begins with `head`, up to the first that is torn."""
    try:
        first, *lines = file.read_text("utf-8").split("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return
    if first != head:
        return
    for line in lines[:-1]:  # what is behind the last line's end is empty, or torn
        try:
            yield json.loads(line)
        except ValueError:
            return
