"""Which columns are prompt, response and system: proposed by name and content, or chosen; and applied."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.data.formats import markers, plain_text
from pipeline.inputs.data.formats.limits import Row

PARTS = ("prompt", "response", "system")
MOST_NAMES = 20  # in all: every run's record keeps them
LONGEST_NAME = 200  # letters
HOW = "write it as prompt=question,response=answer; a + joins several"
SHORT = "is too short: plain text needs two words or more, the first of which are the prompt"
# By name, the clearest first.
_PROMPT = (
    "prompt", "instruction", "instructions", "question", "query", "user", "human", "problem", "request",
    "task", "user_message", "user_prompt", "ask", "input", "inputs", "source", "front", "text", "sentence",
    "document", "article", "context",
)  # fmt: skip
_RESPONSE = (
    "response", "answer", "output", "completion", "reply", "assistant", "chosen", "target", "solution",
    "expected", "expected_output", "assistant_message", "outputs", "answers", "back", "result",
    "summary", "translation", "label", "category", "class",
)  # fmt: skip
_SYSTEM = ("system", "system_prompt", "system_message")
# The names of a text that stands alone: of all above, these do not say that something is missing.
_ALONE = frozenset(("text", "sentence", "document", "article", "context", "source", "input", "inputs"))
_ABOUT = frozenset((  # say something about a text
    "title", "source", "id", "url", "uri", "link", "lang", "language", "author", "date", "time", "timestamp",
    "license", "licence", "meta", "metadata", "file", "filename", "file_name", "path", "split", "subset",
    "name", "domain", "dataset", "hash",
))  # fmt: skip
_JOINED = ("input", "context", "inputs")  # stand below an instruction or a question
_ABOVE = ("instruction", "instructions", "question")
_CODE = re.compile(r"[\w:/.+%-]*\d[\w:/.+%-]*|https?://\S+")  # numbers, dates, ids, addresses


@dataclass(frozen=True)
class Columns:
    """The columns of each part; several are joined with a blank line between them.

    Without a prompt the response is plain text: its beginning is the prompt.
    """

    prompt: tuple[str, ...]
    response: tuple[str, ...]
    system: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, list[str]]:
        """As a recipe has it, and `check --json`."""
        return {part: list(getattr(self, part)) for part in PARTS}

    def __str__(self) -> str:
        """As `--columns` takes it."""
        return ",".join(f"{part}={'+'.join(names)}" for part in PARTS if (names := getattr(self, part)))

    @property
    def is_text(self) -> bool:
        """Whether rows are plain text, which is learned as a whole."""
        return not self.prompt

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.prompt, *self.response, *self.system)


SAME = Columns(("prompt",), ("response",))


def parse(given: Any, where: str = "columns") -> Columns:
    """A choice as a recipe has it: a mapping of lists, or the text of `--columns`. Raises InputError."""
    if isinstance(given, str):
        given = _from_text(given, where)
    if not isinstance(given, dict):
        raise InputError(f"{where}: {display.value(given)} is not allowed; {HOW}")
    unknown = [key for key in given if key not in PARTS]
    if unknown:
        raise InputError(f"{where}.{display.short(unknown[0])}: unknown key; allowed: {', '.join(PARTS)}")
    found = Columns(**{part: _names(given.get(part), f"{where}.{part}") for part in PARTS})
    if len(found.names) > MOST_NAMES:
        raise InputError(
            f"{where}: {len(found.names)} columns are too many; choose up to {MOST_NAMES} in all"
        )
    for part in ("response", *["prompt"] * bool(found.system)):
        if not getattr(found, part):
            raise InputError(f"{where}.{part}: is missing; name a column, such as {where}: {{{part}: [a]}}")
    if twice := next((name for name in found.response if name in (*found.prompt, *found.system)), None):
        raise InputError(
            f"{where}: {display.quoted(twice)} is both asked and answered; choose another column"
        )
    return found


def _from_text(text: str, where: str) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for piece in text.split(","):
        part, equals, names = piece.partition("=")
        if not equals or part.strip() in parts:
            raise InputError(f"{where}: {display.quoted(text)} is not understood; {HOW}")
        parts[part.strip()] = [name.strip() for name in names.split("+")]
    return parts


def _names(given: Any, where: str) -> tuple[str, ...]:
    names = [] if given is None else [given] if isinstance(given, str) else given
    fits = isinstance(names, (list, tuple)) and len(names) <= MOST_NAMES
    if not fits or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise InputError(
            f"{where}: {display.value(given)} is not allowed; allowed: up to {MOST_NAMES} names of columns"
        )
    return tuple(dict.fromkeys(names))


def _is_name(name: str) -> bool:
    """Whether a column of that name can be chosen."""
    is_text = "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)
    return is_text and 0 < len(name) <= LONGEST_NAME


def proposed(sample: Sequence[Row], names: Sequence[str]) -> tuple[Columns | None, bool]:
    """A choice by names and contents of the first rows, None if there is none; and whether it is clear."""
    names = [name for name in names if _is_name(name)]
    plain = {name: re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") for name in names}
    values = {name: [row[name] for row in sample if row.get(name) not in (None, "")] for name in names}
    usable = [name for name in names if _most(map(_is_plain, values[name]))]
    system = _first(usable, plain, _SYSTEM)
    if {"q", "a"} <= set(plain.values()):  # one alone is any column
        plain = {name: {"q": "question", "a": "answer"}.get(word, word) for name, word in plain.items()}
    left = [name for name in usable if name != system]
    response = _first(left, plain, _RESPONSE)
    prompt = _first([name for name in left if name != response], plain, _PROMPT)
    texts = [name for name in left if name not in (prompt, response) and _is_prose(values[name])]
    sure = True
    if prompt is None and response is None:
        sure = len(texts) == 2
        prompt = texts.pop(0) if texts else None
    elif prompt is None:
        sure = len(texts) == 1
        prompt = texts.pop(0) if texts else None
    if response is None and prompt is not None:
        sure = sure and len(texts) == 1
        response = max(texts, key=lambda name: _size(values[name]), default=None)
    if prompt is None or response is None:
        return None, False
    joined = [name for name in left if plain[name] in _JOINED and name not in (prompt, response)]
    prompts = (prompt, *joined[: MOST_NAMES - 3]) if plain[prompt] in _ABOVE else (prompt,)
    return Columns(prompts, (response,), (system,) if system else ()), sure


def nested_answers(sample: Sequence[Row], names: Sequence[str]) -> str:
    """The column that is called like answers and has lists or objects in place of texts; "" if there is none,
    or another one has a response's name and texts."""
    known = [name for name in names if name.casefold() in _RESPONSE]
    found = {name: [row[name] for row in sample if row.get(name) not in (None, "")] for name in known}
    if any(_most(map(_is_plain, values)) for values in found.values()):
        return ""
    return next(
        (name for name, given in found.items() if _most(isinstance(one, (list, dict)) for one in given)), ""
    )


def only_text(sample: Sequence[Row], names: Sequence[str]) -> str:
    """The column with the texts of rows that have nothing else to learn, "" if there is no such one."""
    plain = {name: re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") for name in names if _is_name(name)}
    values = {name: [row[name] for row in sample if row.get(name) not in (None, "")] for name in plain}
    usable = [name for name in plain if _most(map(_is_plain, values[name]))]
    said = {*_PROMPT, *_RESPONSE, *_SYSTEM} - _ALONE
    if any(plain[name] in said for name in usable):
        return ""
    texts = [name for name in usable if _is_prose(values[name])]
    texts = [name for name in texts if plain[name] not in _ABOUT] or texts
    if len(texts) != 1 or not any(plain_text.halves(str(value)) for value in values[texts[0]]):
        return ""
    return texts[0]


def _first(names: Sequence[str], plain: dict[str, str], known: Sequence[str]) -> str | None:
    """The column with the clearest of the known names."""
    found = [name for name in names if plain[name] in known]
    return min(found, key=lambda name: (known.index(plain[name]), names.index(name)), default=None)


def _most(found: Iterable[bool]) -> bool:
    """Whether that holds for half of some or more: a few cells may be wrong, which is said by line."""
    held = list(found)
    return bool(held) and 2 * sum(held) >= len(held)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _is_prose(values: Sequence[Any]) -> bool:
    """Whether these are texts, and not numbers, dates, ids or addresses."""
    texts = [value for value in values if isinstance(value, str)]
    return 2 * len(texts) >= len(values) and not all(_CODE.fullmatch(text[:200].strip()) for text in texts)


def _size(values: Sequence[Any]) -> float:
    return sum(len(str(value)) for value in values) / max(len(values), 1)


def applied(row: Row, columns: Columns) -> Row | str:
    """The row with prompt, response and maybe system, or why it has none.

    Of plain text prompt and response together are the text.
    """
    made: Row = {}
    for part in PARTS:
        names = getattr(columns, part)
        if not names:
            continue
        if not any(name in row for name in names):
            here = display.names(row) or "none"
            return f"the column {display.quoted(names[0])} is missing; columns here: {here}"
        texts = []
        for name in names:
            value = row.get(name)
            if fault := _fault(value):
                return f"{display.quoted(name)} {fault}"
            if not _is_empty(value):
                texts.append(str(value))
        if texts:
            made[part] = "\n\n".join(texts)
        elif part != "system":
            what = "nothing to learn from" if part == "response" else "nothing asked in"
            return f"{display.quoted(names[0])} is empty, so there is {what} this row"
    return _in_two(made["response"], columns.response[0]) if columns.is_text else made


def _in_two(text: str, name: str) -> Row | str:
    """A plain text as the lab has it: its beginning as prompt, the rest as response."""
    if fault := markers.fault_of_plain(text):
        return f"{display.quoted(name)} {fault}"
    halves = plain_text.halves(text)
    if halves is None:
        return f"{display.quoted(name)} {SHORT}"
    return {"prompt": halves[0], "response": halves[1]}


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: tables have NaN where a number is missing."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _fault(value: Any) -> str | None:
    if isinstance(value, str):
        return (
            "has a NUL character, behind which tokenizers read nothing; remove it" if "\0" in value else None
        )
    if isinstance(value, float) and math.isinf(value):
        return "is too large a number"
    if isinstance(value, (bytes, bytearray)):
        return "must be text or a number, not binary data"
    if isinstance(value, (bool, list, tuple, dict)):
        kinds = {bool: "true or false", dict: "an object"}
        return f"must be text or a number, not {kinds.get(type(value), 'a list')}"
    return None
