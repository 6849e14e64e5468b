"""Files of any format as the lab's JSON lines: as they are, or made of them by a process of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.data import file_faults, row_lines
from pipeline.inputs.data.formats import columns, containers, shapes, text_lines
from pipeline.inputs.data.formats.columns import Columns
from pipeline.inputs.prompts import templates
from pipeline.system import files, own_process

MOST_FILES = 1_000
MOST_SECONDS = 600.0
HEAD_ROWS = 20
HEAD_BYTES = 2 * row_lines.LONGEST_LINE
ENDED = (
    "the process that reads it has ended (code {}): the file takes far too much memory or is damaged; give"
    " another one"
)


@dataclass(frozen=True)
class Made:
    """Rows ready to be checked, and what they were made of.

    path       the JSON lines: made, or the only source itself
    container  as `check --json` has it: jsonl, json, csv, tsv, parquet or txt, with .gz if packed; several
               with +
    columns    the choice that was applied or that the rows have; None for chats, and rows with own fields
    proposed   what would be applied if nothing was chosen
    problems   (line or row, sentence); `more` were not listed; `stopped` is where reading ended for them
    read       rows of what was given, with and without problems, where others were made of them
    starts     how many lines or rows come before each source's
    """

    path: Path
    sources: tuple[Path, ...]
    container: str
    shape: str
    fields: tuple[str, ...] = ()
    columns: Columns | None = None
    proposed: Columns | None = None
    rows: int = 0
    read: int = 0
    problems: tuple[tuple[int, str], ...] = ()
    more: int = 0
    stopped: int = 0
    units: tuple[str, ...] = (containers.LINE,)
    starts: tuple[int, ...] = (0,)

    @property
    def is_made(self) -> bool:
        return self.path not in self.sources

    @property
    def has_chosen(self) -> bool:
        """Whether other columns than prompt, response and system were taken, alone, by these names."""
        plain = Columns(("prompt",), ("response",))
        return self.columns not in (None, plain, replace(plain, system=("system",)))

    def template(self, asked: str) -> str:
        """The template that rows are read with: in place of `chat`, plain text has one without any signs."""
        is_text = self.columns is not None and self.columns.is_text
        return templates.CONTINUED if is_text and asked.strip() == templates.CHAT else asked

    def place(self, number: int) -> tuple[Path, str, int]:
        """The source of a row of `path`, what its rows are counted in, and its number there."""
        at = max(i for i, start in enumerate(self.starts) if start < number or not i)
        return self.sources[at], self.units[at], number - self.starts[at]

    def named(self, number: int) -> str:
        """Where a row stands, as messages begin: `FILE:7`, or `FILE: row 7`."""
        source, unit, own = self.place(number)
        name = display.plain(str(source))
        return f"{name}: row {own}" if unit == containers.ROW else f"{name}:{own}"


def sources(given: Path) -> tuple[Path, ...]:
    """The files that a recipe's `data` names: one, or all that fit a pattern such as `rows/*.csv`.

    Raises InputError where there are too many.
    """
    if not any(sign in given.name for sign in "*?") or given.exists():
        return (given,)
    found = sorted(path for path in given.parent.glob(given.name) if path.is_file())
    if len(found) > MOST_FILES:
        raise InputError(f"{display.plain(str(given))}: fits {len(found):,} files; allowed: {MOST_FILES:,}")
    return tuple(found) or (given,)


def preparing(
    given: Sequence[Path], target: Path, template: str = templates.CHAT, chosen: Columns | None = None
) -> Generator[str, None, Made]:
    """The rows of some files as JSON lines: one that has them stays as it is, else they are made at `target`.

    With a template that names fields of the rows, these stay as they are. Yields how far that is.
    Raises InputError if a file is not there, the template is faulty, or the process got no answer,
    LabError if it fails.
    """
    for file in given:
        if not file.is_file():
            raise InputError(f"{display.plain(str(file))}: {file_faults.no_file(file)}")
    wanted = None if template.strip() == templates.CHAT else templates.parse(template).fields
    if len(given) == 1 and (as_it_is := _as_it_is(given[0], wanted, chosen)):
        return as_it_is
    asked = {
        "paths": [str(file.resolve()) for file in given],
        "target": str(target),
        "template": wanted,
        "columns": chosen.to_dict() if chosen else None,
    }
    found = yield from _answer(asked, given[0])
    return from_facts({**found, "path": str(target), "sources": [str(file) for file in given]})


def facts(made: Made) -> dict[str, Any]:
    """As JSON has it."""
    chosen = {
        name: (found.to_dict() if (found := getattr(made, name)) else None)
        for name in ("columns", "proposed")
    }
    paths = {"path": str(made.path), "sources": [str(source) for source in made.sources]}
    return {**dataclasses.asdict(made), **chosen, **paths}


def from_facts(given: dict[str, Any]) -> Made:
    """What `facts` says, and `make`."""
    chosen = {name: columns.parse(given[name]) if given[name] else None for name in ("columns", "proposed")}
    lists = {name: tuple(given[name]) for name in ("fields", "units", "starts")}
    problems = tuple((number, problem) for number, problem in given["problems"])
    paths = {"path": Path(given["path"]), "sources": tuple(map(Path, given["sources"]))}
    return Made(**{**given, **chosen, **lists, **paths, "problems": problems})


def _as_it_is(file: Path, wanted: Sequence[str] | None, chosen: Columns | None) -> Made | None:
    """A file that needs nothing: JSON lines with the right fields, or what is refused by its kind."""
    try:
        known = containers.recognised(file)
    except OSError as error:
        raise InputError(f"{display.valid(str(file))}: cannot be read ({error.strerror})") from None
    if isinstance(known, str):  # the check says the same of what is not packed
        return None if _is_packed(file) else Made(file, (file,), "", shapes.UNKNOWN)
    if not known.is_plain or (chosen is not None and chosen.is_text):
        return None
    sample = _head_rows(file)
    shape = shapes.recognised(sample) if sample else shapes.Shape(shapes.UNKNOWN, ())
    made = Made(file, (file,), known.name, shape.name, shape.fields, proposed=shape.columns)
    fits = any({"prompt", "response"} <= set(row) for row in sample)
    same = (
        fits and shape.columns is not None and chosen in (None, columns.SAME, _without_system(shape.columns))
    )
    if wanted is not None:
        canonical = {"prompt", "response", "system"}.issuperset(wanted)
        return made if not canonical or set(wanted) <= set(shape.fields) or not sample else None
    if same:
        system = ("system",) if "system" in shape.fields else ()
        return replace(made, columns=Columns(("prompt",), ("response",), system))
    is_other = shape.marked or shape.only or shape.nested
    if chosen is None and not is_other and (fits or shape.name in (shapes.MESSAGES, shapes.UNKNOWN)):
        return made
    return None


def _is_packed(file: Path) -> bool:
    """Whether it is packed, so that only who unpacks it knows what is wrong inside."""
    with file.open("rb") as opened:
        return opened.read(len(text_lines.GZIP)) == text_lines.GZIP


def _without_system(found: Columns) -> Columns:
    return Columns(("prompt",), ("response",), found.system)


def _head_rows(file: Path) -> list[dict[str, Any]]:
    """The first rows of JSON lines; lines that are none are for the check."""
    found: list[dict[str, Any]] = []
    left = HEAD_BYTES
    with file.open("rb") as opened:
        for _ in range(4 * HEAD_ROWS):
            line = opened.readline(row_lines.LONGEST_LINE + 1)
            left -= len(line)
            if not line or left < 0 or len(found) == HEAD_ROWS:
                break
            with suppress(UnicodeDecodeError):
                row = row_lines.parse_line(line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").decode())
                if isinstance(row, dict):
                    found.append(row)
    return found


def _answer(asked: dict[str, Any], first: Path) -> Generator[str, None, dict[str, Any]]:
    """What `make` finds. Its process ends with this generator. Raises InputError, LabError if it fails."""
    words = ["-m", "pipeline.inputs.data.formats.make"]
    process = own_process.start_group(words, settings.bare_environment())
    name = display.line(first.name)  # where an upload lies is nobody's business
    code = 0
    try:
        assert process.stdin is not None
        with suppress(OSError):  # it has ended, which is seen below
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        assert process.stdout is not None
        step = f"Reading {name}…"
        for line in own_process.lines(process.stdout.fileno(), MOST_SECONDS):
            answer = {} if line is None else json.loads(line)
            if "made" in answer:
                made: dict[str, Any] = answer["made"]
                return made
            if "refused" in answer:
                raise InputError(answer["refused"])
            if "failed" in answer:
                raise LabError(f"{name}: {files.with_traceback(answer['failed'], answer['traceback'])}")
            step = answer.get("step", step)
            yield step
        code = process.wait()
    finally:
        own_process.end(process)
    raise InputError(f"{name}: {ENDED.format(code)}")
