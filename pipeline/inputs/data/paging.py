"""A few rows of a dataset at a time, from a place in its file on: for a table of millions of rows.

A call reads MOST_BYTES and a line at most, whatever is asked for, and says where to read on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.data.row_lines import LONGEST_LINE

MOST_BYTES = 4_000_000
MOST_SKIPPED = 64_000_000  # bytes of lines that are not looked into
MOST_ROWS = 50
LONGEST_CELL = 300  # letters
MOST_CELLS = 12


@dataclass(frozen=True)
class Place:
    """Where a line begins: its byte and its number."""

    offset: int = 0
    line: int = 1


@dataclass
class Page:
    """Rows as (line, {field: the beginning of its text}), and where those behind them begin; None at the end.

    There may be more rows though there are none here: then too much was read to go on.
    """

    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    next: Place | None = None


def page(path: Path, start: Place, *, rows: int = 20, search: str = "", line: int = 1) -> Page:
    """The next rows behind `start`, from number `line` on, that hold `search` somewhere, in whatever case.

    Raises InputError if `start` is no beginning of a line, OSError if the file cannot be read.
    """
    wanted, found, number = search.casefold(), Page(), start.line
    with path.open("rb") as file:
        file.seek(max(start.offset - 1, 0))
        if start.offset and file.read(1) != b"\n":
            raise InputError("The dataset has changed; check it again.")
        begin = file.tell()
        while True:
            read, is_skipped = file.tell() - begin, number < line
            if len(found.rows) >= min(rows, MOST_ROWS) or read > (MOST_SKIPPED if is_skipped else MOST_BYTES):
                found.next = Place(file.tell(), number)
                return found
            text = file.readline(LONGEST_LINE + 1)
            if not text or not (text.endswith(b"\n") or len(text) <= LONGEST_LINE):
                return found  # the end, or a line that is no row
            if not is_skipped and (row := _row(text, wanted)) is not None:
                found.rows.append((number, row))
            number += 1


def _row(line: bytes, wanted: str) -> dict[str, str] | None:
    """The row on a line, if it is one and holds what is wanted."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    texts = {name: _text(value) for name, value in row.items()}
    if wanted and not any(wanted in text.casefold() for text in texts.values()):
        return None
    cells = list(texts.items())[:MOST_CELLS]
    return {display.short(name): display.valid(display.cut(text, LONGEST_CELL)) for name, text in cells}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
