"""Why a row cannot fill a template's fields."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pipeline import display
from pipeline.inputs.data import row_lines
from pipeline.inputs.prompts import conversations, templates

MOST_FIELDS = 100  # that are compared with one that is missing
LONGEST_NEAR = 200  # letters of a key that may be a slip: to compare long ones takes time by their square


def misfits(row: dict[str, Any], template: templates.Template) -> Iterator[str]:
    """Reasons why a row cannot fill the template's fields; the last field is the response."""
    if templates.is_conversation(template, row):
        found = list(conversations.faults(row)) or templates.unwritten_calls(template, row)
        yield from found
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
        yield f"{display.quoted(name)} must be text or a number, not {row_lines.kind_of(value)}"
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
