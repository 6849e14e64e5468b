"""Prompt templates: how a row of the dataset becomes the text a model reads.

A template is either the word `chat`, which means the model's own chat template, or a text with
{placeholders}:

    <|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>

The last placeholder is the response, what comes before it is the prompt, and what follows it ends the
turn. `\\n` and `\\t` may be typed as two characters, `{{` and `}}` stand for braces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils

from pipeline import lab_prompt, shorten
from pipeline.errors import InputError

CHAT = "chat"
Row = Mapping[str, Any]
_PROBE = "QZ7QZ7"


class Template(Protocol):
    """What every template can do. Values of a row are texts or numbers."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields a row must have, in the order they are read; the last one is the response."""

    @property
    def optional(self) -> tuple[str, ...]:
        """The fields that a row may have besides; an empty one is as good as none."""

    @property
    def stop(self) -> str:
        """The text that ends an answer, "" if only the model's own end token does."""

    def prompt(self, row: Row) -> str:
        """The text given to the model at inference."""

    def full(self, row: Row) -> str:
        """`prompt(row)`, the response, and the end of the turn: the text trained on."""


@dataclass(frozen=True)
class Chat:
    """A model's own chat template and the special tokens that template may name."""

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)


def parse(text: str, chat: Chat | None = None) -> Template:
    """The template `text` stands for. `chat` is needed to render `chat`, not to know its fields.

    Raises InputError for an unclosed or unnamed placeholder, fewer than two, or a repeated response.
    """
    if text.strip() == CHAT:
        return ChatTemplate(chat)
    pieces = _split(text.replace("\\n", "\n").replace("\\t", "\t"))
    names = [value for is_field, value in pieces if is_field]
    if not names:
        raise InputError(
            f"template: {shorten.value(text)} has no placeholder;"
            f" write it like '{{prompt}} {{response}}', or use '{CHAT}'"
        )
    if len(set(names)) == 1:
        raise InputError(
            f"template: {{{names[0]}}} is its only placeholder;"
            " it needs a prompt and, as the last one, a response"
        )
    if names.count(names[-1]) > 1:
        raise InputError(f"template: {{{names[-1]}}} is the response, so it may stand only once, at the end")
    return TextTemplate(tuple(pieces))


@dataclass(frozen=True)
class Rendered:
    """A row as text: what is given at inference, and that with the response and the end of the turn."""

    prompt: str
    full: str


def each(template: Template, rows: Iterable[Row]) -> Iterator[Rendered | str]:
    """Every row rendered, in order; for one that the template refuses, the sentence that says why."""
    for row in rows:
        try:
            yield Rendered(template.prompt(row), template.full(row))
        except InputError as error:
            yield error.problems[0]


def question(template: Template, row: Row) -> str:
    """What a person would ask to get this row's answer: its one prompt field, or all of them as JSON."""
    names = template.fields[:-1]
    return str(row[names[0]]) if len(names) == 1 else json.dumps({name: row[name] for name in names})


def asked(template: Template, text: str) -> dict[str, Any]:
    """The fields of a question as `question` writes it. Raises InputError."""
    names = template.fields[:-1]
    if len(names) == 1:
        return {names[0]: text}
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict) or set(row) != set(names):
        shape = json.dumps(dict.fromkeys(names, "..."))
        raise InputError(f"This template has several fields; write the prompt as JSON: {shape}")
    return row


def chat_template(folder: Path) -> Chat | None:
    """The chat template that ships in a Hugging Face model folder, or None if there is none.

    It stands in `chat_template.jinja`, or in older folders in `tokenizer_config.json`, where several
    may have names; then the one named "default" counts.
    """
    config: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    source = config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if (folder / "chat_template.jinja").is_file():
        source = (folder / "chat_template.jinja").read_text("utf-8")
    if not source:
        return None
    return Chat(source, _special_tokens(folder, config))


@dataclass(frozen=True)
class TextTemplate:
    """A text with placeholders, as (is a field, text or name) pieces."""

    pieces: tuple[tuple[bool, str], ...]

    optional = ()

    @cached_property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value for is_field, value in self.pieces if is_field))

    @cached_property
    def _response_at(self) -> int:
        return max(i for i, (is_field, _) in enumerate(self.pieces) if is_field)

    @cached_property
    def stop(self) -> str:
        return "".join(value for _, value in self.pieces[self._response_at + 1 :]).strip()

    def prompt_pieces(self) -> list[str | dict[str, str]]:
        """The prompt's part as `lab.json` has it: texts, and fields as {name: how it is stripped}."""
        return [{value: ""} if is_field else value for is_field, value in self.pieces[: self._response_at]]

    def prompt(self, row: Row) -> str:
        # A space before the answer belongs to it: tokenizers put it into the first token of a word.
        return _fill(self.pieces[: self._response_at], row).rstrip(" ")

    def full(self, row: Row) -> str:
        return _fill(self.pieces, row)


@dataclass(frozen=True)
class ChatTemplate:
    """The model's own chat template; rows have `prompt` and `response`, and may have `system`."""

    chat: Chat | None

    fields = ("prompt", "response")
    optional = ("system",)

    @cached_property
    def stop(self) -> str:
        """The end of turn as text: what follows the answer when a short chat is rendered."""
        return self._end({"prompt": "Hello"})

    def prompt(self, row: Row) -> str:
        return self._asked(row).rstrip(" ")

    def _asked(self, row: Row) -> str:
        return self._render(_messages(row), add_generation_prompt=True)

    def full(self, row: Row) -> str:
        """As the template renders it where that begins with the prompt, else put together.

        Some templates write a past answer differently from one about to be given (they drop its
        reasoning, say); then the model must learn what it will see at inference.
        """
        prompt = self._asked(row)
        rendered = self._render_answered(row).rstrip()
        if rendered.startswith(prompt):
            return rendered
        return prompt + str(row["response"]) + self._end(row)

    def _render_answered(self, row: Row) -> str:
        answer = {"role": "assistant", "content": str(row["response"])}
        return self._render([*_messages(row), answer], add_generation_prompt=False)

    def _end(self, row: Row) -> str:
        """What the template writes after an answer, "" if it writes none.

        Found with a response that can stand nowhere else: a real one may be a letter of the end itself.
        """
        _, found, end = self._render_answered({**row, "response": _PROBE}).rpartition(_PROBE)
        return end.strip() if found else ""

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if self.chat is None:
            raise InputError(
                "template: this model has no chat template;"
                " write one like '{prompt} {response}' instead of 'chat'"
            )
        try:
            return _compile(self.chat.source).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.chat.tokens,
            )
        # A template is a program from a model's folder; whatever it does wrong is its text's fault.
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"template: the model's chat template cannot be rendered: {error}") from error


def _messages(row: Row) -> list[dict[str, str]]:
    system = [{"role": "system", "content": str(row["system"])}] if row.get("system") else []
    return [*system, {"role": "user", "content": str(row["prompt"])}]


def _fill(pieces: tuple[tuple[bool, str], ...], row: Row) -> str:
    return "".join(str(row[value]) if is_field else value for is_field, value in pieces)


def _split(text: str) -> list[tuple[bool, str]]:
    """Cut a template into literal texts and placeholder names."""
    pieces: list[tuple[bool, str]] = []
    literal, at = "", 0
    while at < len(text):
        if text[at : at + 2] in ("{{", "}}"):
            literal, at = literal + text[at], at + 2
        elif text[at] == "}":
            raise InputError(f"template: '}}' at character {at + 1} closes nothing; write '}}}}' for a brace")
        elif text[at] == "{":
            end = text.find("}", at)
            name = text[at + 1 : end].strip()
            if end < 0 or "{" in name or "\n" in name:
                raise InputError(
                    f"template: '{{' at character {at + 1} is never closed; write '{{{{' for a brace"
                )
            if not name.isidentifier():
                shown = shorten.text(name, shorten.LONGEST)
                raise InputError(f"template: {{{shown}}} is not a field name; use letters, digits and _")
            pieces += [(False, literal), (True, name)]
            literal, at = "", end + 1
        else:
            literal, at = literal + text[at], at + 1
    return [piece for piece in [*pieces, (False, literal)] if piece[1]]


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like as texts, wherever the folder keeps them."""
    kept: dict[str, Any] = {}
    if (folder / "special_tokens_map.json").is_file():
        kept = json.loads((folder / "special_tokens_map.json").read_text("utf-8"))
    tokens = {}
    for name, value in {**kept, **config}.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words; here it only prints them."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 wants a plain class attribute

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Chat templates are not HTML, so jinja2's own filter, which escapes it, would be wrong here."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    """One day for all: a prompt that named today's would be other tokens tomorrow than those trained."""
    return lab_prompt.day(layout)


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """A function, because the type itself would hand a template its class methods."""
    return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` without names that begin with _, through which templates have left sandboxes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in _dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace: {name!r} is not a name a template may set")
        super().__setitem__(name, value)


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    """Compile a chat template with the names and whitespace rules transformers gives it.

    Sandboxed: the template is code that came with the model.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    environment.globals["dict"] = _dict
    environment.globals["namespace"] = _Namespace
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise InputError(f"template: the model's chat template is faulty: {error}") from error
