"""CSV and TSV, also as Excel writes them: which sign separates, which names the header gives, the rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline import display
from pipeline.inputs.data.formats.limits import (
    LONGEST_ROW,
    MOST_COLUMNS,
    EndsHereError,
    Row,
    Rows,
    too_many_columns,
)
from pipeline.inputs.data.formats.text_lines import TextLines

SEPARATORS = ",;\t"
ENDINGS = (".csv", ".tsv", ".tab")
LOOKED_AT = 30  # rows that show which sign separates
ALIKE = 0.9  # share of them that has as many cells as the header
LONGEST_NAME = 60  # letters of a header's cell; longer ones are data
_NAME = re.compile(r"[\w .()/#-]{1,60}\??")
_SAID = re.compile(r"sep=(.)\n?", re.IGNORECASE)  # Excel's first line, which no reader shows
_UNCLOSED = "a quote that opens here is never closed"


@dataclass(frozen=True)
class Dialect:
    """How a table is written. `named` says whether its first row names the columns, and `names` which."""

    separator: str
    said: bool = False  # in a first line of its own
    named: bool = True
    names: tuple[str, ...] = ()


def sniffed(text: str, ending: str) -> Dialect | None:
    """How the table that begins with `text` is written; None where it is none.

    A file that ends in .csv or .tsv is one whatever its names are.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if found := _SAID.match(text):
        return Dialect(found[1], said=True)
    lines = text.splitlines(keepends=True)
    best: tuple[float, int, str] = 0.0, 1, ""
    for separator in SEPARATORS:
        rows = list(islice(_cells(lines, separator), LOOKED_AT))
        if rows and len(rows[0]) > 1:
            alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
            best = max(best, (alike, len(rows[0]), separator))
    sure = ending in ENDINGS
    separator = best[2] or ("," if sure and ending == ".csv" else "\t" if sure else "")
    if not separator:
        return None
    header = next(_cells(lines, separator), [])
    if not sure and (best[0] < ALIKE or not all(_NAME.fullmatch(cell.strip()) for cell in header)):
        return None
    named = _is_header(header)
    names = tuple(" ".join(cell.split()) for cell in header[:MOST_COLUMNS])
    return Dialect(separator, named=named, names=names if named and all(names) else ())


def is_table(text: str) -> bool:
    """Whether a text that nothing says to be a table is one, and no prose: there a space follows a comma."""
    found = sniffed(text, "")
    if found is None or found.said:
        return found is not None
    header = next(_cells(text.splitlines(keepends=True), found.separator), [])
    return not any(cell.startswith(" ") for cell in header)


def _cells(lines: list[str], separator: str) -> Iterator[list[str]]:
    """Rows of a beginning, whose last one may be cut off."""
    try:
        yield from (row for row in csv.reader(lines, delimiter=separator) if any(map(str.strip, row)))
    except csv.Error:
        return


def _is_header(cells: list[str]) -> bool:
    """Whether a first row names columns: names are short, and no sentences."""
    return not any(
        len(cell) > LONGEST_NAME
        or "\n" in cell
        or (cell.count(" ") >= 3 and cell.rstrip().endswith((".", "?", "!")))
        for cell in cells
    )


def rows(lines: TextLines, dialect: Dialect) -> Rows:
    """The rows by the number of the line on which they begin; wrong ones as what is wrong.

    Raises EndsHereError where a row has no end or the table too many columns.
    """
    csv.field_size_limit(LONGEST_ROW)  # of the whole process, which is one of its own
    source = iter(lines)
    if dialect.said:
        next(source, None)
    reader = csv.reader(source, delimiter=dialect.separator, strict=True)
    names: list[str] = []
    while True:
        begins = lines.number + 1
        lines.row_begins()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield begins, _fault(error, dialect)
            continue
        if not any(cells):  # all are empty: Excel writes such rows below the last one
            continue
        if not names:
            names = _names(cells, dialect, begins)
            if dialect.named:
                continue
        yield begins, _row(names, cells)


def _names(cells: list[str], dialect: Dialect, line: int) -> list[str]:
    """What the columns are called: each has a name, and no two the same. Raises EndsHereError."""
    if len(cells) > MOST_COLUMNS:
        raise EndsHereError(too_many_columns(len(cells)), line)
    found: dict[str, None] = {}
    for number, cell in enumerate(cells, 1):
        name = " ".join(cell.split()) if dialect.named else ""
        name = name or f"column {number}"
        found[f"{name} ({number})" if name in found else name] = None
    return list(found)


def _row(names: list[str], cells: list[str]) -> Row | str:
    while len(cells) > len(names) and not cells[-1]:
        cells.pop()
    if len(cells) != len(names):
        few = (
            f"the row has {len(cells):,} cell{'s' * (len(cells) != 1)}, and the table {len(names):,} columns"
        )
        return f"{few}; put texts that hold the separator into double quotes"
    return dict(zip(names, cells, strict=True))


def _fault(error: csv.Error, dialect: Dialect) -> str:
    said = str(error)
    if "unexpected end" in said:
        return _UNCLOSED
    if "expected after" in said:
        after = display.quoted(dialect.separator)
        return f'{after} must follow the quote that closes a cell; write a quote inside a cell twice, as ""'
    if "field larger" in said:
        return f"a cell is longer than {LONGEST_ROW:,} characters"
    return f"this is not a row of a table ({said})"
