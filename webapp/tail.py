"""Files that grow, read in pieces by byte offset, so that a reader can drop out and come back."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 256 * 1024
# A progress bar ends its line with a carriage return, a log line with a line feed.
LOG_ENDS = (b"\n", b"\r")
LINE_ENDS = (b"\n",)
FACTS = (
    "message",
    "progress",
    "eta_seconds",
    "step",
    "total_steps",
    "loss",
    "eval_loss",
    "tokens_per_second",
)


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `next` of a file."""

    start: int
    data: bytes
    next: int


def read(path: Path, offset: int, *, ends: tuple[bytes, ...] = LOG_ENDS, ended: bool = False) -> Piece:
    """The lines from byte `offset` on, at most MOST_BYTES of them.

    A negative offset means that many bytes before the end, from the next whole line. A last line without
    an end is left for the next call, unless the file has `ended` or the line alone is a whole piece.
    """
    if not path.exists():
        return Piece(0, b"", 0)
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
    return Piece(start, data[:cut], start + cut)


def latest(path: Path) -> dict[str, Any]:
    """What the newest attempt last said under each key of FACTS, from the end of an events file."""
    facts: dict[str, Any] = {}
    for line in read(path, -MOST_BYTES // 4, ends=LINE_ENDS).data.splitlines():
        event = _event(line)
        if event.get("attempt"):
            facts = {}
        facts.update({key: event[key] for key in FACTS if key in event})
    return facts


def _event(line: bytes) -> dict[str, Any]:
    """One event, or nothing where a process was killed in the middle of writing it."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _first_line(data: bytes, ends: tuple[bytes, ...]) -> int:
    """Where the first line that is whole begins; 0 if there is no line end at all."""
    found = [at + 1 for end in ends if (at := data.find(end)) >= 0]
    return min(found, default=0)


def _whole_characters(data: bytes) -> int:
    """How many of the bytes are whole UTF-8 characters."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(data) - len(decoder.getstate()[0])
