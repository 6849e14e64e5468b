"""Datasets: JSON lines, one object a row, read as a stream."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.data import file_faults, row_faults, row_lines, splitting, telling
from pipeline.inputs.data.lengths import Lengths
from pipeline.inputs.data.splitting import POSITIONS, ROWS, TURNS, Contents, Parts
from pipeline.inputs.data.telling import Clock, ended
from pipeline.inputs.prompts import templates

T = TypeVar("T")
MADE = ".made.json"  # beside a dataset in the home that was made of other files: of which, and how
SOURCE = ".source"  # beside one that is from the hub: its id there
LEFT_OUT = ".left_out"  # beside one that is a copy without some rows: the choice of these
HASHED = re.compile("[0-9a-f]{64}")
MOST_PROBLEMS = 20  # that are listed,
MOST_COUNTED = 100_000  # and that are counted before reading ends
COMPARING = "Comparing rows…"
FIRST_ROWS = 5  # that are shown
MOST_FIELDS = 100
PIECE = 1 << 20
ENOUGH_ROWS = 10_000  # to tell that all have the same prompt,
ENOUGH_BYTES = 2 << 20  # and those that begin in so many bytes, because a page waits for it


@dataclass(frozen=True)
class Report:
    """What `check` found. `problems` are sentences that begin with FILE:LINE; `more` were left out.

    `rows` are those of the file that could be read, with and without problems.
    """

    rows: int
    fields: tuple[str, ...]
    first: list[dict[str, Any]]
    problems: list[str]
    more: int = 0
    stopped: int = 0  # the line at which reading ended, because of too many
    example: str = ""  # the first row as the model will read it
    example_prompt: str = ""  # the part of it that is given at inference
    notes: list[str] = field(default_factory=list)  # what can be used, and had better be known
    unasked: str = ""  # why no held-out prompt can be answered, if none can
    broken: int = 0  # lines that are no rows, whatever the template is
    example_earlier: list[tuple[int, int]] = field(
        default_factory=list
    )  # answers in the prompt, as positions

    @property
    def good(self) -> bool:
        return not self.problems

    @property
    def has_rows(self) -> bool:
        """Whether the file may be of use, if not with this template."""
        return self.rows > 0 and not self.broken

    def messages(self) -> list[str]:
        """The problems, and at the end how many were not listed."""
        where = f" up to line {self.stopped:,}; the rest was not read" if self.stopped else ""
        return self.problems + ([f"and {self.more:,} more{where}"] if self.more else [])


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) for every line that is not blank.

    Raises InputError at the first line that is not a JSON object of valid text.
    """
    for line, row in row_lines.scan(path):
        if isinstance(row, str):
            raise InputError(f"{display.plain(str(path))}:{line}: {row}")
        yield line, row


def readable(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`rows` without the lines that are none, which `check` names."""
    return ((line, row) for line, row in row_lines.scan(path) if isinstance(row, dict))


def check(
    path: Path, template: str, chat: templates.Chat | None = None, lengths: Lengths | None = None
) -> Report:
    """`checking` to its end."""
    return ended(checking(path, template, chat, lengths))


def checking(
    path: Path,
    template: str,
    chat: templates.Chat | None = None,
    lengths: Lengths | None = None,
    *,
    eval_fraction: float = 0.1,
    seed: int = 0,
) -> Generator[str, None, Report]:
    """Read the whole file and say whether every row fits the template; yields how far that is, as sentences.

    Every row is rendered; with `template` "chat" and no `chat` only the fields are checked. `lengths` counts
    rows that are too long. Notes are on the split of `eval_fraction` and `seed`.
    Says something at least every `telling.TELL_SECONDS` or so, for whoever wants to leave.
    Raises InputError if the file is not there or the template is faulty.
    """
    if not path.is_file():
        raise InputError(f"{display.plain(str(path))}: {file_faults.no_file(path)}")
    parsed = templates.parse(template, chat)
    found = _Findings(path, parsed, Contents(parsed.fields, parsed.optional, seed))
    good = found.good_rows()
    if template.strip() != templates.CHAT or chat is not None:
        for result in found.rendered(good):
            if result is None:
                yield f"Line {found.line:,}…"
                continue
            line, position, rendered = result
            if lengths is not None and rendered is not None:
                lengths.add(position, line, rendered)
            if lengths is not None and lengths.full:
                yield from _count(lengths)
            if found.clock.is_due():
                yield f"Row {position + 1:,}…"
    for row in good:  # where none was rendered
        if row is None or found.clock.is_due():
            yield f"Line {found.line:,}…"
    if lengths is not None:
        yield from _count(lengths)
    return (yield from found.report(lengths, eval_fraction))


def _count(lengths: Lengths) -> Iterator[str]:
    if lengths.waits_for:
        yield lengths.waits_for
    lengths.count()


def load(
    path: Path, template: templates.Template, wanted: set[int] | None = None
) -> dict[int, dict[str, Any]]:
    """Rows by position, counted from 0; only those `wanted` if given, so memory follows what is used.

    Raises InputError if a row is broken or does not fit the template.
    """
    found = {}
    for index, (line, row) in enumerate(rows(path)):
        if wanted is None or index in wanted:
            for problem in row_faults.misfits(row, template):
                raise InputError(f"{display.plain(str(path))}:{line}: {problem}")
            found[index] = row
    return found


def count(path: Path) -> int:
    """How many rows there are. Raises InputError at the first broken line."""
    return sum(1 for _ in rows(path))


def about_how_many(path: Path) -> Generator[str, None, int]:
    """How many lines look like rows: far faster than `count`. Yields how far that is. Raises OSError."""
    clock, found, done = Clock(), 0, 0
    with path.open("rb") as file:
        before = b"\n"
        while piece := file.read(PIECE):
            found += (before + piece).count(b"\n{")
            before, done = piece[-1:], done + len(piece)
            if clock.is_due():
                yield f"Counting rows: {display.size(done)}…"
    return found


def split(path: Path, template: templates.Template, eval_fraction: float, seed: int) -> Parts:
    """The rows of a file in two parts, so that identical prompts are in one: see `Contents.parts`.

    Raises InputError if a row is broken or does not fit the template, or if there are fewer than two.
    """
    contents = Contents(template.fields, template.optional, seed)
    for line, row in rows(path):
        for problem in row_faults.misfits(row, template):
            raise InputError(f"{display.plain(str(path))}:{line}: {problem}")
        contents.add(row)
    if len(contents) < 2:
        raise InputError(too_few(path, len(contents)))
    return contents.parts(eval_fraction)


def too_few(path: Path, count: int) -> str:
    """Why a file with so many rows cannot be split."""
    return f"{display.plain(str(path))}: {splitting.too_few(count)}"


def one_prompt(path: Path, template: templates.Template) -> bool:
    """Whether the first rows have the same prompt; no more of them are read than it takes to tell.

    False if one of these is unreadable.
    """
    seen = None
    try:
        with path.open("rb") as file:
            whole = file.read(ENOUGH_BYTES).split(b"\n")[:-1]
            enough = min(
                ENOUGH_ROWS, max(2, sum(1 for line in whole if line.strip()))
            )  # blank lines are no rows
        for _, row in islice(rows(path), enough):
            if any(row_faults.misfits(row, template)):
                return False
            prompt = splitting.prompt_texts(row, template.fields, template.optional)
            if seen is not None and prompt != seen:
                return False
            seen = prompt
    except (InputError, OSError):
        return False
    return seen is not None


def use(dataset: Path) -> None:
    """Note that somebody works with a dataset, which makes no room then. When it was written stays known."""
    with suppress(OSError, ValueError):  # one of the samples, which may be anybody's, or the name of no file
        os.utime(dataset, ns=(time.time_ns(), dataset.stat().st_mtime_ns))


def kept_sha256(copy: Path) -> str:
    """The content hash of a copy in the home, "" if it is not known any more.

    It is the name of its folder. Where that is named by more than the content, it is computed.
    """
    if any((copy.parent / name).is_file() for name in (MADE, LEFT_OUT, SOURCE)):
        return sha256(copy) if copy.is_file() else ""
    return named_sha256(copy)


def named_sha256(copy: Path) -> str:
    """`kept_sha256` where the name of the folder is the hash, else ""."""
    if any((copy.parent / name).is_file() for name in (MADE, LEFT_OUT, SOURCE)):
        return ""
    name = copy.parent.name
    return name if HASHED.fullmatch(name) else ""


def sha256(path: Path) -> str:
    """The file's content hash, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class _Findings:
    """What `checking` collects on its way through the file."""

    path: Path
    template: templates.Template
    contents: Contents
    rows: int = 0
    fields: dict[str, None] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)
    example: templates.Rendered | None = None
    problems: list[tuple[int, str]] = field(default_factory=list)
    more: int = 0
    stopped: int = 0
    broken: int = 0
    line: int = 0  # that was read last
    unread_tools: int = 0  # rows with tools that the chat template does not write
    clock: Clock = field(default_factory=Clock)
    _good: deque[tuple[int, int, int]] = field(default_factory=deque)  # not yet rendered: line, position, row

    def good_rows(self) -> Iterator[dict[str, Any] | None]:
        """The rows that fit the template; what is wrong with the others is noted.

        None among them says that it is time to tell how far this is: others may go on for long.
        """
        for line, row in row_lines.scan(self.path):
            self.line = line
            problems = [row] if isinstance(row, str) else self._see(row)
            self.broken += isinstance(row, str)
            for problem in problems:
                self.add(line, problem)
            if self.more > MOST_COUNTED:
                self.stopped = line
                return
            if problems and self.clock.is_due():
                yield None
            if not problems and isinstance(row, dict):
                self._good.append((line, len(self.contents), self.rows))
                self.contents.add(row)
                self.unread_tools += templates.ignores_tools(self.template, row)
                yield row

    def rendered(
        self, good: Iterator[dict[str, Any] | None]
    ) -> Iterator[tuple[int, int, templates.Rendered | None] | None]:
        """(line, position, the row as text); no text for a row that the template refuses, which is noted.

        None is passed on. All are tried, so that all are counted. A template that takes too long on average
        is not run further.
        """
        for result in templates.each_or_none(self.template, good):
            if result is None:
                yield None
                continue
            line, position, row = self._good.popleft()
            if isinstance(result, str):
                self.add(line, result)
                yield line, position, None
                continue
            if row == 1:
                self.example = result
            yield line, position, result

    def _see(self, row: dict[str, Any]) -> list[str]:
        """Note a row; what is wrong with it."""
        self.rows += 1
        if len(self.fields) < MOST_FIELDS:
            self.fields.update(dict.fromkeys(islice(row, MOST_FIELDS)))
        if len(self.first) < FIRST_ROWS:
            self.first.append(row)
        return list(row_faults.misfits(row, self.template))

    def add(self, line: int, problem: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append((line, problem))
        else:
            self.more += 1

    def report(self, lengths: Lengths | None, eval_fraction: float) -> Generator[str, None, Report]:
        """What was found, once all rows were seen; yields how far that is."""
        if self.rows == 0 and not self.problems:
            empty = self.path.stat().st_size == 0
            self.add(1, "the file is empty" if empty else "the file has no rows")
        name = display.plain(str(self.path))
        problems = [f"{name}:{line}: {problem}" for line, problem in sorted(self.problems)]
        notes, unasked = ([], "") if problems else (yield from self._notes(lengths, eval_fraction))
        example, prompt = (self.example.full, self.example.prompt) if self.example else ("", "")
        return Report(
            self.rows,
            tuple(self.fields),
            self.first,
            problems,
            self.more,
            self.stopped,
            example,
            prompt,
            notes,
            unasked,
            self.broken,
            [(span.start, span.stop) for span in self.example.earlier] if self.example else [],
        )

    def _notes(
        self, lengths: Lengths | None, eval_fraction: float
    ) -> Generator[str, None, tuple[list[str], str]]:
        """What should be known of a good file, and why no held-out prompt can be answered."""
        notes = lengths.notes(self.rows) if lengths is not None else []
        if self.unread_tools:
            plural = "s" * (self.unread_tools > 1)
            notes.append(
                f"'tools' is ignored in {self.unread_tools:,} row{plural}: the chat template of this model"
                " does not write it."
            )
        rows = yield from self._told(self.contents.repeated_rows())
        prompts = (yield from self._told(self.contents.repeated_prompts())) - rows
        if rows:
            copies = "is a copy" if rows == 1 else "are copies"
            notes.append(f"{rows:,} of {self.rows:,} rows {copies} of an earlier one.")
        if prompts:
            notes.append(
                f"{prompts:,} more {_have(prompts)} the prompt of an earlier one, but another response."
            )
        if self.rows < 2:
            return notes, ""
        steps = self.contents.held_out(eval_fraction)
        held_out, by = yield from telling.told(steps, COMPARING, self.clock)
        notes += _on_both_sides(len(held_out), by)
        if lengths is None or held_out.without(lengths.unasked):
            return notes, ""
        return notes, (
            "No held-out prompt can be answered: each fills what the model reads. Take a model that reads"
            " more, shorten the prompts, or leave the evaluate stage out."
        )

    def _told(self, found: Iterator[list[int]]) -> Generator[str, None, int]:
        """How many numbers there are."""
        count = 0
        for some in found:
            count += len(some)
            if self.clock.is_due():
                yield COMPARING
        return count


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _do(number: int) -> str:
    return "does" if number == 1 else "do"


def _have(number: int) -> str:
    return "row has" if number == 1 else "rows have"


def _on_both_sides(count: int, by: str) -> list[str]:
    """A note on held-out rows that say little, because training has seen the same."""
    held = "the only held-out row" if count == 1 else f"the {count:,} held-out rows"
    if by == TURNS:
        return [
            f"All conversations begin with the same prompt, so {held} {_do(count)} too: what is measured"
            " there says little about other conversations."
        ]
    if by == ROWS:
        return [
            f"All rows have the same prompt, so {held} {'has' if count == 1 else 'have'} it too: what is"
            " measured there says nothing about other prompts."
        ]
    if by == POSITIONS:
        return [
            f"All rows are the same, so {held} {_are(count)} also in training: what is measured there says"
            " nothing about other rows."
        ]
    return []
