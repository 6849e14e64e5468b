"""Keeps texts from logs, models, data and people from moving a terminal's cursor or hiding themselves.

Once `guard` was called, everything printed passes through here. If the output is not a terminal, the text is
unchanged, except half surrogate pairs, which cannot be encoded.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from pipeline import display

REWRITE = "\r\x1b[2K"  # back to the beginning of the line, and clear it


def harmless(text: str) -> str:
    """A text that is safe for a terminal; CR LF becomes LF."""
    return display.plain(text.replace("\r\n", "\n"))


def guard() -> None:
    """Make everything that this process prints on a terminal harmless."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def rewrite(text: str, *, end: str = "") -> None:
    """Overwrite the terminal's current line."""
    stream = sys.stdout
    plain = stream.plain if isinstance(stream, _Terminal) else stream
    plain.write(f"{REWRITE}{harmless(text)}{end}")
    plain.flush()


class _Terminal:
    """A stream to a terminal. Everything but writing is the stream's own."""

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
