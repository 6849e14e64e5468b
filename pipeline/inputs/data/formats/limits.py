"""What a file of any format may hold, and how reading ends where it holds more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.inputs.data.row_lines import LONGEST_LINE

LONGEST_ROW = LONGEST_LINE  # bytes, or characters before they are written; what is made is read as lines
MOST_COLUMNS = 1_000
MOST_BLANK = 1_000_000  # lines in a row
UNPACKED = 128 * 1024 * 1024  # bytes that any packed file may unpack to;
TIMES = 100  # what is more than that only so many times its packed size; texts pack to a tenth, say
EXPANDS = 20  # times the size of all files that what is made of them may have, beyond UNPACKED
TOO_LONG = f"the row is longer than {LONGEST_ROW:,} bytes; shorten its texts"

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | str]]  # number of the line or row, counted from 1; the row, or what is wrong


class EndsHereError(Exception):
    """Reading on is pointless. `line` is 0 where only who reads knows it; the text is a sentence."""

    def __init__(self, sentence: str, line: int = 0) -> None:
        super().__init__(sentence)
        self.line = line


def too_many_columns(count: int) -> str:
    """Why a table so wide is refused."""
    return f"the table has {count:,} columns; allowed: {MOST_COLUMNS:,}. Keep those with prompt and response"
