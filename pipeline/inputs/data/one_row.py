"""One row of a dataset, by its line, or the next, the previous, any, or the longest one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.data import file_faults, row_faults, row_lines
from pipeline.inputs.prompts.templates import Template

LINE, NEXT, PREVIOUS, RANDOM, LONGEST = WHERE = ("line", "next", "previous", "random", "longest")


def find(path: Path, template: Template, where: str, line: int = 1) -> tuple[int, dict[str, Any]]:
    """(line number, row), where `where` is one of WHERE and `line` the one it counts from.

    Only the lines that count are parsed. The longest has the most bytes. Raises InputError where there is no
    such row, or it does not fit the template; OSError where the file cannot be read.
    """
    name = display.plain(str(path))
    found = _CHOICES[where](_lines(path), line)
    if found is None:
        what = {
            NEXT: f"{name}: no row is behind line {line:,}",
            PREVIOUS: f"{name}: no row is before line {line:,}",
            LINE: f"{name}: there is no row on line {line:,}",
        }.get(where, f"{name}: the file has no rows")
        raise InputError(what)
    number, text = found
    row = row_lines.parsed(text, number)
    problems = [row] if isinstance(row, str) else list(row_faults.misfits(row, template))
    if problems or isinstance(row, str):
        raise InputError([f"{name}:{number}: {problem}" for problem in problems])
    return number, row


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the lines that are not blank, none much longer than a row may be."""
    if not path.is_file():
        raise InputError(f"{display.plain(str(path))}: there is no such file")
    with path.open("rb") as file:
        if kind := file_faults.of_bytes(file.read(file_faults.HEAD)):
            raise InputError(f"{display.plain(str(path))}:1: {kind}")
        file.seek(0)
        number = 0
        while line := file.readline(row_lines.LONGEST_LINE + 1):
            number += 1
            if line.strip():
                yield number, line
            if len(line) > row_lines.LONGEST_LINE:
                return  # what follows is the rest of it


Lines = Iterator[tuple[int, bytes]]
Found = tuple[int, bytes] | None


def _at(lines: Lines, line: int) -> Found:
    found = _first(lines, line)
    return found if found is not None and found[0] == line else None


def _first(lines: Lines, least: int) -> Found:
    return next((one for one in lines if one[0] >= least), None)


def _before(lines: Lines, line: int) -> Found:
    last = None
    for one in lines:
        if one[0] >= line:
            break
        last = one
    return last


def _any(lines: Lines, line: int) -> Found:
    """Any row but that of `line`, if there is another."""
    chosen, seen, own = None, 0, None
    for one in lines:
        if one[0] == line:
            own = one
            continue
        seen += 1
        if random.random() * seen < 1:  # noqa: S311 - a choice, not a secret
            chosen = one
    return chosen or own


def _longest(lines: Lines, line: int) -> Found:
    return max(lines, key=lambda one: len(one[1]), default=None)


_CHOICES = {
    LINE: _at,
    NEXT: lambda lines, line: _first(lines, line + 1),
    PREVIOUS: _before,
    RANDOM: _any,
    LONGEST: _longest,
}
