"""What a file is by its first bytes, and its rows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pipeline.inputs.data import file_faults
from pipeline.inputs.data.formats import delimited, json_rows, markers, parquet, plain_text, text_lines
from pipeline.inputs.data.formats.limits import EndsHereError, Rows

HEAD = file_faults.HEAD
JSON_LINES, JSON_ARRAY, CSV, TSV, PARQUET, TEXT = "jsonl", "json", "csv", "tsv", "parquet", "txt"
LINE, ROW = "line", "row"
GZ = ".gz"
TEXT_ENDINGS = (".txt", ".text")
_JSON = re.compile(
    r"""\s*(?:\{\s*(?:["'}]|\Z)|\[\s*(?:["'{\[\]]|\Z))"""
)  # else [ begins a note, { a sentence


@dataclass(frozen=True)
class Container:
    """How the rows are packed.

    kind     jsonl, json (an array), csv, tsv, parquet or txt, whose rows are paragraphs or lines
    packed   whether that is inside gzip
    text     the encoding, "" for Parquet
    dialect  of csv and tsv
    """

    kind: str
    packed: bool
    text: str = ""
    dialect: delimited.Dialect | None = None

    @property
    def name(self) -> str:
        """As `check --json` has it, such as `csv.gz`."""
        return self.kind + GZ * self.packed

    @property
    def unit(self) -> str:
        """What its rows are counted in."""
        return ROW if self.kind in (JSON_ARRAY, PARQUET) else LINE

    @property
    def is_plain(self) -> bool:
        """Whether all of the lab reads it as it is."""
        return self.kind == JSON_LINES and not self.packed and self.text.startswith("utf-8")


def recognised(path: Path) -> Container | str:
    """What the file is, or a sentence for what is none of these. Raises OSError."""
    try:
        with text_lines.unpacked(path) as file:
            packed = isinstance(getattr(file, "raw", None), text_lines.Unpacked)
            head = _head(file)
    except EndsHereError as error:
        return str(error)
    ending = path.with_suffix("").suffix if packed else path.suffix
    return _recognised(head, packed, ending.lower())


def _head(file: BinaryIO) -> bytes:
    """The beginning; for a first line that is longer more does not help."""
    head = b""
    while len(head) < HEAD and (piece := file.read(HEAD - len(head))):
        head += piece
    return head


def _recognised(head: bytes, packed: bool, ending: str) -> Container | str:
    if head.startswith(parquet.MAGIC):
        return Container(PARQUET, packed)
    encoding = text_lines.encoding(head)
    text, whole = _text(head, encoding), len(head) < HEAD
    kind = file_faults.of_bytes(head) if encoding.startswith("utf-8") else None
    if kind := kind or file_faults.of_wrapped(text, whole):
        return kind
    return _of_text(text, Container(JSON_LINES, packed, encoding), ending, whole)


def _of_text(text: str, lines: Container, ending: str, whole: bool) -> Container | str:
    """What a file is that begins with a text, or is `whole` of it; `lines` if it is JSON lines."""
    fault = file_faults.of_text(text.encode("utf-8", "replace"), whole)
    if ending in TEXT_ENDINGS and _is_prose(text, fault):
        return replace(lines, kind=TEXT)
    if fault == file_faults.ARRAY:
        return replace(lines, kind=JSON_ARRAY)
    if text.lstrip().startswith(("{", "[")) or (fault is None and ending not in delimited.ENDINGS):
        return lines
    dialect = None if fault and fault.startswith(file_faults.MARKUP) else delimited.sniffed(text, ending)
    if dialect is None:
        return fault or lines
    return replace(lines, kind=TSV if dialect.separator == "\t" else CSV, dialect=dialect)


def _is_prose(text: str, fault: str | None) -> bool:
    """Whether the beginning of a file that is called a text is one: no JSON, no table, no web page."""
    if not text.strip() or _JSON.match(text) or file_faults.has_objects(text):
        return False
    if markers.begins(text.lstrip()):
        return True
    is_markup = fault is not None and fault.startswith(file_faults.MARKUP)
    return not is_markup and not delimited.is_table(text)


def _text(head: bytes, encoding: str) -> str:
    return head.decode(encoding, "replace").removeprefix("\ufeff")


@contextmanager
def opened(path: Path, container: Container, work: Path) -> Iterator[Rows]:
    """The rows of a file. Reading raises EndsHereError; `work` is a folder for what must be unpacked."""
    if container.kind == PARQUET:
        yield parquet.rows(_whole(path, work) if container.packed else path)
        return
    file = text_lines.unpacked(path)
    if container.kind == JSON_ARRAY:
        with closing(json_rows.Ahead(file, container.text)) as text:
            yield json_rows.of_array(text)
        return
    with closing(text_lines.TextLines(file, container.text)) as lines:
        if container.kind == TEXT:
            with closing(text_lines.TextLines(text_lines.unpacked(path), container.text)) as ahead:
                paragraphs = plain_text.has_paragraphs(ahead)
            yield plain_text.rows(lines, paragraphs)
            return
        if container.dialect is not None:
            yield delimited.rows(lines, container.dialect)
            return
        with text_lines.unpacked(path) as again:
            head = _head(again)
        yield json_rows.of_lines(lines, _text(head, container.text), len(head) < HEAD)


def _whole(path: Path, work: Path) -> Path:
    """A packed file as it is inside: Parquet is not read from its beginning to its end."""
    target = work / "unpacked"
    with text_lines.unpacked(path) as file, target.open("wb") as out:
        shutil.copyfileobj(file, out, text_lines.PIECE)
    return target
