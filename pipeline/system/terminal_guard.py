"""What a terminal is given: texts of logs, models, data and people cannot move its cursor or hide themselves.

Everything that is printed passes here, once `guard` was called. Where the output is no terminal it stays
as it is, but for half characters, which no encoding has.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from pipeline import display

REWRITE = "\r\x1b[2K"  # to the beginning of the line, which is empty then


def harmless(text: str) -> str:
    """A text as a terminal may have it; a line end of two characters becomes one of one."""
    return display.plain(text.replace("\r\n", "\n"))


def guard() -> None:
    """Let what this process prints on a terminal be harmless."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def rewrite(text: str, *, end: str = "") -> None:
    """Write over the terminal's present line."""
    stream = sys.stdout
    plain = stream.plain if isinstance(stream, _Terminal) else stream
    plain.write(f"{REWRITE}{harmless(text)}{end}")
    plain.flush()


class _Terminal:
    """A stream to a terminal. What is not about writing is the stream's own."""

    def __init__(self, plain: TextIO) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def write(self, text: str) -> int:
        self.plain.write(harmless(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def _guarded(stream: TextIO) -> Any:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    is_terminal = stream is not None and not isinstance(stream, _Terminal) and stream.isatty()
    return _Terminal(stream) if is_terminal else stream
