"""Files that grow, read in pieces by byte offset, so that a reader can drop out and come back."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 256 * 1024
# A progress bar ends its line with a carriage return, a log line with a line feed.
LOG_ENDS = (b"\n", b"\r")
LINE_ENDS = (b"\n",)


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `next` of a file that has `size` bytes now."""

    start: int
    data: bytes
    next: int
    size: int


def read(path: Path, offset: int, *, ends: tuple[bytes, ...] = LOG_ENDS, ended: bool = False) -> Piece:
    """The lines from byte `offset` on, at most MOST_BYTES of them.

    A negative offset means that many bytes before the end, from the next whole line. A last line without
    an end is left for the next call, unless the file has `ended` or the line alone is a whole piece.
    """
    if not path.exists():
        return Piece(0, b"", 0, 0)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(size + offset, 0) if offset < 0 else min(offset, size)
        if offset < 0 and start > 0:
            file.seek(start)
            start += _first_line(file.read(MOST_BYTES), ends)
        file.seek(start)
        data = file.read(MOST_BYTES)
    cut = max(data.rfind(end) for end in ends) + 1
    at_end = start + len(data) >= size
    if (ended and at_end) or (cut == 0 and len(data) == MOST_BYTES):
        cut = len(data) if ended and at_end else _whole_characters(data)
    return Piece(start, data[:cut], start + cut, size)


def before(path: Path, end: int) -> Piece:
    """The lines that end at byte `end`, at most MOST_BYTES of them, from a whole line on."""
    if not path.exists():
        return Piece(0, b"", 0, 0)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        end = min(end, size)
        start = max(end - MOST_BYTES, 0)
        file.seek(start)
        data = file.read(end - start)
    cut = _first_line(data, LOG_ENDS) if start else 0
    if cut == len(data):
        cut = 0  # a single line, of which this is the last part
    return Piece(start + cut, data[cut:], end, size)


def _first_line(data: bytes, ends: tuple[bytes, ...]) -> int:
    """Where the first line that is whole begins; 0 if there is no line end at all."""
    found = [at + 1 for end in ends if (at := data.find(end)) >= 0]
    return min(found, default=0)


def _whole_characters(data: bytes) -> int:
    """How many of the bytes are whole UTF-8 characters."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(data) - len(decoder.getstate()[0])
