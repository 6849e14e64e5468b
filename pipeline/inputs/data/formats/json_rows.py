"""Rows of JSON: lines that had to be unpacked or decoded, and arrays, one item at a time."""

from __future__ import annotations

import io
import json
import re
from typing import BinaryIO

from pipeline.inputs.data import file_faults, row_lines
from pipeline.inputs.data.formats.limits import LONGEST_ROW, MOST_BLANK, EndsHereError, Rows
from pipeline.inputs.data.formats.text_lines import TextLines

_PIECE = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_TOO_DEEP = "this item is nested too deeply"


def of_lines(lines: TextLines, head: str, whole: bool) -> Rows:
    """A row a line; `head` is how the text begins, or all of it. Raises EndsHereError if no row is there."""
    is_first = True
    for line in lines:
        lines.row_begins()
        if not line.strip():
            continue
        row = row_lines.parse_line(line.rstrip("\n"))
        if isinstance(row, str) and is_first and (kind := file_faults.of_text(head.encode(), whole)):
            raise EndsHereError(kind, lines.number)
        is_first = False
        yield lines.number, row


def of_array(text: Ahead) -> Rows:
    """The items of an array by their number; what is no item ends the reading.

    Raises EndsHereError with the item's number. Never holds more than a few rows of the longest kind.
    """
    number = 0
    if text.next_sign() != "[":
        raise EndsHereError("a JSON array must begin with [", 1)
    text.at += 1
    if text.next_sign() == "]":
        return
    while True:
        number += 1
        text.number = number
        if text.next_sign() == "]":
            raise EndsHereError("a comma stands before the ] at the end; take it out", number)
        yield number, text.item()
        sign = text.next_sign()
        text.at += 1
        if sign == "]":
            break
        if sign != ",":
            what = (
                "the file ends before the ] of its array"
                if not sign
                else "a comma is missing behind this item"
            )
            raise EndsHereError(what, number)
    if text.next_sign():
        raise EndsHereError("something follows the ] of the array", number)


class Ahead:
    """A text with at least a row of the longest kind in sight, if it has so much left."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = io.TextIOWrapper(file, encoding=encoding, newline="")
        self.close = self._file.close
        self._encoding = encoding.removesuffix("-sig").upper()
        self._text = ""
        self._ended = False
        self.at = 0
        self.number = 0  # of the item that is read

    def _fill(self) -> None:
        if self._ended or len(self._text) - self.at > LONGEST_ROW + 1:
            return
        pieces = [self._text[self.at :]]
        self.at = 0
        size = len(pieces[0])
        while size <= 4 * LONGEST_ROW:
            try:
                piece = self._file.read(_PIECE)
            except UnicodeError:
                said = f"the text is not {self._encoding} here or further on; save the file as UTF-8"
                raise EndsHereError(said, self.number) from None
            if not piece:
                self._ended = True
                break
            pieces.append(piece)
            size += len(piece)
        self._text = "".join(pieces)

    def next_sign(self) -> str:
        """The next sign that is no space, "" at the end. Raises EndsHereError for spaces without end."""
        spaces = 0
        while True:
            self._fill()
            found = _SPACE.match(self._text, self.at)
            assert found is not None
            spaces += found.end() - self.at
            self.at = found.end()
            if self.at < len(self._text):
                return self._text[self.at]
            if self._ended:
                return ""
            if spaces > 16 * MOST_BLANK:
                raise EndsHereError("blanks almost without end stand here", self.number)

    def item(self) -> dict[str, object] | str:
        """The item that begins here, or what is wrong with it. Raises EndsHereError where it has no end."""
        self._fill()
        try:
            _, end = _DECODER.raw_decode(self._text, self.at)
        except json.JSONDecodeError as error:
            if not self._ended and max(error.pos, self._opened(error)) - self.at > LONGEST_ROW:
                raise EndsHereError(_too_long(), self.number) from None
            raise EndsHereError(self._fault(error), self.number) from None
        except RecursionError:
            raise EndsHereError(_TOO_DEEP, self.number) from None
        except ValueError:
            end = 0
        if not end:
            raise EndsHereError("a number has too many digits; write it as text, in quotes", self.number)
        if end - self.at > LONGEST_ROW:
            raise EndsHereError(_too_long(), self.number)
        text, self.at = self._text[self.at : end], end
        return row_lines.parse_line(text)

    def _opened(self, error: json.JSONDecodeError) -> int:
        """How far an error reaches: a text without a closing quote is one where it begins."""
        return len(self._text) if error.msg.startswith("Unterminated") else error.pos

    def _fault(self, error: json.JSONDecodeError) -> str:
        """What is wrong inside the item, by the line where that stands, as for JSON lines."""
        begins = max(self._text.rfind("\n", 0, error.pos) + 1, self.at)
        ends = self._text.find("\n", error.pos)
        line = self._text[begins : ends if ends >= 0 else None]
        if not line[error.pos - begins :].strip() and ends < 0:
            return "the file ends in the middle of this item"
        return file_faults.of_line(line, json.JSONDecodeError(error.msg, line, error.pos - begins))


def _too_long() -> str:
    return f"this item is longer than {LONGEST_ROW:,} characters"
