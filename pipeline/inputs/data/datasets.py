"""Datasets: JSON lines, one object a row, read as a stream."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.data import file_faults, splitting
from pipeline.inputs.data.lengths import Lengths
from pipeline.inputs.data.splitting import POSITIONS, ROWS, Contents, Parts
from pipeline.inputs.prompts import conversations, templates

T = TypeVar("T")
LONGEST_LINE = 1024 * 1024  # bytes; a row this long is a mistake, and reading it would not be flat memory
DEEPEST = 64  # lists and objects in each other; programs that read rows later give up at a few hundred
MOST_PROBLEMS = 20  # that are listed,
MOST_COUNTED = 100_000  # and that are counted before reading ends
FIRST_ROWS = 5  # that are shown
MOST_FIELDS = 100
LONGEST_NEAR = 200  # letters of a key that may be a slip: to compare long ones takes time by their square
ENOUGH_ROWS = 10_000  # to tell that all have the same prompt,
ENOUGH_BYTES = 8 << 20  # and those that begin in so many bytes, because a page waits for it
TELL_SECONDS = 1.0
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # only an escape can write half of one into valid UTF-8
_HALF = "has half of a surrogate pair, which is not valid text"
_TOO_DEEP = f"not a row: objects are nested too deeply, more than {DEEPEST} in each other"


@dataclass(frozen=True)
class Report:
    """What `check` found. `problems` are sentences that begin with FILE:LINE; `more` were left out."""

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
    for line, row in _scan(path):
        if isinstance(row, str):
            raise InputError(f"{display.plain(str(path))}:{line}: {row}")
        yield line, row


def readable(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`rows` without the lines that are none, which `check` names."""
    return ((line, row) for line, row in _scan(path) if isinstance(row, dict))


def check(
    path: Path, template: str, chat: templates.Chat | None = None, lengths: Lengths | None = None
) -> Report:
    """`checking` to its end."""
    return ended(checking(path, template, chat, lengths))


def ended(steps: Generator[str, None, T], tell: Callable[[str], None] = lambda _: None) -> T:
    """What steps such as those of `checking` return in the end; `tell` gets what they say."""
    while True:
        try:
            tell(next(steps))
        except StopIteration as end:
            found: T = end.value
            return found


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
    Says something at least every TELL_SECONDS or so, for whoever wants to leave.
    Raises InputError if the file is not there or the template is faulty.
    """
    if not path.is_file():
        raise InputError(f"{display.plain(str(path))}: there is no such file")
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
            if found.is_time_to_tell():
                yield f"Row {position + 1:,}…"
    for row in good:  # where none was rendered
        if row is None or found.is_time_to_tell():
            yield f"Line {found.line:,}…"
    if lengths is not None:
        yield from _count(lengths)
    return found.report(lengths, eval_fraction)


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
            for problem in misfits(row, template):
                raise InputError(f"{display.plain(str(path))}:{line}: {problem}")
            found[index] = row
    return found


def count(path: Path) -> int:
    """How many rows there are. Raises InputError at the first broken line."""
    return sum(1 for _ in rows(path))


def split(path: Path, template: templates.Template, eval_fraction: float, seed: int) -> Parts:
    """The rows of a file in two parts, so that identical prompts are in one: see `Contents.parts`.

    Raises InputError if a row is broken or does not fit the template, or if there are fewer than two.
    """
    contents = Contents(template.fields, template.optional, seed)
    for line, row in rows(path):
        for problem in misfits(row, template):
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
            enough = min(ENOUGH_ROWS, max(2, file.read(ENOUGH_BYTES).count(b"\n")))
        for _, row in islice(rows(path), enough):
            if any(misfits(row, template)):
                return False
            prompt = splitting.prompt_texts(row, template.fields, template.optional)
            if seen is not None and prompt != seen:
                return False
            seen = prompt
    except (InputError, OSError):
        return False
    return seen is not None


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
    _told: float = field(default_factory=time.monotonic)
    _good: deque[tuple[int, int, int]] = field(default_factory=deque)  # not yet rendered: line, position, row

    def is_time_to_tell(self) -> bool:
        """Whether nothing was said for TELL_SECONDS; then something will be."""
        now = time.monotonic()
        if now - self._told <= TELL_SECONDS:
            return False
        self._told = now
        return True

    def good_rows(self) -> Iterator[dict[str, Any] | None]:
        """The rows that fit the template; what is wrong with the others is noted.

        None among them says that it is time to tell how far this is: others may go on for long.
        """
        for line, row in _scan(self.path):
            self.line = line
            problems = [row] if isinstance(row, str) else self._see(row)
            self.broken += isinstance(row, str)
            for problem in problems:
                self.add(line, problem)
            if self.more > MOST_COUNTED:
                self.stopped = line
                return
            if problems and self.is_time_to_tell():
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
        return list(misfits(row, self.template))

    def add(self, line: int, problem: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append((line, problem))
        else:
            self.more += 1

    def report(self, lengths: Lengths | None, eval_fraction: float) -> Report:
        if self.rows == 0 and not self.problems:
            empty = self.path.stat().st_size == 0
            self.add(1, "the file is empty" if empty else "the file has no rows")
        name = display.plain(str(self.path))
        problems = [f"{name}:{line}: {problem}" for line, problem in sorted(self.problems)]
        notes, unasked = ([], "") if problems else self._notes(lengths, eval_fraction)
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

    def _notes(self, lengths: Lengths | None, eval_fraction: float) -> tuple[list[str], str]:
        """What should be known of a good file, and why no held-out prompt can be answered."""
        notes = lengths.notes(self.rows) if lengths is not None else []
        if self.unread_tools:
            plural = "s" * (self.unread_tools > 1)
            notes.append(
                f"'tools' is ignored in {self.unread_tools:,} row{plural}: the chat template of this model"
                " does not write it."
            )
        rows, prompts = self.contents.copies()
        if rows:
            copies = "is a copy" if rows == 1 else "are copies"
            notes.append(f"{rows:,} of {self.rows:,} rows {copies} of an earlier one.")
        if prompts:
            notes.append(
                f"{prompts:,} more {_have(prompts)} the prompt of an earlier one, but another response."
            )
        if self.rows < 2:
            return notes, ""
        parts = self.contents.parts(eval_fraction)
        notes += _on_both_sides(parts)
        if lengths is None or set(parts.held_out).difference(lengths.unasked):
            return notes, ""
        return notes, (
            "No held-out prompt can be answered: each fills what the model reads. Take a model that reads"
            " more, shorten the prompts, or leave the evaluate stage out."
        )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _have(number: int) -> str:
    return "row has" if number == 1 else "rows have"


def _on_both_sides(parts: Parts) -> list[str]:
    """A note on held-out rows that say little, because training has seen the same."""
    count = len(parts.held_out)
    held = "the only held-out row" if count == 1 else f"the {count:,} held-out rows"
    if parts.by == ROWS:
        return [
            f"All rows have the same prompt, so {held} {'has' if count == 1 else 'have'} it too: what is"
            " measured there says nothing about other prompts."
        ]
    if parts.by == POSITIONS:
        return [
            f"All rows are the same, so {held} {_are(count)} also in training: what is measured there says"
            " nothing about other rows."
        ]
    return []


def _scan(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number, the row or what is wrong with the line); stop where reading on is pointless."""
    with path.open("rb") as file:
        head = file.read(file_faults.HEAD)
        if kind := file_faults.of_bytes(head):
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
        return f'a row must be an object like {{"prompt": …}}, not {_kind(row)}'
    if _HALF_PAIR.search(text) or any(isinstance(value, (dict, list)) for value in row.values()):
        return _fault_inside(row) or row
    return row


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


def misfits(row: dict[str, Any], template: templates.Template) -> Iterator[str]:
    """Reasons why a row cannot fill the template's fields; the last field is the response."""
    if templates.is_conversation(template, row):
        yield from conversations.faults(row)
        return
    fields, optional = template.fields, template.optional
    for name in fields:
        if name in row:
            yield from _misfit(name, row[name])
        else:
            yield _missing(name, row)
    for name in optional:
        if row.get(name) is not None:
            yield from _misfit(name, row[name])
    response = row.get(fields[-1]) if fields else None
    if isinstance(response, str) and not response.strip():
        yield f"{display.quoted(fields[-1])} is empty, so there is nothing to learn from this row"


def _misfit(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        yield f"{display.quoted(name)} must be text or a number, not {_kind(value)}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{display.quoted(name)} is too large a number"
    elif isinstance(value, str) and "\0" in value:
        yield f"{display.quoted(name)} has a NUL character, behind which tokenizers read nothing; remove it"


def _missing(name: str, row: dict[str, Any]) -> str:
    present = display.names(row) or "none"
    said = f"the field {display.quoted(name)} of the template is missing; fields here: {present}"
    if conversations.is_one(row):
        return f"{said}. Rows with 'messages' are read with the template {templates.CHAT}"
    for key in (key for key in islice(row, MOST_FIELDS) if len(key) <= LONGEST_NEAR):
        if near := _near(name, key):
            return f"{said}. {near}"
    return said


def _near(name: str, key: str) -> str | None:
    """How a field's name differs from the one that is wanted, if it is only a slip."""
    field, stripped = f"The field {display.quoted(key)}", key.strip()
    if stripped == name:
        ends = ["start"] * (key[0] != stripped[0]) + ["end"] * (key[-1] != stripped[-1])
        return f"{field} has a space at its {' and its '.join(ends)}"
    if unicodedata.normalize("NFC", key) == unicodedata.normalize("NFC", name):
        return (
            f"{field} only looks the same: accents are letters of their own (NFD) on one side and not on the"
            " other (NFC); write both the same way"
        )
    if stripped.casefold() == name.casefold():
        return f"{field} differs in capital letters; write both the same way"
    return f"{field} is to be {display.quoted(name)}" if _letters(key) == _letters(name) else None


def _letters(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in folded if letter.isalnum()) or name


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else True


def _kind(value: Any) -> str:
    names = {bool: "true or false", type(None): "null", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), "a number")
