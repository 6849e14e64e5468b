"""One box a template field: what is asked of columns whose templates have several.

The prompt of several fields stays a single text, the JSON object of their names and texts, which all of the
tab keeps, restores and sends; `assets/talk.js` shows it as boxes. Here it is read, and each model gets the
fields of its own template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline import display
from pipeline.errors import InputError

MOST = 50  # boxes at a time
LONGEST = 32_000  # characters of one
MANY = "These templates have {count} fields together; allowed: {most}. Ask fewer models at a time."

Fields = tuple[str, ...]


def union(of_columns: Iterable[Fields]) -> Fields:
    """The prompt fields of all templates, those of the first one first."""
    return tuple(dict.fromkeys(name for names in of_columns for name in names))


def drawn(own: Sequence[tuple[str, Fields]]) -> dict[str, Any] | None:
    """The boxes of labelled columns, for a place that draws `boxes`; None where one prompt box is enough.

    Where templates differ, `note` says so, and a box says which columns read it.
    """
    fields = union(names for _, names in own)
    if len(fields) < 2:
        return None
    if len(fields) > MOST:
        return {"fields": [], "most": LONGEST, "note": MANY.format(count=len(fields), most=MOST)}
    differ = len({names for _, names in own}) > 1
    boxes = [
        {"name": name, "info": f"Read by {_listed(own, name)}" if _only_some(own, name) else ""}
        for name in fields
    ]
    note = "The templates differ: each model gets the fields of its own." if differ else ""
    return {"fields": boxes, "most": LONGEST, "note": note, "first": own[0][1][0]}


def _only_some(own: Sequence[tuple[str, Fields]], name: str) -> bool:
    return not all(name in names for _, names in own)


def _listed(own: Sequence[tuple[str, Fields]], name: str) -> str:
    return ", ".join(dict.fromkeys(label for label, names in own if name in names))


def read(prompt: str, fields: Fields) -> dict[str, str] | None:
    """The texts of a prompt by field; None if it is no JSON object of texts, as a conversation's is not.

    Raises InputError for a field that is not one of `fields`, too many of them, and one that is too long.
    """
    if len(fields) > MOST:
        raise InputError(MANY.format(count=len(fields), most=MOST))
    if len(fields) < 2:
        return None
    row = values(prompt)
    if row is None:
        return None
    for name, text in row.items():
        if name not in fields:
            raise InputError(
                f"The template has no field {display.quoted(name)}; its fields are {display.names(fields)}."
            )
        if len(text) > LONGEST:
            raise InputError(
                f"{display.short(name)}: it is longer than the {LONGEST:,} characters allowed here."
            )
    return row


def values(prompt: str) -> dict[str, str] | None:
    """The texts and numbers of a JSON object as texts; None for anything else."""
    if not prompt.lstrip().startswith("{"):
        return None
    try:
        row = json.loads(prompt)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(value, str | int | float) for value in row.values()):
        return None
    return {name: str(value) for name, value in row.items()}


def of_model(prompt: str, fields: Fields, own: Fields) -> str:
    """What a model whose template has its `own` fields is asked of a prompt whose boxes were `fields`.

    Raises what `read` does.
    """
    row = read(prompt, fields)
    if row is None:
        return prompt
    if len(own) == 1:
        return row.get(own[0], "")
    return written({name: row.get(name, "") for name in own})


def written(row: dict[str, str]) -> str:
    """The prompt of some fields."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def is_blank(prompt: str, fields: Fields = ()) -> bool:
    """Whether nothing is asked: no text, or none in any box."""
    row = values(prompt) if len(fields) > 1 else None
    return not (prompt.strip() if row is None else "".join(row.values()).strip())


def same(one: str, other: str) -> bool:
    """Whether two prompts ask the same, however their JSON is written."""
    return one == other or canonical(one) == canonical(other)


def canonical(prompt: str) -> str:
    """The one way to write what a prompt asks: prompts that ask the same have the same."""
    row = values(prompt)
    return prompt if row is None else written(dict(sorted(row.items())))


def words(prompt: str, fields: Fields) -> str:
    """A prompt as people read it: a line for each box that has a text."""
    row = values(prompt) if len(fields) > 1 else None
    return prompt if row is None else "\n".join(f"{name}: {text}" for name, text in row.items() if text)


def carried(typed: str, before: Fields, offered: str, now: Fields) -> str:
    """The prompt after another model is chosen: `offered`, with what was `typed` in fields of equal name."""
    if not typed or (len(before) < 2 and len(now) < 2):
        return offered
    old = values(typed) if len(before) > 1 else dict.fromkeys(before, typed)
    if old is None:
        return offered
    new = (values(offered) if len(now) > 1 else dict.fromkeys(now, offered)) or dict.fromkeys(now, "")
    kept = {name: old[name] if old.get(name) else new.get(name, "") for name in now}
    return written(kept) if len(now) > 1 else kept[now[0]]
