"""Lines of a file as rows: one JSON object each, with what is wrong with those that are none."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from pipeline import display
from pipeline.inputs.data import file_faults
from pipeline.inputs.prompts.conversations import simplified

LONGEST_LINE = 1024 * 1024  # bytes; a row this long is a mistake, and reading it would not be flat memory
DEEPEST = 64  # lists and objects in each other; programs that read rows later give up at a few hundred
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # only an escape can write half of one into valid UTF-8
_HALF = "has half of a surrogate pair, which is not valid text"
_TOO_DEEP = f"not a row: objects are nested too deeply, more than {DEEPEST} in each other"


def scan(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number, the row or what is wrong with the line); stop where reading on is pointless."""
    with path.open("rb") as file:
        head = file.read(file_faults.HEAD)
        text = head.decode("utf-8", "replace")
        if kind := file_faults.of_bytes(head) or file_faults.of_wrapped(text, len(head) < file_faults.HEAD):
            yield 1, kind
            return
        file.seek(0)
        is_first = True
        number = 0
        while True:
            number += 1
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                number += _skip_blank(file) - (not line.endswith(b"\n"))  # spaces without end are one line
                continue
            row, last = _read(line)
            if isinstance(row, str) and row != _TOO_DEEP and is_first:
                kind = file_faults.of_text(head, len(head) < file_faults.HEAD)
                row, last = (kind, True) if kind else (row, last)
            yield number, row
            if last:
                return
            is_first = False


def _skip_blank(file: BufferedReader) -> int:
    """Read on over blank lines, many at a time, as far as they fill what is buffered; how many they were."""
    lines = 0
    while piece := file.peek():
        end = piece.rfind(b"\n", 0, len(piece) - len(piece.lstrip())) + 1
        lines += piece.count(b"\n", 0, end)
        file.read(end)
        if end < len(piece):
            break
    return lines


def parsed(line: bytes, number: int) -> dict[str, Any] | str:
    """The row on a line of a file, or what is wrong with it."""
    return _read(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)[0]


def _read(line: bytes) -> tuple[dict[str, Any] | str, bool]:
    """The row on a line or what is wrong with it, and whether it is no use to read on."""
    if len(line) > LONGEST_LINE:
        return f"the line is longer than {LONGEST_LINE:,} bytes; one row is one line", True
    if b"\0" in line:
        return "the line is not text, it holds zero bytes; expected JSON lines in UTF-8", True
    try:
        text = line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8; save the file as UTF-8", True
    row = parse_line(text)
    return row, row == file_faults.MARKS


class _Slip(ValueError):
    """What JSON allows or this Python reads, and a row may not have."""


def parse_line(text: str) -> dict[str, Any] | str:
    """The row on one line, or what is wrong with it whatever the template is."""
    try:
        row = _JSON.decode(text)
    except json.JSONDecodeError as error:
        return file_faults.of_line(text, error)
    except RecursionError:
        return _TOO_DEEP
    except ValueError as error:  # if not ours, an integer that Python refuses to read for its length
        many = "a number has too many digits; write it as text, in quotes"
        return str(error) if isinstance(error, _Slip) else many
    if not isinstance(row, dict):
        return f'a row must be an object like {{"prompt": …}}, not {kind_of(row)}'
    if _HALF_PAIR.search(text) or any(isinstance(value, (dict, list)) for value in row.values()):
        return _fault_inside(row) or _simplified(row)
    return row


def _simplified(row: dict[str, Any]) -> dict[str, Any]:
    messages = row.get("messages")
    return {**row, "messages": list(map(simplified, messages))} if isinstance(messages, list) else row


def _fault_inside(row: dict[str, Any]) -> str | None:
    """What is wrong with a text or a name somewhere in a row, or with its depth."""
    inside: list[tuple[str, Any, int]] = [("", row, 1)]
    while inside:
        name, value, depth = inside.pop()
        if isinstance(value, str) and not _is_unicode(value):
            return f"{display.quoted(name)} {_HALF}"
        if isinstance(value, (dict, list)) and depth > DEEPEST:
            return _TOO_DEEP
        if isinstance(value, list):
            inside += [(name, each, depth + 1) for each in value]
        elif isinstance(value, dict):
            inside += [(name or key, each, depth + 1) for key, each in value.items()]
            if bad := next((key for key in value if not _is_unicode(key)), None):
                return f"the name {display.quoted(bad)} {_HALF}"
    return None


def _no_constant(name: str) -> NoReturn:
    raise _Slip(f"{name} is not a number JSON allows")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key written twice is a slip that would silently drop a value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(name for name, often in Counter(name for name, _ in pairs).items() if often > 1)
        raise _Slip(f"the key {display.quoted(twice)} stands twice")
    return row


_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_repeats)  # to make one takes long


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else True


def kind_of(value: Any) -> str:
    names = {bool: "true or false", type(None): "null", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), "a number")
