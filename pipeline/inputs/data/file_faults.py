"""What a file is that is not JSON lines, and what is wrong with a line that is not JSON: a sentence each."""

from __future__ import annotations

import csv
import json
import re
from itertools import islice
from pathlib import Path

from pipeline import display

MARKUP = ("the file is a web page (HTML)", "the file is XML")
HEAD = 64 * 1024  # bytes that show a file's kind
INSTEAD = "save it as JSON lines, one object per line in UTF-8"
ARRAY = "the file is a JSON array; write one object per line instead, without [ ] and commas between them"
SEVERAL_LINES = "the file is JSON over several lines; write each object on one line, in UTF-8"
PYTHON = (
    "these are Python dicts; save them with json.dumps: names and texts in double quotes, null, true and"
    " false"
)
COMMAS = "a comma follows the object; write one object per line, without commas between them"
COMMENT = "this is a comment, which JSON does not have; take it out"
JOINED = "several objects stand on one line; write one object per line"
OLD_MAC = f"the file has the line ends of old Macs (CR alone); {INSTEAD}, with LF line ends"
MARKS = (
    "the line begins with a byte-order mark, which may only stand at the start of the file; save the file as"
    " UTF-8 without such marks"
)
PLAIN = "plain text, not JSON lines"
COMPRESSED = "the file is compressed ({}); unpack it, and give the file inside"
_COMPRESSED = {
    b"PK\x03\x04": "ZIP",
    b"PK\x05\x06": "ZIP",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}
_FORMATS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"\xd0\xcf\x11\xe0": "an old Office document, such as .xls",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
}
_ENCODINGS = (  # those of 4 bytes first: their mark begins with that of 2
    (b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
_UNMARKED = (
    (rb"[\s -~]\0\0\0", "UTF-32"), (rb"\0\0\0[\s -~]", "UTF-32"),
    (rb"[\s -~]\0[\s -~]\0", "UTF-16"), (rb"\0[\s -~]\0[\s -~]", "UTF-16"),
)  # fmt: skip
_PYTHON_WORD = re.compile(r"(None|True|False)\b|[ubr]?'")
_NAME = re.compile(r"[\w .-]{1,60}")
_CONTROLS = {"\t": ("a tab", "\\t"), "\r": ("a carriage return", "\\r")}
_WRAPPED = re.compile(  # {"version": "1.1", "data": [{
    r'\s*\{\s*(?:"[^"\\]{1,60}"\s*:\s*(?:"[^"\\]{0,1000}"|[\w.+-]+)\s*,\s*){0,10}'
    r'"(data|train|test|validation|rows|examples|records|samples|items|dataset)"\s*:\s*\[\s*[{\[]'
)
_COMMENT = ("//", "/*", "#")
_SEPARATORS = (("\t", "TSV (tab-separated)"), (",", "CSV"), (";", "CSV (with semicolons)"))


def no_file(path: Path) -> str:
    """Why a path is no file."""
    return "is a folder; give the files in it" if path.is_dir() else "there is no such file"


def of_wrapped(text: str, whole: bool) -> str | None:
    """What is wrong with a file that is one object around the list of its rows; None for any other.

    `text` is its beginning, or `whole` of it.
    """
    found = _WRAPPED.match(text.removeprefix("\ufeff"))
    if not found:
        return None
    lines = [line for line in text.split("\n") if line.strip()]
    if sum(_is(dict, line) for line in lines[: None if whole else -1][:5]) > 1:
        return None  # JSON lines, whose rows have such a list
    return (
        f"the rows stand in a list inside {display.quoted(found[1])}; give the list itself, from its [ to its"
        " ], as a JSON array"
    )


def of_bytes(head: bytes) -> str | None:
    """What the first bytes of a file say it is, if that is not text in UTF-8."""
    packed = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
    office = b"xl/" in head or b"[Content_Types].xml" in head
    if packed and not (packed == "ZIP" and office):
        return COMPRESSED.format(packed)
    what = "an Office document, such as .xlsx" if packed else _format(head)
    return f"the file is {what}; {INSTEAD}" if what else None


def _format(head: bytes) -> str | None:
    for magic, what in _FORMATS.items():
        if head.startswith(magic):
            return what
    encoding = next((name for mark, name in _ENCODINGS if head.startswith(mark)), None)
    encoding = encoding or next((name for shape, name in _UNMARKED if re.match(shape, head)), None)
    if encoding:
        return f"in {encoding}"
    return "not text but binary data" if b"\0" in head.partition(b"\n")[0] else None


def of_text(head: bytes, whole: bool) -> str | None:
    """What a file is whose first line is no row: `head` is its beginning, or `whole` of it.

    None if only that line is wrong, as far as can be seen.
    """
    text = head.decode("utf-8", "replace").removeprefix("\ufeff")
    if "\r" in text and "\n" not in text and "\r" in text.strip():
        return OLD_MAC
    lines = [line.strip() for line in text.split("\n") if line.strip()] or [""]
    first, others = lines[0], lines[1 : None if whole else -1]
    if first.startswith("["):
        return _array(lines, whole)
    if first.startswith("{"):
        return None if any(_is(dict, line) for line in others[:5]) else _objects(text.lstrip(), first)
    if not first or _is(str, first) or any(line.startswith("{") for line in others):
        return None
    what = "a web page (HTML)" if re.match(r"<(!doctype html|html|head|body)\b", first, re.I) else None
    what = what or ("XML" if re.match(r"<[?!a-z]", first, re.I) else None)
    what = what or _table(lines if whole else lines[:-1]) or PLAIN
    also = ", or call it .txt to train on its paragraphs" if what == PLAIN else ""
    return f"the file is {what}; {INSTEAD}{also}"


def has_objects(text: str) -> bool:
    """Whether one of the first lines of a text is a JSON object."""
    lines = (line.strip() for line in text.split("\n", 10)[:10])
    return any(_is(dict, line) for line in lines if line.startswith("{"))


def _array(lines: list[str], whole: bool) -> str | None:
    """A file is an array if its first line is one alone, or only begins one."""
    first, others = lines[0], lines[1:]
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return None if first != "[" and others and _is(dict, others[0]) else ARRAY
    return ARRAY if whole and not others else None


def _objects(text: str, first: str) -> str | None:
    """What is wrong with objects if it is the same in the whole file."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        if _PYTHON_WORD.match(text, error.pos) and error.pos < len(first):
            return PYTHON
        unfinished = first.endswith(("{", "[", ",", ":")) and error.pos >= len(first)
        return SEVERAL_LINES if unfinished else None
    except (ValueError, RecursionError):
        return None
    if "\n" in text[:end]:
        return SEVERAL_LINES
    return {",": COMMAS, "{": JOINED}.get(text[end:].lstrip(" \t\r")[:1])


def _is(kind: type, line: str) -> bool:
    """Whether a line is JSON of that kind."""
    try:
        return isinstance(json.loads(line), kind)
    except (ValueError, RecursionError):
        return False


def _table(lines: list[str]) -> str | None:
    """Lines that all have as many columns as the first one, which names them."""
    for separator, what in _SEPARATORS:
        try:
            rows = list(islice(csv.reader(lines, delimiter=separator), 20))
        except csv.Error:
            continue
        names = rows[0] if rows else []
        alike = all(len(row) == len(names) for row in rows[:-1])
        if len(names) > 1 and alike and all(_NAME.fullmatch(name) for name in names):
            return f"{what}, a table"
    return None


def of_line(text: str, error: json.JSONDecodeError) -> str:
    """Why one line is not JSON, in our own words, and what to do."""
    if text.startswith("\ufeff"):
        return MARKS
    rest = text[error.pos :]
    where = f"at character {error.pos + 1}"
    if error.msg.startswith(("Unterminated string", "Invalid")):
        why = _inside_text(error.msg, rest, where)
    elif error.msg.startswith("Extra data"):
        why = _extra(text[: error.pos], rest.strip(), where)
    elif not rest.strip():
        why = f"the line ends too early, {where}; the whole object must stand on one line"
    elif rest.startswith(_COMMENT):
        why = f"{COMMENT} ({where})"
    elif _PYTHON_WORD.match(rest):
        why = f"{PYTHON} ({where})"
    elif rest[0] in "}]" and text[: error.pos].rstrip().endswith(","):
        why = f"a comma stands before the {rest[0]} {where}; take it out"
    elif error.msg.startswith("Expecting ',' delimiter"):
        why = f'a comma is missing {where}, or a quote inside a text, which is written \\"'
    else:
        why = f"{display.quoted(rest[:1])} {where} is not expected there"
    return f"not JSON: {why}"


def _inside_text(message: str, rest: str, where: str) -> str:
    if message.startswith("Unterminated"):
        return (
            f"the text that begins {where} has no closing quote on this line;"
            " write a line break inside a text as \\n"
        )
    if message.startswith("Invalid \\u"):
        return f"\\u needs four hexadecimal digits after it, {where}"
    if message.startswith("Invalid \\"):
        return f"the backslash {where} begins no escape that JSON knows; write it as \\\\"
    what, written = _CONTROLS.get(rest[:1], (f"the control character {display.quoted(rest[:1])}", "\\uXXXX"))
    return f"{what} stands inside a text {where}; write it as {written}"


def _extra(before: str, rest: str, where: str) -> str:
    if "\r" in before.strip() or before.endswith("\r"):
        return OLD_MAC
    if rest.startswith(_COMMENT):
        return f"{COMMENT} ({where})"
    if rest == ",":
        return COMMAS
    if rest.lstrip(", ").startswith("{"):
        return JOINED
    return f"something follows the first value, {where}: {display.quoted(rest[:20])}"
