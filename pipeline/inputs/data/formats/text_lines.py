"""Bytes as numbered lines of text: unpacked, decoded, none longer than a row may be."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.inputs.data.formats.limits import LONGEST_ROW, MOST_BLANK, TIMES, UNPACKED, EndsHereError

GZIP = b"\x1f\x8b"
PIECE = 1 << 20
DAMAGED = "the compressed file (gzip) is damaged or cut off here; pack it again"
_DAMAGES = (EOFError, gzip.BadGzipFile, zlib.error)
_MARKS = (  # those of 4 bytes first: their mark begins with that of 2
    (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"),
)  # fmt: skip


def unpacked(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it is gzip. Raises OSError.

    Raises EndsHereError where that unpacks to far more than it is; reading does so too, and where it is
    damaged.
    """
    file = path.open("rb")
    try:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if packed:
            _look_ahead(file)
    except BaseException:
        file.close()
        raise
    return io.BufferedReader(Unpacked(file), PIECE) if packed else file


class Unpacked(io.RawIOBase):
    """What gzip has packed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inside = gzip.GzipFile(fileobj=file)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        room = memoryview(buffer)  # type: ignore[arg-type]
        try:
            count = self._inside.readinto(room)
        except _DAMAGES:
            raise EndsHereError(DAMAGED) from None
        self._count += count
        _see_size(self._count, self._file)
        return count

    def close(self) -> None:
        self._inside.close()
        self._file.close()
        super().close()


def _look_ahead(file: BinaryIO) -> None:
    """Raise EndsHereError for a file that unpacks to far more than it is, before its rows take minutes."""
    inside, room = gzip.GzipFile(fileobj=file), bytearray(PIECE)
    count = 0
    with suppress(*_DAMAGES):  # who reads it gets so far, and knows the line
        while count <= UNPACKED and (read := inside.readinto(room)):
            count += read
            _see_size(count, file)
    file.seek(0)


def _see_size(count: int, file: BinaryIO) -> None:
    """Raise EndsHereError if so many bytes are too many of what was read of a packed file."""
    if count > UNPACKED and count > TIMES * file.tell():
        raise EndsHereError(
            f"the compressed file unpacks to more than {UNPACKED:,} bytes and {TIMES} times its size;"
            " unpack it, and give the file inside"
        )


def encoding(head: bytes) -> str:
    """The encoding of a text that begins with these bytes: by its mark, or by where its zero bytes stand."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    known = {"x000": "utf-32-le", "000x": "utf-32-be", "x0x0": "utf-16-le", "0x0x": "utf-16-be"}
    return known.get(zeros, "utf-8")


class TextLines:
    """The lines of a text, with `\\n` at their ends however they ended; `number` is that of the last one.

    What is together more than a row may be, before `row_begins` is called again, is refused.
    Raises EndsHereError for that, for what is no text, and for blank lines almost without end.
    """

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._escapes = encoding.startswith("utf-8")
        errors = "surrogateescape" if self._escapes else "strict"
        self._text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=None)
        self.close = self._text.close
        self._encoding = encoding.removesuffix("-sig").upper()
        self._blank = 0
        self._held = 0
        self.number = 0

    def row_begins(self) -> None:
        """What comes next belongs to another row."""
        self._held = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                line = self._text.readline(LONGEST_ROW + 1)
            except UnicodeError:
                raise EndsHereError(
                    f"the text is not {self._encoding} here; save the file as UTF-8", self.number + 1
                ) from None
            if not line:
                return
            self.number += 1
            self._look(line)
            yield line

    def _look(self, line: str) -> None:
        self._held += len(line)
        if self._held > LONGEST_ROW:
            raise EndsHereError(
                f"the row is longer than {LONGEST_ROW:,} characters, or a quote that opens in it is never"
                " closed",
                self.number,
            )
        if self._escapes and not line.isascii() and any("\udc80" <= c <= "\udcff" for c in line):
            raise EndsHereError(
                "the text is not UTF-8; save the file as UTF-8 (in Excel: CSV UTF-8)", self.number
            )
        self._blank = 0 if line.strip() else self._blank + 1
        if self._blank > MOST_BLANK:
            raise EndsHereError(f"more than {MOST_BLANK:,} blank lines follow each other", self.number)
