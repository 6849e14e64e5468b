"""Prompts as literal text around a row's own words, for chat templates that write no more than that.

Such a prompt needs no template engine: GenAI's own crashes on some templates and silently writes a
different prompt for others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.inputs.prompts import conversations, lab_prompt, templates

Pieces = list[str | dict[str, str]]
MOST_CONSTANTS = 100
LONGEST_CONSTANT = 200
QUOTE = re.compile("['\"]")
INSIDE = {quote: re.compile(rf"((?:[^{quote}\\]|\\.)*){quote}") for quote in "'\""}
WORD = conversations.PROBE  # stands nowhere else


def pieces_of(
    template: templates.Template, hard: Sequence[str], rows: Iterable[templates.Row]
) -> dict[str, Any]:
    """`prompt` and `prompt_with_system` of lab.json: texts around the row's, None if a template does more.

    Chat templates are tried with `hard` texts, with every text that stands in the template itself, and with
    `rows`. Where a template refuses a system text, there is no such prompt and no such field.
    """
    if isinstance(template, templates.TextTemplate):
        return {"prompt": template.prompt_pieces(), "optional": []}
    contents = [*hard, *constants(template), *(str(given["prompt"]) for given in rows if "prompt" in given)]
    found: dict[str, Any] = {"prompt": literal(template, ["", *contents]), "optional": []}
    if _renders(template, {"prompt": "a", "response": "b", "system": "c"}):
        found |= {"optional": ["system"], "prompt_with_system": literal(template, contents, system=True)}
    return found


def literal(template: templates.Template, contents: Sequence[str], *, system: bool = False) -> Pieces | None:
    """The pieces around the words of a row, if the template writes all `contents` unchanged; else None."""
    fields = ("system", "prompt") if system else ("prompt",)
    marks = {field: f"{WORD}{field}{WORD}" for field in fields}
    plain, spaced = templates.each(
        template, [_row(marks), _row({field: f" \n{mark}\n " for field, mark in marks.items()})]
    )
    if isinstance(plain, str) or isinstance(spaced, str):
        return None
    pieces: Pieces = []
    rest = plain.prompt
    for field, mark in marks.items():
        before, found, rest = rest.partition(mark)
        if not found:
            return None
        pieces += [before, {field: _strip(spaced.prompt, mark)}]
    pieces.append(rest)
    rows = [_row({**dict.fromkeys(fields, "Hello"), field: text}) for field in fields for text in contents]
    rendered = templates.each(template, rows)
    same = all(
        not isinstance(one, str) and one.prompt == fill(pieces, given)
        for given, one in zip(rows, rendered, strict=True)
    )
    return pieces if same else None


def fill(pieces: Pieces, given: templates.Row) -> str:
    """The prompt that the pieces make of a row, as `lab_prompt` does."""
    return "".join(lab_prompt._filled(piece, given) for piece in pieces).rstrip(" ")


def constants(template: templates.Template) -> list[str]:
    """Texts that occur in a chat template, which it may look for in a row's words."""
    source = template.chat.source if isinstance(template, templates.ChatTemplate) and template.chat else ""
    found = dict.fromkeys(_quoted(source))
    kept = [text.replace("\\n", "\n") for text in found if 0 < len(text) <= LONGEST_CONSTANT]
    return [
        shape.replace("{}", text)
        for text in kept[:MOST_CONSTANTS]
        for shape in ("{}", "x{}", "{}y", "x{}y{}z")
    ]


def _quoted(source: str) -> Iterator[str]:
    """Texts between two quotes of a kind. A quote without an end ends its kind: the rest is read once."""
    at, open_ends = 0, set()
    while (start := QUOTE.search(source, at)) is not None:
        at = start.end()
        if start[0] not in open_ends:
            if (text := INSIDE[start[0]].match(source, at)) is None:
                open_ends.add(start[0])
            else:
                yield text[1]
                at = text.end()


def _row(words: Mapping[str, str]) -> dict[str, str]:
    """A row with these fields and a response."""
    return {"response": "ok", **words}


def _renders(template: templates.Template, given: templates.Row) -> bool:
    return not isinstance(next(iter(templates.each(template, [given]))), str)


def _strip(spaced: str, mark: str) -> str:
    """How a template strips a row's words, found by rendering words between spaces."""
    at = spaced.find(mark)
    left = at == 0 or not spaced[:at].endswith(" \n")
    right = not spaced[at + len(mark) :].startswith("\n ")
    return {(True, True): "both", (True, False): "left", (False, True): "right"}.get((left, right), "")
