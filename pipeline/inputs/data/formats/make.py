"""Makes the lab's JSON lines of files in any format: a process of its own, limited in memory and time.

`python -m pipeline.inputs.data.formats.make` gets the question as JSON on its standard input, and writes a
line of JSON for each step and in the end what was found. It ends when its standard input does.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import display
from pipeline.errors import InputError, LabError, expected, sentence
from pipeline.inputs.data import datasets
from pipeline.inputs.data.formats import columns, containers, markers, shapes
from pipeline.inputs.data.formats.containers import Container
from pipeline.inputs.data.formats.limits import (
    EXPANDS,
    LONGEST_ROW,
    TOO_LONG,
    UNPACKED,
    EndsHereError,
    Row,
    Rows,
)
from pipeline.inputs.data.formats.shapes import Shape
from pipeline.inputs.data.telling import Clock
from pipeline.system import files, own_process

SAMPLE = 50  # rows that show what all are
SAMPLE_LETTERS = 4 * LONGEST_ROW
MEMORY = 2 << 30  # bytes of address space beside what its programs take
SECONDS = 900  # of processor time
NICE = 10
CANONICAL = frozenset(("prompt", "response", "system"))
OTHER = (
    "the file has other columns than the first one; choose the columns that all have, or give one at a time"
)


HEADER_ONLY = "the file has no rows, only a header"
NAMED = "text"  # what stands in a column of which only the name can be read
EXPANDED = "the files unpack to far more than their size; unpack them, or give a part of them"


@dataclass
class Making:
    """Rows of some files on their way into one, each on the line that has its number.

    Rows of a second file are counted on from the last of the first.
    """

    out: BinaryIO
    chosen: columns.Columns | None
    template: frozenset[str] | None  # the fields of a template somebody wrote; None for a chat's
    containers: dict[str, None] = field(default_factory=dict)
    units: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    shape: Shape | None = None
    applied: columns.Columns | None = None
    rows: int = 0
    read: int = 0  # rows of the files, with and without problems
    problems: list[tuple[int, str]] = field(default_factory=list)
    more: int = 0
    stopped: int = 0
    number: int = 0  # of the row that was read last
    room: int = UNPACKED  # bytes that may still be written
    has_header: bool = False  # whether one of the files names its columns
    _written: int = 0
    _clock: Clock = field(default_factory=Clock)

    def add(self, path: Path, work: Path) -> Iterator[str]:
        """Read one more file; yields how far that is. Sets `stopped` where reading on is pointless."""
        start = self.number
        self.starts.append(start)
        self.units.append(containers.LINE)
        try:
            known = containers.recognised(path)
            if isinstance(known, str):
                raise EndsHereError(known, 1)
            self.containers[known.name] = None
            self.units[-1] = known.unit
            with containers.opened(path, known, work) as rows:
                yield from self._read(rows, start, known)
        except EndsHereError as error:
            self.number = max(self.number, start + (error.line or self.number - start + 1))
            self._note(self.number, str(error))
            self.stopped = self.number
        except OSError as error:
            self._note(start + 1, f"cannot be read ({error.strerror})")
            self.stopped = start + 1

    def _read(self, rows: Rows, start: int, known: Container) -> Iterator[str]:
        unit = known.unit
        first, rest = _sample(rows)
        sample = [row for _, row in first if isinstance(row, dict)]
        names = known.dialect.names if known.dialect else ()
        self.has_header = self.has_header or bool(names)
        try:
            self._see(sample or [dict.fromkeys(names, NAMED)] * bool(names))
        except EndsHereError as error:
            yield from self._count(chain(first, rest), unit)
            raise error
        for number, row in chain(first, rest):
            self.number = start + number
            self._take(row)
            if self.more > datasets.MOST_COUNTED:
                self.stopped = self.number
                return
            if self._clock.is_due():
                yield f"{unit.capitalize()} {number:,}…"

    def _count(self, rows: Rows, unit: str) -> Iterator[str]:
        """Count the rows of a file that is refused."""
        read = self.read
        try:
            for number, row in rows:
                self.read += isinstance(row, dict)
                if self._clock.is_due():
                    yield f"{unit.capitalize()} {number:,}…"
        except EndsHereError:
            if self.read == read:  # that says more than what its header is
                raise

    def _see(self, sample: list[Row]) -> None:
        """Know the rows of a file by its first ones. Raises EndsHereError if they cannot be used."""
        if not sample:
            return
        shape = shapes.recognised(sample)
        if self.shape is not None:
            if self.chosen is None and (shape.name, shape.columns) != (self.shape.name, self.shape.columns):
                raise EndsHereError(OTHER, 1)
            return
        self.shape = shape
        if self._is_raw:
            return
        if self.chosen is None and shape.problem:
            raise EndsHereError(shape.problem, 1)
        self.applied = self.chosen or (None if shape.has_turns else shape.columns)

    @property
    def _is_raw(self) -> bool:
        """Whether rows keep their own fields, which a template names."""
        assert self.shape is not None
        wanted = self.template
        if self.chosen is not None and self.chosen.is_text:
            return False
        return wanted is not None and (not wanted <= CANONICAL or wanted <= set(self.shape.fields))

    def _take(self, row: Row | str) -> None:
        if isinstance(row, dict):
            self.read += 1
            row = self._made(row)
        if isinstance(row, dict):
            try:
                data = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
                row = TOO_LONG if len(data) > LONGEST_ROW else row
            except ValueError as error:  # half of a surrogate pair, or a number that JSON has not
                text = isinstance(error, UnicodeError)
                row = "holds text that is not valid Unicode" if text else "holds a number that JSON has not"
            except RecursionError:
                row = "the row is nested too deeply"
        if isinstance(row, str):
            self._note(self.number, row)
            return
        self.room -= len(data)
        if self.room < 0:
            raise EndsHereError(EXPANDED, self.number - self.starts[-1])
        # What follows a row that is packed with others keeps its number: the lines between are blank.
        self.out.write(b"\n" * (self.number - self._written - 1) + data + b"\n")
        self._written = self.number
        self.rows += 1

    def _made(self, row: Row) -> Row | str:
        if self.applied is not None:
            return columns.applied(row, self.applied)
        if self.shape is not None and self.shape.marked and not self._is_raw:
            return self._unmarked(row, self.shape.key)
        if self.shape is not None and self.shape.has_turns and not self._is_raw:
            made = shapes.chat(row, self.shape.key)
            return made if isinstance(made, str) else {name: _plain(value) for name, value in made.items()}
        return {name: _plain(value) for name, value in row.items() if not isinstance(value, bytes)}

    def _unmarked(self, row: Row, name: str) -> Row | str:
        """A row of the turns between the markers of its text."""
        text = row.get(name)
        made = markers.row(text) if isinstance(text, str) else "must be a text"
        return f"{display.quoted(name)} {made}" if isinstance(made, str) else made

    def _note(self, number: int, problem: str) -> None:
        if len(self.problems) < datasets.MOST_PROBLEMS:
            self.problems.append((number, problem))
        else:
            self.more += 1

    def found(self) -> dict[str, Any]:
        """What `convert` reads."""
        shape = self.shape
        if self.has_header and not self.read and not self.problems:
            self._note(1, HEADER_ONLY)
        return {
            "container": "+".join(self.containers),
            "units": self.units,
            "starts": self.starts,
            "shape": shape.name if shape else shapes.UNKNOWN,
            "fields": shape.fields if shape else [],
            "proposed": shape.columns.to_dict() if shape and shape.columns else None,
            "columns": self.applied.to_dict() if self.applied else None,
            "rows": self.rows,
            "read": self.read,
            "problems": self.problems,
            "more": self.more,
            "stopped": self.stopped if self.more else 0,
        }


def _sample(rows: Rows) -> tuple[list[tuple[int, Row | str]], Rows]:
    """The first rows, fewer where they are long; and the rest, which may be the error that ends them."""
    found, letters = [], 0
    try:
        for number, row in islice(rows, SAMPLE):
            found.append((number, row))
            texts = row.values() if isinstance(row, dict) else [row]
            letters += sum(len(text) for text in texts if isinstance(text, str))
            if letters > SAMPLE_LETTERS:
                break
    except EndsHereError as error:
        return found, _raising(error)
    return found, rows


def _raising(error: EndsHereError) -> Rows:
    yield from ()
    raise error


def _plain(value: Any) -> Any:
    """A value as JSON has it: Parquet also has dates, decimals, maps and missing numbers."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value)


def _limit() -> None:
    """Limit what this process may take from now on."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, most in ((resource.RLIMIT_AS, used + MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        hard = resource.getrlimit(what)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> int:
    os.nice(NICE)
    asked = json.loads(sys.stdin.buffer.readline())
    own_process.end_with_input()
    _limit()
    template = None if asked["template"] is None else frozenset(asked["template"])
    chosen = columns.parse(asked["columns"]) if asked["columns"] else None
    with Path(asked["target"]).open("xb") as out:
        size = files.size(*map(Path, asked["paths"]))
        making = Making(out, chosen, template, room=max(UNPACKED, EXPANDS * size))
        for path in asked["paths"]:
            try:
                for step in making.add(Path(path), Path(asked["target"]).parent):
                    files.make_room(Path(asked["target"]).parent, 0)
                    _say({"step": step})
            except MemoryError:
                making.stopped = making.number + 1
                making.problems.append((making.stopped, "the next rows take far more memory than rows may"))
            if making.stopped:
                break
    _say({"made": making.found()})
    return 0


def _say(answer: dict[str, Any]) -> None:
    own_process.answer(json.dumps(answer))


if __name__ == "__main__":
    try:
        code = _main()
    except InputError as error:
        _say({"refused": error.problems})
        code = 0
    except LabError as error:
        _say({"refused": [str(error)]})
        code = 0
    except Exception as error:  # who asks knows the home, where the traceback of what nobody foresaw goes
        details = "" if expected(error) else traceback.format_exc()
        _say({"failed": sentence(error), "traceback": details})
        code = 1
    sys.stdout.flush()
    os._exit(code)  # a library's thread would delay the exit, and somebody waits for it
