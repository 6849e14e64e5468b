"""Checks of answers that a user writes without code, one a line: `contains: Paris`, `number: 0 to 100`.

    contains: TEXT       the answer contains it, in capitals or not
    regex: PATTERN       Python's `re` finds it somewhere in the answer
    number: LOW to HIGH  the last number in the answer lies within; one of them may be left out
    json                 the whole answer is valid JSON
    json_schema: SCHEMA  and fits this schema, written as JSON on one line

A text that begins or ends with a space, or has several lines, stands in quotes as JSON writes it. Here checks
are read; `checker` applies them, in a process of its own.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline import display
from pipeline.errors import InputError

CONTAINS, REGEX, NUMBER, JSON, SCHEMA = KINDS = ("contains", "regex", "number", "json", "json_schema")
MOST = 20  # checks
T = TypeVar("T")
R = TypeVar("R")
_FIGURE = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_FIGURE})?\s*to\s*({_FIGURE})?", re.ASCII)
FORMS = (
    "allowed: 'contains: TEXT', 'regex: PATTERN', 'number: LOW to HIGH', 'json', 'json_schema: SCHEMA',"
    " one a line, or a list of such mappings"
)
Range = tuple[float, float]


@dataclass(frozen=True)
class Check:
    """What an answer must fulfil. `given` is a text, a pattern, a Range, None for `json`, or a schema."""

    kind: str
    given: Any
    line: str  # as written

    @property
    def name(self) -> str:
        """How it is called in a table."""
        return display.short(self.line)


def as_text(given: Any, where: str) -> Any:
    """A list of mappings such as {contains: Paris}, or one, as the text that `read` takes; else unchanged.

    Raises InputError naming the check.
    """
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, list):
        return given
    return "\n".join(_each(given, _line, where))


def read(text: str, where: str) -> list[Check]:
    """The checks of a text. Raises InputError naming the check, without loading a library."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MOST:
        raise InputError(f"{where}: {len(lines):,} checks are too many; allowed: {MOST}")
    return _each(lines, _read, where)


def _each(given: Sequence[T], made: Callable[[T], R], where: str) -> list[R]:
    """What is made of each check. Raises InputError naming those of which nothing can be."""
    found, problems = [], []
    for number, item in enumerate(given, 1):
        try:
            found.append(made(item))
        except ValueError as error:
            problems.append(f"{where}: check {number}: {error}")
    if problems:
        raise InputError(problems)
    return found


def problems(text: str, where: str) -> list[str]:
    """What `read` does not see: patterns that do not compile, schemas that are none or lead elsewhere."""
    try:
        found = read(text, where)
    except InputError as error:
        return error.problems
    reasons = ((number, _unusable(check)) for number, check in enumerate(found, 1))
    return [f"{where}: check {number}: {reason}" for number, reason in reasons if reason]


def _line(item: Any) -> str:
    """One item of a list as its line. Raises ValueError."""
    if item == JSON:
        return JSON
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ValueError(f"{display.value(item)} is not allowed; {FORMS}")
    kind, given = next(iter(item.items()))
    if kind == JSON and given in (True, None):
        return JSON
    if kind == NUMBER and isinstance(given, Mapping) and given and set(given) <= {"low", "high"}:
        low, high = ("" if given.get(end) is None else str(given[end]) for end in ("low", "high"))
        return f"{NUMBER}: {low} to {high}"
    if kind == SCHEMA and isinstance(given, Mapping | bool):
        try:
            return f"{SCHEMA}: {json.dumps(given, allow_nan=False, ensure_ascii=False)}"
        except (TypeError, ValueError, RecursionError):
            raise ValueError("json_schema: has what JSON cannot have, such as a date or NaN") from None
    if (
        kind in KINDS
        and kind != JSON
        and isinstance(given, str | int | float)
        and not isinstance(given, bool)
    ):
        text = str(given)
        plain = text == text.strip() and len(text.splitlines()) == 1 and not text.startswith('"')
        return f"{kind}: {text if plain else json.dumps(text, allow_nan=False)}"
    raise ValueError(f"{display.value(dict(item))} is not allowed; {FORMS}")


def _read(line: str) -> Check:
    """Raises ValueError with the reason."""
    kind, _, rest = (part.strip() for part in line.partition(":"))
    if kind not in KINDS:
        raise ValueError(f"{display.quoted(line)} is not allowed; {FORMS}")
    if kind == JSON:
        if rest:
            raise ValueError("json: takes nothing behind it; a schema goes behind 'json_schema:'")
        return Check(kind, None, line)
    if not rest:
        raise ValueError(f"{kind}: says nothing; {FORMS}")
    reading = {CONTAINS: _text, REGEX: _text, NUMBER: _range, SCHEMA: _schema}
    return Check(kind, reading[kind](rest), line)


def _text(rest: str) -> str:
    if not (rest.startswith('"') and rest.endswith('"') and len(rest) > 1):
        return rest
    try:
        return str(json.loads(rest))
    except ValueError:
        return rest  # quotes that belong to it, such as "a" or "b"


def _range(rest: str) -> Range:
    found = _RANGE.fullmatch(rest)
    if found is None or found[1] is found[2] is None:
        raise ValueError(f"number: {display.quoted(rest)} is no range; write it as 0 to 100")
    low, high = float(found[1] or -math.inf), float(found[2] or math.inf)
    if low > high:
        raise ValueError(f"number: {display.quoted(rest)} has no number in it: the first is larger")
    return low, high


def _schema(rest: str) -> Any:
    try:
        found = json.loads(rest)
    except RecursionError:
        raise ValueError("json_schema: is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"json_schema: is not valid JSON: {display.line(str(error))}") from None
    if not isinstance(found, dict | bool):
        raise ValueError("json_schema: is not a schema; a JSON object is needed")
    return found


def _unusable(check: Check) -> str:
    """Why a check cannot be applied, "" if it can."""
    if check.kind == REGEX:
        return _uncompiled(check.given)
    return _no_schema(check.given) if check.kind == SCHEMA else ""


def _uncompiled(pattern: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of patterns that will mean something else one day
            re.compile(pattern)
    except (re.error, OverflowError) as error:
        return f"regex: {display.quoted(pattern)} is not a pattern: {display.line(str(error))}"
    except RecursionError:
        return "regex: is nested too deeply"
    return ""


def _no_schema(schema: Any) -> str:
    import jsonschema

    try:
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        for reference in _references(schema):
            if not reference.startswith("#"):
                return (
                    f"json_schema: $ref {display.quoted(reference)} leads out of the schema, and nothing is"
                    " fetched; put what it names into $defs"
                )
    except jsonschema.SchemaError as error:
        return f"json_schema: is not a schema: {display.line(error.message)}"
    except RecursionError:
        return "json_schema: is nested too deeply"
    return ""


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
