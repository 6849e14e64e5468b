"""What the rows of a file are: prompts and responses, chats, or only texts; and chats as the lab has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline import display
from pipeline.inputs.data.formats import columns, markers
from pipeline.inputs.data.formats.columns import Columns
from pipeline.inputs.data.formats.limits import Row
from pipeline.inputs.prompts import conversations

PROMPTS, QUESTIONS, ALPACA = "prompt/response", "question/answer", "alpaca"
MESSAGES, SHAREGPT, TEXT, UNKNOWN = "messages", "sharegpt", "plain text", "unknown"
CHATS = (MESSAGES, SHAREGPT)
MOST_TURNS = 10_000
_TALKS = ("conversations", "conversation", "messages")
_ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "bot": "assistant", "model": "assistant", "chatgpt": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
_CALLS = ("function_call", "observation", "function_response", "tool_call", "tool_response")
AS_MESSAGES = (
    "write rows with tool calls as 'messages', each call in 'tool_calls' of an assistant's message and its"
    " result as a message of the role tool, or leave them out"
)
ONLY_TEXT = (
    "the rows have one column only ({}): add a column with the response, or choose it as the response,"
    " without a prompt, to train on whole texts"
)
NESTED = (
    "the answers in {} are lists or objects, and the lab trains on texts: write the text of one answer into a"
    " column of its own, such as answer"
)
UNCLEAR = "which columns hold prompt and response is not clear; columns here: {}. Choose them: {}"


@dataclass(frozen=True)
class Shape:
    """What rows are. `columns` is the choice proposed, `sure` whether it needs no person to look at it.

    key     where a row has its turns, "" where it has none
    nested  the column whose answers are lists or objects, "" if none are
    marked  whether these stand in one text between markers; then rows are ALPACA or MESSAGES
    only    whether rows have one text and nothing else, by whose name something is missing
    """

    name: str
    fields: tuple[str, ...]
    columns: Columns | None = None
    sure: bool = False
    key: str = ""
    nested: str = ""
    marked: bool = False
    only: bool = False

    @property
    def has_turns(self) -> bool:
        """Whether rows are chats, and have no columns to choose."""
        return self.marked or self.name in CHATS

    @property
    def problem(self) -> str:
        """Why rows cannot be used as recognised, "" if they can."""
        if self.sure or self.has_turns:
            return ""
        if self.nested:
            return NESTED.format(display.quoted(self.nested))
        here = display.names(self.fields) or "none"
        if self.only:
            return ONLY_TEXT.format(here)
        return UNCLEAR.format(here, columns.HOW)


def recognised(sample: Sequence[Row]) -> Shape:
    """The shape of rows by the first few of them."""
    fields = tuple(dict.fromkeys(name for row in sample for name in row))
    for key in _TALKS:
        turns = next((found for row in sample if (found := _turns(row.get(key)))), None)
        if turns is not None:
            first = turns[0]
            return Shape(MESSAGES if "role" in first and key == "messages" else SHAREGPT, fields, key=key)
    if text := columns.only_text(sample, fields):
        return _of_text(sample, fields, text)
    return _of_columns(sample, fields)


def _of_columns(sample: Sequence[Row], fields: tuple[str, ...]) -> Shape:
    """The shape of rows with a column, or several, for prompt and response."""
    choice, sure = columns.proposed(sample, fields)
    if choice is None and {"prompt", "response"} <= set(fields):
        return Shape(PROMPTS, fields, columns.SAME, True)  # what is wrong with its rows is said by line
    if nested := columns.nested_answers(sample, fields):
        return Shape(UNKNOWN, fields, nested=nested)
    if choice is None:
        texts = [n for n in fields if any(isinstance(row.get(n), str) and row[n].strip() for row in sample)]
        return Shape(UNKNOWN, fields, only=len(texts) == 1)
    if {"prompt", "response"} <= set(fields):
        return Shape(PROMPTS, fields, choice, True)
    is_alpaca = {"instruction", "output"} <= set(fields)
    return Shape(ALPACA if is_alpaca else QUESTIONS, fields, choice, sure)


def _of_text(sample: Sequence[Row], fields: tuple[str, ...], name: str) -> Shape:
    """The shape of rows with one text: what the markers in most of them say, else plain text."""
    texts = [row[name] for row in sample if isinstance(row.get(name), str) and row[name].strip()]
    styles = [style for text in texts if (style := markers.style_of(text)) is not None]
    if 2 * len(styles) < len(texts):
        return Shape(TEXT, fields, Columns((), (name,)), True)
    is_alpaca = all(style.takes_preamble for style in styles)
    return Shape(ALPACA if is_alpaca else MESSAGES, fields, key=name, marked=True)


def _turns(value: Any) -> list[Row] | None:
    """A list of turns, which in a table stands as JSON in a cell; None for anything else."""
    value = _from_json(value)
    fits = isinstance(value, list) and value and isinstance(value[0], dict)
    said = ("role", "from")
    return value if fits and any(name in value[0] for name in said) else None


def _from_json(value: Any) -> Any:
    """A value, or the list that a cell of a table has as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def chat(row: Row, key: str) -> Row | str:
    """A row with its turns as `messages`, and its tools, or why it has none."""
    turns = _turns(row.get(key))
    if turns is None:
        return f"{display.quoted(key)} must be a list of turns, each with who says it and what"
    if len(turns) > MOST_TURNS:
        return f"{display.quoted(key)} has {len(turns):,} turns; allowed: {MOST_TURNS:,}"
    messages = []
    for number, turn in enumerate(turns, 1):
        message = _message(turn)
        if isinstance(message, str):
            return f"turn {number:,} of {display.quoted(key)} {message}"
        messages.append(message)
    while messages and messages[-1]["role"] != "assistant" and "role" not in turns[len(messages) - 1]:
        messages.pop()  # nobody answers it; ShareGPT's chats often end so
    if not messages:
        return f"{display.quoted(key)} has no turn of the assistant, so there is nothing to learn"
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    tools = _from_json(row.get("tools"))
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _message(turn: Any) -> Row | str:
    """A turn as role and content, with whatever else it has where it is a message already."""
    if not isinstance(turn, dict):
        return "is no object"
    if "role" in turn:
        known = {name: value for name, value in turn.items() if value is not None or name == "role"}
        message: Row = conversations.simplified(known)
        return message
    who, said = turn.get("from"), turn.get("value", turn.get("content"))
    role = _ROLES.get(who.strip().casefold()) if isinstance(who, str) else None
    if role is None:
        said_by = f"is from {display.quoted(who)}; known are human, gpt, system and tool"
        return f"{said_by}; {AS_MESSAGES}" if str(who).strip().casefold() in _CALLS else said_by
    if not isinstance(said, str):
        return "has no text as its value"
    if "\0" in said:
        return "has a NUL character, behind which tokenizers read nothing; remove it"
    return {"role": role, "content": said}
