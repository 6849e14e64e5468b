"""Prompt templates: how a row of the dataset becomes the text a model reads.

A template is either the word `chat`, which means the model's own chat template, or a text with
{placeholders}:

    <|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>

The last placeholder is the response, what comes before it is the prompt, and what follows it ends the
turn. `\\n` and `\\t` may be typed as two characters, `{{` and `}}` stand for braces.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise, starmap
from typing import Any, NamedTuple, Protocol

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs import options
from pipeline.inputs.prompts import conversations, lab_prompt, rendering
from pipeline.inputs.prompts.conversations import PROBE, Turn
from pipeline.inputs.prompts.rendering import Refused, Text

CHAT = "chat"
CONTINUED = "{prompt}{response}"  # of plain text: the prompt is how a text begins, the response the rest
CHAT_FIELDS = ("system", "prompt", "response")
CONVERSATION_FIELDS = ("messages", "tools")
LONGEST = options.LONGEST
AT_ONCE = 256  # rows rendered together
LONGEST_FIELD = 100  # letters of a field's name
MOST_FIELDS = 50  # that a text template may name: each is looked up in every row
MOST_TIMES = 8  # that a text template may name a field: with thousands, rows become millions of letters
Row = Mapping[str, Any]
_SHORT = Turn([{"role": "user", "content": "Hello"}], {"role": "assistant", "content": PROBE})
_PIECE = re.compile(r"\{\{|\}\}|\}|\{([^{}\n]*)\}|\{|[^{}]+")


class Template(Protocol):
    """What every template can do. Values of a row are texts or numbers."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields a row must have, in the order they are read; the last one is the response."""

    @property
    def optional(self) -> tuple[str, ...]:
        """Fields that a row may also have; an empty one counts as missing."""

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

    Raises InputError for an unclosed or unnamed placeholder, fewer than two, a repeated response, a
    placeholder that is repeated very often, or a text that is far too long.
    """
    if text.strip() == CHAT:
        return ChatTemplate(chat)
    if len(text) > LONGEST:
        raise InputError(f"template: it has {len(text):,} characters; write one of {LONGEST:,} or fewer")
    pieces = _split(text.replace("\\n", "\n").replace("\\t", "\t"))
    names = [value for is_field, value in pieces if is_field]
    if not names:
        raise InputError(
            f"template: {display.value(text)} has no placeholder; write it like '{{prompt}} {{response}}',"
            f" or use '{CHAT}'"
        )
    if (longest := max(names, key=len)) and len(longest) > LONGEST_FIELD:
        raise InputError(
            f"template: the name {display.short(longest)} has {len(longest):,} letters;"
            f" allowed: {LONGEST_FIELD}"
        )
    last = display.short(names[-1])
    if len(set(names)) == 1:
        raise InputError(
            f"template: {{{last}}} is its only placeholder;"
            " it needs a prompt and, as the last one, a response"
        )
    if names.count(names[-1]) > 1:
        raise InputError(f"template: {{{last}}} is the response, so it may stand only once, at the end")
    often, times = Counter(names).most_common(1)[0]
    if times > MOST_TIMES:
        raise InputError(
            f"template: {{{display.short(often)}}} occurs {times:,} times; allowed: {MOST_TIMES} times"
        )
    if len(set(names)) > MOST_FIELDS:
        raise InputError(f"template: it names {len(set(names)):,} fields; allowed: {MOST_FIELDS}")
    return TextTemplate(tuple(pieces))


@dataclass(frozen=True)
class Rendered:
    """A row as text: what is given at inference, and that with the response and the end of the turn.

    A conversation has `earlier` answers in `full`; or, where the template would write what it has written of
    them otherwise as the conversation continues, each of them is a sample `apart`.
    """

    prompt: str
    full: str
    earlier: tuple[Span, ...] = ()
    apart: tuple[Rendered, ...] = ()


class Span(NamedTuple):
    """An answer as positions in a text; its last `end` letters are what the template writes behind it."""

    start: int
    stop: int
    end: int


def each(template: Template, rows: Iterable[Row]) -> Iterator[Rendered | str]:
    """Every row rendered, in order; for one that the template refuses, the sentence that says why.

    Reads ahead by up to AT_ONCE rows, because a chat template is far faster for many rows than for one.
    Raises Busy if too many others are rendering.
    """
    return (found for found in each_or_none(template, rows) if found is not None)


def each_or_none(template: Template, rows: Iterable[Row | None]) -> Iterator[Rendered | str | None]:
    """`each` for rows that arrive slowly: a None is passed on once all rows before it are rendered."""
    if isinstance(template, ChatTemplate) and template.chat is not None:
        yield from _each(template.chat, rows)
        return
    for row in rows:
        if row is None:
            yield None
            continue
        try:
            yield Rendered(template.prompt(row), template.full(row))
        except InputError as error:
            yield error.problems[0]


def question(template: Template, row: Row) -> str:
    """What a person would ask to get this row's answer: its one prompt field, or all of them as JSON.

    A conversation of several turns is JSON as well.
    """
    if is_conversation(template, row):
        return conversations.question(row)[0]
    names = template.fields[:-1]
    return (
        str(row[names[0]])
        if len(names) == 1
        else json.dumps({name: row[name] for name in names}, allow_nan=False)
    )


def system(template: Template, row: Row) -> str:
    """The system text of a row, "" if it has none."""
    if is_conversation(template, row):
        return conversations.question(row)[1]
    return str(row.get("system") or "") if "system" in template.optional else ""


def expected(template: Template, row: Row) -> str:
    """The answer that a row gives to its prompt."""
    if is_conversation(template, row):
        return conversations.answer(row)
    return str(row[template.fields[-1]])


def is_conversation(template: Template, row: Row) -> bool:
    """Whether the template takes a row's `messages`."""
    return isinstance(template, ChatTemplate) and conversations.is_one(row)


def ignores_tools(template: Template, row: Row) -> bool:
    """Whether a row has `tools` that its chat template, if it is at hand, does not write."""
    if not (
        isinstance(template, ChatTemplate) and template.chat is not None and is_conversation(template, row)
    ):
        return False
    return bool(row.get("tools")) and not conversations.takes_tools(template.chat.source)


def unwritten_calls(template: Template, row: Row) -> list[str]:
    """Why a conversation that has no fault cannot be learned with this chat template, if it is at hand."""
    if not isinstance(template, ChatTemplate) or template.chat is None:
        return []
    why = conversations.unwritten_call(row, template.chat.source)
    return [why] if why else []


def asked(template: Template, text: str) -> dict[str, Any]:
    """The fields of a question as `question` writes it. Raises InputError."""
    if isinstance(template, ChatTemplate) and (row := conversations.asked(text)) is not None:
        return dict(row)
    names = template.fields[:-1]
    if len(names) == 1:
        return {names[0]: text}
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if (
        not isinstance(row, dict)
        or set(row) != set(names)
        or not all(isinstance(value, str | int | float) for value in row.values())
    ):
        shape = json.dumps(dict.fromkeys(names, "..."), allow_nan=False)
        raise InputError(f"This template has several fields; write the prompt as JSON: {shape}")
    return row


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
    """The model's own chat template; rows have `prompt` and `response`, and may have `system`.

    Others are conversations: see `conversations`.
    """

    chat: Chat | None

    fields = ("prompt", "response")
    optional = ("system",)

    @cached_property
    def stop(self) -> str:
        """The end of turn as text: what follows the answer when a short chat is rendered."""
        return _end(self._render(_answered(_SHORT)))

    def prompt(self, row: Row) -> str:
        tools = lab_prompt.tools_of(row)
        return self._render(_job(lab_prompt.messages_of(row), True, tools)).rstrip(" ")

    def full(self, row: Row) -> str:
        """What the template renders if that begins with the prompt, else prompt, response and end joined.

        Some templates write a past answer differently from a new one (for example without its reasoning);
        then the model must learn what it will see at inference.
        """
        self._chat()
        found = next(each(self, [row]))
        if isinstance(found, str):
            raise InputError(found)
        return found.full

    def _render(self, job: rendering.Job) -> str:
        chat = self._chat()
        found = next(rendering.Program(chat.source, chat.tokens).texts([job]))
        if isinstance(found, Refused):
            raise InputError(found.sentence)
        return found

    def _chat(self) -> Chat:
        if self.chat is None:
            raise InputError(
                "template: this model has no chat template;"
                " write one like '{prompt} {response}' instead of 'chat'"
            )
        return self.chat


def _each(chat: Chat, rows: Iterable[Row | None]) -> Iterator[Rendered | str | None]:
    """`each_or_none` of a chat template."""
    program = rendering.Program(chat.source, chat.tokens)
    differs = False  # whether it writes past answers differently: then the end is asked for with each turn
    for together in _together(rows):
        if together is None:
            yield None
            continue
        turns = [conversations.turns(row) for row in together]
        jobs = [_asked, _answered, *([_probed] if differs else [])]
        texts = program.texts([job(turn) for row in turns for turn in row for job in jobs])
        end = None  # of a turn, which tells where those before the last one end
        for row in turns:
            found = []
            for turn in row:
                prompt, answered, *ends = islice(texts, len(jobs))
                if isinstance(prompt, str) and isinstance(answered, str) and not answered.startswith(prompt):
                    differs = True
                    ends = ends or list(program.texts([_probed(turn)]))
                whole = _whole(turn, prompt, answered, *ends)
                where = f"up to message {len(turn.before) + 1}: " if len(row) > 1 else ""
                found.append(f"{where}{whole}" if isinstance(whole, str) else whole)
            if len(row) > 1 and end is None:
                (probed,) = program.texts([_answered(_SHORT)])
                end = "" if isinstance(probed, Refused) else _end(probed)
            yield _joined(found, end or "")


def _joined(turns: list[tuple[str, str] | str], end: str) -> Rendered | str:
    """A row of its turns, each (prompt, that with the answer) or why it cannot be rendered.

    Of an answer that others follow, what `end` writes behind it counts as far as it stands there then too:
    a template may end the last one in more tokens.
    """
    pairs = []
    for turn in turns:
        if isinstance(turn, str):
            return turn
        pairs.append(turn)
    earlier = []
    whole = True
    for (prompt, full), (later, _) in pairwise(pairs):
        same = _in_common(full, later)
        behind = same - (len(full) - len(end)) if full.endswith(end) else -1
        whole = whole and behind >= 0
        earlier.append(Span(len(prompt), same, behind))
    if whole:
        return Rendered(*pairs[-1], earlier=tuple(earlier))
    return Rendered(*pairs[-1], apart=tuple(starmap(Rendered, pairs[:-1])))


def _in_common(one: str, other: str) -> int:
    """How many letters two texts have in common at their beginning."""
    if other.startswith(one):
        return len(one)
    return next(at for at in range(len(one) + 1) if one[at : at + 1] != other[at : at + 1])


def _whole(turn: Turn, prompt: Text, answered: Text, probed: Text = "") -> tuple[str, str] | str:
    """A turn of its texts, or why one of them is missing."""
    if isinstance(prompt, Refused):
        return prompt.sentence
    if isinstance(answered, Refused):
        return answered.sentence
    if answered.startswith(prompt):
        return prompt.rstrip(" "), answered.rstrip()
    if isinstance(probed, Refused):
        return probed.sentence
    if turn.answer.get("tool_calls"):
        return f"{rendering.NAME} writes an answer's tool calls otherwise than it begins an answer"
    return prompt.rstrip(" "), prompt + str(turn.answer["content"]) + _end(probed)


def _together(rows: Iterable[Row | None]) -> Iterator[list[Row] | None]:
    """The rows in groups of limited number and size; a None comes after the rows before it."""
    group: list[Row] = []
    size = 0
    for row in rows:
        if row is None:
            if group:
                yield group
            yield None
            group, size = [], 0
            continue
        names = CONVERSATION_FIELDS if conversations.is_one(row) else CHAT_FIELDS
        read = {name: row[name] for name in names if name in row}  # the others may hold megabytes each
        group.append(read)
        size += conversations.size(read)
        if len(group) == AT_ONCE or size > rendering.MOST_TEXT:
            yield group
            group, size = [], 0
    if group:
        yield group


def _job(messages: list[dict[str, Any]], prompt: bool, tools: conversations.Tools | None) -> rendering.Job:
    return (messages, prompt) if tools is None else (messages, prompt, tools)


def _asked(turn: Turn) -> rendering.Job:
    return _job(turn.before, True, turn.tools)


def _answered(turn: Turn) -> rendering.Job:
    return _job([*turn.before, turn.answer], False, turn.tools)


def _probed(turn: Turn) -> rendering.Job:
    """A turn with a response that can stand nowhere else, to find out what follows it.

    A real response might be part of the end itself.
    """
    return _answered(turn.probed())


def _end(probed: str) -> str:
    """What the template writes after an answer, "" if it writes none."""
    _, found, end = probed.rpartition(PROBE)
    return end.strip() if found else ""


def _fill(pieces: Sequence[tuple[bool, str]], row: Row) -> str:
    """The pieces filled in. Raises InputError beforehand if the text would be far too long."""
    values = {value: str(row[value]) for is_field, value in pieces if is_field}
    texts = [values[value] if is_field else value for is_field, value in pieces]
    if sum(map(len, texts)) > rendering.CHARACTERS:
        raise InputError(
            f"template: it writes more than {rendering.CHARACTERS:,} characters for one row;"
            " use fewer placeholders"
        )
    return "".join(texts)


def _split(text: str) -> list[tuple[bool, str]]:
    """Cut a template into literal texts and placeholder names."""
    pieces: list[tuple[bool, str]] = []
    literal: list[str] = []
    for found in _PIECE.finditer(text):
        piece, at = found[0], found.start() + 1
        if piece in ("{{", "}}"):
            literal.append(piece[0])
        elif piece == "}":
            raise InputError(f"template: '}}' at character {at} closes nothing; write '}}}}' for a brace")
        elif piece == "{":
            raise InputError(f"template: '{{' at character {at} is never closed; write '{{{{' for a brace")
        elif piece[0] == "{":
            name = piece[1:-1].strip()
            if not name.isidentifier():
                short = display.short(name)
                raise InputError(f"template: {{{short}}} is not a field name; use letters, digits and _")
            pieces += [(False, "".join(literal)), (True, name)]
            literal = []
        else:
            literal.append(piece)
    return [piece for piece in [*pieces, (False, "".join(literal))] if piece[1]]
