"""Rows as files of all formats, and what is made of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.inputs.data.formats import convert
from pipeline.inputs.data.formats.columns import Columns
from pipeline.inputs.data.formats.convert import Made

Row = dict[str, Any]


def table(rows: list[Row], separator: str = ",", ends: str = "\r\n") -> str:
    """Rows as CSV: nested values as JSON."""
    file = io.StringIO()
    names = list(rows[0])
    writer = csv.writer(file, delimiter=separator, lineterminator=ends)
    writer.writerow(names)
    for row in rows:
        cells = [row[name] for name in names]
        writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
    return file.getvalue()


def parquet(rows: list[Row]) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows), file)
    return file.getvalue()


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


# The name of a file, what `check` calls it, and its bytes.
FORMATS: dict[str, tuple[str, Callable[[list[Row]], bytes]]] = {
    "a.jsonl": ("jsonl", lines),
    "a.jsonl.gz": ("jsonl.gz", lambda rows: gzip.compress(lines(rows))),
    "utf16.jsonl": ("jsonl", lambda rows: lines(rows).decode().encode("utf-16")),
    "a.json": ("json", lambda rows: json.dumps(rows).encode()),
    "pretty.json": ("json", lambda rows: b"\xef\xbb\xbf" + json.dumps(rows, indent=2).encode()),
    "a.csv": ("csv", lambda rows: table(rows).encode()),
    "excel.csv": ("csv", lambda rows: b"\xef\xbb\xbf" + table(rows, ";").encode()),
    "said.csv": ("csv", lambda rows: ("sep=;\r\n" + table(rows, ";")).encode()),
    "mac.csv": ("csv", lambda rows: table(rows, ends="\r").encode()),
    "utf16.csv": ("csv", lambda rows: table(rows, ";").encode("utf-16")),
    "utf16.tsv": ("tsv", lambda rows: table(rows, "\t").encode("utf-16")),
    "a.tsv": ("tsv", lambda rows: table(rows, "\t").encode()),
    "a.csv.gz": ("csv.gz", lambda rows: gzip.compress(table(rows).encode())),
    "a.parquet": ("parquet", parquet),
    "a.parquet.gz": ("parquet.gz", lambda rows: gzip.compress(parquet(rows))),
}


def made(folder: Path, *files: Path, template: str = "chat", chosen: Columns | None = None) -> Made:
    """What is made of files, in a folder of its own."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    (work / "made.jsonl").unlink(missing_ok=True)
    steps = convert.preparing(files, work / "made.jsonl", template, chosen)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Made = end.value
            return found


def made_of(folder: Path, content: str | bytes, name: str = "data.csv", **how: Any) -> Made:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return made(folder, path, **how)


def rows_of(found: Made) -> dict[int, Row]:
    """The rows by the number of the line on which they are."""
    text = found.path.read_bytes().decode("utf-8-sig")
    numbered = enumerate(text.split("\n"), 1)
    return {number: json.loads(line) for number, line in numbered if line.strip()}
