"""Rows that are whole conversations: `messages` with several turns, and `tools` that the model may call.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}

Every message of the assistant is learned. The prompt of such a row is all but the last message, which is the
answer. A row with `prompt` and `response` is a conversation of one turn: `turns` gives both in one form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.prompts import lab_prompt
from pipeline.system.files import to_json

Row = Mapping[str, Any]
Message = dict[str, Any]
Tools = list[dict[str, Any]]
ROLES = ("system", "user", "assistant", "tool")
MOST_MESSAGES = 1000
MOST_TURNS = 200  # of the assistant
MOST_READ = 4 << 20  # characters times turns: each turn is rendered and read with all that stands before it
MOST_FAULTS = 5  # of one row that are named
PROBE = "QZ7QZ7"
DEVELOPER = "developer"  # what newer rows call the system
ONLY_CALLS = (
    "only calls tools, and the chat template of this model does not write tool calls, so there is nothing to"
    " learn; choose a model whose template does, or leave such rows out"
)


class Turn(NamedTuple):
    """An answer of the assistant and what stands before it; `tools` are those of the row."""

    before: list[Message]
    answer: Message
    tools: Tools | None = None

    def probed(self) -> Turn:
        """With an answer that can stand nowhere else, to find out what follows it."""
        return self._replace(answer={**self.answer, "content": PROBE})


def is_one(row: Row) -> bool:
    """Whether a row for the template `chat` is a conversation; one with a `response` is read as before."""
    return lab_prompt.is_conversation(row)


def turns(row: Row) -> list[Turn]:
    """The answers of a row for the template `chat`, in order; it has been checked."""
    if not is_one(row):
        return [Turn(lab_prompt.messages_of(row), {"role": "assistant", "content": str(row["response"])})]
    messages, tools = row["messages"], row.get("tools") or None
    return [
        Turn(messages[:at], message, tools)
        for at, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def simplified(message: Any) -> Any:
    """A message in the lab's own words: newer names of roles, and texts in parts, have older ones.

    Anything else stays as it is, for `faults` to name.
    """
    if not isinstance(message, dict):
        return message
    if message.get("role") == DEVELOPER:
        message = {**message, "role": "system"}
    parts = message.get("content")
    if isinstance(parts, list) and parts and all(_text_of(part) is not None for part in parts):
        message = {**message, "content": "\n".join(str(_text_of(part)) for part in parts)}
    return message


def _text_of(part: Any) -> str | None:
    """The text of a part of a message's content, None if it is another kind of part."""
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text")
    return part if isinstance(part, str) else None


def unwritten_call(row: Row, source: str) -> str:
    """Why an answer that only calls tools cannot be learned with a chat template; "" if none is such.

    A template writes tool calls if it names them. The row has no `faults`.
    """
    if re.search(r"\btool_calls\b", source):
        return ""
    for at, message in enumerate(row["messages"], 1):
        if message["role"] == "assistant" and not (message.get("content") or "").strip():
            return f"message {at} {ONLY_CALLS}"
    return ""


def takes_tools(source: str) -> bool:
    """Whether a chat template writes `tools`: it names them."""
    return re.search(r"\btools\b", source) is not None


def size(row: Row) -> int:
    """About how many characters rendering a row takes, over all its turns."""
    own = sum(len(value) for value in row.values() if isinstance(value, str))
    if not is_one(row):
        return own
    answers = [message for message in row["messages"] if message["role"] == "assistant"]
    return own + _characters(row) * len(answers)


def prompt_texts(row: Row) -> list[str]:
    """What makes the prompt of a conversation, as texts: equal for equal prompts.

    One of a system text and a question has the texts [system, prompt], as a row with those fields.
    """
    plain = _plain(row)
    return [*plain] if plain else [_json(row)]


def opening_texts(row: Row) -> list[str]:
    """`prompt_texts` of how a conversation begins, up to what a user says first.

    Equal for two of which one continues the other, and for a row with that prompt alone.
    """
    messages = row["messages"]
    first = next(at for at, message in enumerate(messages) if message["role"] == "user")
    return prompt_texts({"messages": [*messages[: first + 1], messages[-1]]})


def question(row: Row) -> tuple[str, str]:
    """(what is asked, the system text) of a conversation; one of several turns as JSON, for `asked`."""
    if plain := _plain(row):
        return plain[1], plain[0]
    return _json(row), ""


def asked(text: str) -> Row | None:
    """The prompt that `question` has written as JSON; None for any other text. Raises InputError."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or "messages" not in row or not row.keys() <= {"messages", "tools"}:
        return None
    messages = row["messages"]
    done = [*messages, {"role": "assistant", "content": PROBE}] if isinstance(messages, list) else messages
    if found := list(faults({**row, "messages": done})):
        raise InputError(found)
    return row


def _plain(row: Row) -> tuple[str, str] | None:
    """(system text, question) of a conversation that is no more than that."""
    messages = lab_prompt.messages_of(row)
    roles = [message["role"] for message in messages]
    if lab_prompt.tools_of(row) or not all(message.keys() <= {"role", "content"} for message in messages):
        return None
    texts = [message["content"] for message in messages]
    if roles == ["user"]:
        return "", texts[0]
    return (texts[0], texts[1]) if roles == ["system", "user"] and texts[0] else None


def _json(row: Row) -> str:
    tools = lab_prompt.tools_of(row)
    found = {"messages": lab_prompt.messages_of(row), **({"tools": tools} if tools else {})}
    return to_json(found, ensure_ascii=False, sort_keys=True)  # what is no part of a prompt may be infinite


def answer(row: Row) -> str:
    """The last answer, as text."""
    last = row["messages"][-1]
    calls = last.get("tool_calls")
    return str(last.get("content") or "") + (json.dumps(calls, ensure_ascii=False) if calls else "")


def faults(row: Row) -> Iterator[str]:
    """Why a conversation cannot be learned, each with the number of its message."""
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        given = "an empty one" if messages == [] else _kind(messages)
        yield f"'messages' must be a list of messages, not {given}"
        return
    if len(messages) > MOST_MESSAGES:
        yield f"it has {len(messages):,} messages; allowed: {MOST_MESSAGES:,}; make several rows of it"
        return
    found = [fault for at, message in enumerate(messages, 1) for fault in _faults(at, message)]
    yield from found[:MOST_FAULTS]
    if not found:
        yield from islice(_faults_of_order(row), 1)
    yield from _faults_of_tools(row.get("tools"))


def _faults(at: int, message: Any) -> Iterator[str]:
    """What is wrong with one message, whatever the others are."""
    if not isinstance(message, dict):
        yield f"message {at} must be an object with role and content, not {_kind(message)}"
        return
    role = message.get("role")
    if role not in ROLES:
        given = f"the role {display.value(role)}" if "role" in message else "no role"
        yield f"message {at} has {given}; known: {', '.join(ROLES)}"
        return
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        yield f"message {at}: tool_calls must be a list of objects"
        return
    content = message.get("content")
    if content is None and role == "assistant" and calls:
        return
    if not isinstance(content, str):
        given = _kind(content) if "content" in message else "nothing"
        said = "; of a list, each part must be a text" if isinstance(content, list) else ""
        yield f"message {at}: content must be text, not {given}{said}"
    elif "\0" in content:
        yield f"message {at} has a NUL character, behind which tokenizers read nothing; remove it"
    elif role == "assistant" and not content.strip() and not calls:
        yield f"message {at} is an empty answer, so there is nothing to learn from it"


def _faults_of_order(row: Row) -> Iterator[str]:
    """What is wrong with messages that are right one by one."""
    roles = [message["role"] for message in row["messages"]]
    count = roles.count("assistant")
    if not count:
        yield "it has no message of the assistant, so there is nothing to learn"
        return
    first = roles.index("assistant")
    if "user" not in roles[:first]:
        yield f"message {first + 1} is the assistant's, and no message of a user is before it"
    if roles[-1] != "assistant":
        last = len(roles) - roles[::-1].index("assistant")
        behind = f"remove what follows message {last}"
        yield f"message {last + 1} is the {roles[last]}'s, and no answer follows; {behind}"
    if count > MOST_TURNS:
        yield f"it has {count:,} answers of the assistant; allowed: {MOST_TURNS}; make several rows of it"
    elif count > 1 and count * _characters(row) > MOST_READ:
        most = MOST_READ // count
        yield f"it has {count:,} answers and more than {most:,} characters in all; make several rows of it"


def _faults_of_tools(tools: Any) -> Iterator[str]:
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        yield "'tools' must be a list of objects"


def _characters(row: Row) -> int:
    """Of all that a template is given; JSON's marks count, because a template may write them."""
    plain = sum(
        len(message.get("content") or "")
        if message.keys() <= {"role", "content"}
        else len(json.dumps(message))
        for message in row["messages"]
    )
    return plain + (len(json.dumps(row["tools"])) if row.get("tools") else 0)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {type(None): "null", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), "a number")
