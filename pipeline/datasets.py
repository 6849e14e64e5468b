"""Datasets: JSON lines, one object a row, read as a stream."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pipeline import shorten, templates
from pipeline.errors import InputError

LONGEST_LINE = 1024 * 1024  # bytes; a row this long is a mistake, and reading it would not be flat memory
MOST_PROBLEMS = 20
MOST_FIELDS = 100


@dataclass(frozen=True)
class Report:
    """What `check` found. `problems` are sentences that begin with FILE:LINE; `more` were left out."""

    rows: int
    fields: tuple[str, ...]
    first: list[dict[str, Any]]
    problems: list[str]
    more: int = 0
    example: str = ""  # the first row as the model will read it
    example_prompt: str = ""  # the part of it that is given at inference

    @property
    def good(self) -> bool:
        return not self.problems

    def messages(self) -> list[str]:
        """The problems, and at the end how many were not listed."""
        return self.problems + ([f"and {self.more} more"] if self.more else [])


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) for every line that is not blank.

    Raises InputError at the first line that is not a JSON object.
    """
    for line, row in _scan(path):
        if isinstance(row, str):
            raise InputError(f"{path}:{line}: {row}")
        yield line, row


def check(
    path: Path,
    template: str,
    chat: templates.Chat | None = None,
    *,
    first: int = 5,
    most_problems: int = MOST_PROBLEMS,
) -> Report:
    """Read the whole file and say whether every row fits the template.

    With `template` "chat" and no `chat` the fields are checked and nothing is rendered.
    Raises InputError if the file is not there or the template is faulty.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    parsed = templates.parse(template, chat)
    found = _Findings(path, most_problems)
    for line, row in _scan(path):
        if isinstance(row, str):
            found.add(line, row)
            continue
        found.see(row, first)
        for problem in _misfits(row, parsed.fields):
            found.add(line, problem)
    if found.rows == 0 and not found.problems:
        found.add(1, "the file has no rows")
    example, prompt = "", ""
    if found.good_row is not None and (template.strip() != templates.CHAT or chat is not None):
        example, prompt = parsed.full(found.good_row), parsed.prompt(found.good_row)
    return Report(found.rows, tuple(found.fields), found.first, found.problems, found.more, example, prompt)


def load(path: Path, fields: tuple[str, ...], wanted: set[int] | None = None) -> dict[int, dict[str, Any]]:
    """Rows by position, counted from 0; only those `wanted` if given, so memory follows what is used.

    Raises InputError if a row is broken or lacks one of `fields`.
    """
    found = {}
    for index, (line, row) in enumerate(rows(path)):
        if wanted is None or index in wanted:
            for problem in _misfits(row, fields):
                raise InputError(f"{path}:{line}: {problem}")
            found[index] = row
    return found


def count(path: Path) -> int:
    """How many rows there are. Raises InputError at the first broken line."""
    return sum(1 for _ in rows(path))


def split(rows: int, eval_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions (train, held out), each in file order and at least one on either side.

    Rows are ranked by a hash of seed and position, so that the split depends on no library's version.
    Raises InputError if there are fewer than two rows.
    """
    if rows < 2:
        raise InputError(
            f"the data has {rows} row{'s' * (rows != 1)}; at least 2 are needed, one to learn, one to test"
        )
    held_out = min(max(round(rows * eval_fraction), 1), rows - 1)
    ranked = sorted(range(rows), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    return sorted(ranked[held_out:]), sorted(ranked[:held_out])


def sha256(path: Path) -> str:
    """The file's content hash, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class _Findings:
    """What `check` collects on its way through the file."""

    path: Path
    most: int
    rows: int = 0
    fields: dict[str, None] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)
    good_row: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    more: int = 0
    _faulty: bool = False

    def see(self, row: dict[str, Any], first: int) -> None:
        self.rows += 1
        if len(self.fields) < MOST_FIELDS:
            self.fields.update(dict.fromkeys(row))
        if len(self.first) < first:
            self.first.append(row)
        if self.rows == 1:
            self.good_row = row

    def add(self, line: int, problem: str) -> None:
        if self.rows <= 1:
            self.good_row = None  # the first row cannot be shown as an example
        if len(self.problems) < self.most:
            self.problems.append(f"{self.path}:{line}: {problem}")
        else:
            self.more += 1


def _scan(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number, the row or what is wrong with the line); stop where reading on is pointless."""
    with path.open("rb") as file:
        for number in _count_up():
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                yield number, f"the line is longer than {LONGEST_LINE:,} bytes; one row is one line"
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            if b"\0" in line:
                yield number, "this is not text; expected JSON lines in UTF-8"
                return
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                yield number, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                return
            row = _parse(text)
            yield number, row
            if row is _ARRAY:
                return


def _count_up() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


_ARRAY = "the file is a JSON array; write one object a line instead, without [ ] and commas between them"


def _parse(text: str) -> dict[str, Any] | str:
    """The row on one line, or what is wrong with it."""
    try:
        row = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        return (
            _ARRAY if text.lstrip().startswith("[") else f"not JSON: {error.msg} at character {error.pos + 1}"
        )
    except RecursionError:
        return "not a row: objects are nested too deeply"
    except ValueError as error:
        return shorten.text(str(error).partition(";")[0])
    if isinstance(row, list):
        return _ARRAY
    if not isinstance(row, dict):
        return f'a row must be an object like {{"prompt": …}}, not {_kind(row)}'
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number JSON allows")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key written twice is a slip that would silently drop a value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {shorten.value(names.most_common(1)[0][0])} stands twice")
    return row


def _misfits(row: dict[str, Any], fields: tuple[str, ...]) -> Iterator[str]:
    """Reasons why a row cannot fill the template's fields; the last field is the response."""
    for name in fields:
        if name not in row:
            present = shorten.names(row) or "none"
            yield f"the field {shorten.value(name)} of the template is missing; fields here: {present}"
            continue
        value = row[name]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            yield f"{shorten.value(name)} must be text or a number, not {_kind(value)}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{shorten.value(name)} is too large a number"
        elif isinstance(value, str) and not _is_unicode(value):
            yield f"{shorten.value(name)} has half of a surrogate pair, which is not valid text"
    response = row.get(fields[-1]) if fields else None
    if isinstance(response, str) and not response.strip():
        yield f"{shorten.value(fields[-1])} is empty, so there is nothing to learn from this row"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else True


def _kind(value: Any) -> str:
    names = {bool: "true or false", type(None): "null", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), "a number")
