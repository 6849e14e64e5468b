"""A row as the token ids that the model was trained to read. Needs onnxruntime-genai alone.

ONNX Runtime GenAI's tokenizer adds no begin-of-text token, and between special tokens it does not normalize
or mark spaces as Hugging Face's does. `lab.json` says under "reading" what makes the two equal; the lab has
compared them for this folder. This file lies beside every exported model and serves the lab itself as well.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Render = Callable[[Row], str]
# What Hugging Face's tokenizers take for space; Python counts four control characters more.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
LONGEST_TEXT = 10_000_000  # letters; a folder of somebody's could name replacements without end
WHITESPACE = re.compile(f"[{SPACES}]*")
STRIPS: dict[str, Callable[[str], str]] = {
    "": str, "both": str.strip, "left": str.lstrip, "right": str.rstrip,
}  # fmt: skip


class Reader:
    """What one exported folder makes of a row.

    `fields` are those a row must have, `optional` those it may have, `special` the tokens that are found in
    a text before anything else, as {text: (id, flags)}. `render` writes the prompt of a row
    where the model's chat template does more than put words around the row's own; by default jinja2 does.
    """

    def __init__(self, lab: Mapping[str, Any], tokenizer: Any, render: Render) -> None:
        reading = lab["reading"]
        self.fields: list[str] = lab["fields"]
        self.optional: list[str] = lab.get("optional", [])
        self._is_chat = lab["template"].strip() == "chat"
        self._pieces = {False: lab["prompt"], True: lab.get("prompt_with_system")}
        self._render = render
        self._tokenizer = tokenizer
        self._before: list[int] = reading["before"]
        self._space: str = reading["space"]
        self._normalize: list[list[str]] = reading["normalize"]
        self.special = {text: (number, flags) for text, number, flags in reading["special"]}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def ids(self, row: Row) -> list[int]:
        """Token ids of the prompt of a row. Raises what `text` raises."""
        return self.encode(self.text(row))

    def text(self, row: Row) -> str:
        """The prompt of a row as text; a model with a chat template takes {"messages": [...]} as well.

        Raises KeyError for a field that is missing, ValueError for a system text that the model's template
        does not take, and what `render` does.
        """
        if self._is_chat and is_conversation(row):
            return self._render(row)
        system = bool(row.get("system")) and self._is_chat
        if system and "system" not in self.optional:
            raise ValueError("this model's chat template takes no system text")
        pieces = self._pieces[system]
        if pieces is None:
            return self._render(row)
        # A space before the answer is the answer's: tokenizers put it into the first token of a word.
        return "".join(_filled(piece, row) for piece in pieces).rstrip(" ")

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt. Raises ValueError for a NUL character, where GenAI would stop."""
        if "\0" in text:
            raise ValueError("the prompt has a NUL character, behind which the tokenizer reads nothing")
        ids: list[int] = []
        for start, piece, number in self._split(text):
            if number is not None:
                ids.append(number)
            elif piece:
                ids += [int(token) for token in self._tokenizer.encode(self._spaced(piece, start == 0))]
        there = ids[: len(self._before)] == self._before  # the template wrote them as text
        return ids if there else [*self._before, *ids]

    def _split(self, text: str) -> Iterator[tuple[int, str, int | None]]:
        """(position, text, id or None) of the special tokens in a text and of what stands between them."""
        at = 0
        for found in self._pattern.finditer(text):
            number, flags = self.special[found.group()]
            start, end = found.span()
            if start < at:
                continue
            if "l" in flags:
                start = at + len(text[at:start].rstrip(SPACES))
            yield at, text[at:start], None
            yield start, "", number
            at = WHITESPACE.match(text, end).end() if "r" in flags else end  # type: ignore[union-attr]
        yield at, text[at:], None

    def _spaced(self, text: str, first: bool) -> str:
        """The text between two special tokens as GenAI's tokenizer must get it."""
        for step, *given in self._normalize:
            if step == "form":
                text = unicodedata.normalize(given[0], text)  # type: ignore[arg-type]  # NFC and the like
            elif step == "lower":
                text = text.lower()
            else:
                grown = len(text) + text.count(given[0]) * (len(given[1]) - len(given[0]))
                if grown > LONGEST_TEXT:
                    raise ValueError(
                        f"lab.json would make {grown:,} letters of a text; export the model again"
                    )
                text = text.replace(given[0], given[1])
        if self._space == "each":
            return f" {text}"
        if self._space == "words" and not text.startswith(" "):
            return f" {text}"
        marks = self._space == "marks" or (self._space == "first" and first)
        return f" {text}" if marks and not text.startswith((" ", "▁")) else text


def open_reader(folder: Path, tokenizer: Any) -> Reader:
    """The reader of a folder for GenAI's `tokenizer` of it."""
    lab = json.loads((folder / "lab.json").read_text("utf-8"))
    return Reader(lab, tokenizer, jinja_renderer(folder))


def _filled(piece: str | Mapping[str, str], row: Row) -> str:
    if isinstance(piece, str):
        return piece
    ((field, strip),) = piece.items()
    return STRIPS[strip](str(row[field]))


def is_conversation(row: Row) -> bool:
    """Whether a row has its prompt in `messages`, for a model with a chat template."""
    return "messages" in row and "response" not in row


def messages_of(row: Row) -> list[dict[str, Any]]:
    """The messages of a row's prompt; a last one of the assistant is the answer, and no part of it."""
    if is_conversation(row):
        messages = list(row["messages"])
        return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    system = [{"role": "system", "content": str(row["system"])}] if row.get("system") else []
    return [*system, {"role": "user", "content": str(row["prompt"])}]


def attempts(source: str, messages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The messages as a chat template is given them, in turn until it takes them.

    An answer that only calls tools has null for its content, or none. A template that knows that asks for
    `none`; another one would fail or write "None", and is given an empty text.
    """
    if all(message.get("content") is not None for message in messages):
        return [messages]
    filled = [
        message if message.get("content") is not None else {**message, "content": ""} for message in messages
    ]
    return [messages, filled] if re.search(r"\bnone\b", source, re.IGNORECASE) else [filled]


def tools_of(row: Row) -> list[dict[str, Any]] | None:
    """What the template is to tell the model of tools, None for nothing."""
    return (row.get("tools") or None) if is_conversation(row) else None


def jinja_renderer(folder: Path) -> Render:
    """Renders rows with the folder's own chat template, for templates that need more than their words."""

    def render(row: Row) -> str:
        try:
            chat = environment()
        except ImportError:
            raise SystemExit("The prompts of this model are written by jinja2: pip install jinja2") from None
        source = (folder / "chat_template.jinja").read_text("utf-8")
        given = {"tools": tools_of(row), "documents": None, "add_generation_prompt": True, **tokens(folder)}
        *others, last = attempts(source, messages_of(row))
        template = chat.from_string(source)
        for messages in others:
            with suppress(Exception):  # whatever the template raises
                return str(template.render(messages=messages, **given)).rstrip(" ")
        return str(template.render(messages=last, **given)).rstrip(" ")

    return render


def environment() -> Any:
    """A jinja2 environment with the names and whitespace rules that transformers gives chat templates.

    Sandboxed: a template is a program that came with a model. The lab renders in the same environment.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        """Chat templates are not HTML, so jinja2's own filter, which escapes it, would be wrong here."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    def to_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
        """A function, because the type itself would hand a template its class methods."""
        return dict(*args, **kwargs)

    class SafeNamespace(Namespace):
        """`namespace()` without names that begin with _, through which templates have left sandboxes."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            for name, value in to_dict(*args, **kwargs).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"namespace: {name!r} is not a name a template may set")
            super().__setitem__(name, value)

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks the assistant's words; here it prints them."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 wants a plain class attribute

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = to_json
    made.globals.update(raise_exception=refuse, strftime_now=day, dict=to_dict, namespace=SafeNamespace)
    return made


def tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and the like as texts, wherever the folder keeps them."""
    found: dict[str, str] = {}
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        for name, value in known.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found


def day(layout: str) -> str:
    """What a template writes for today: always the same day, so that prompts stay as trained."""
    return datetime(2024, 7, 26).strftime(layout)
