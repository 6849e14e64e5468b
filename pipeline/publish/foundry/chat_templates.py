"""The chat template that Foundry Local's sessions apply, so that they read the tokens that training read.

A session has ONNX Runtime GenAI render the folder's chat template and tokenize the result. GenAI's engine and
tokenizer differ from those of training here and there, so ids are compared, and what a template can put right
(a begin-of-text token, a first space, the words of a text template) is written into it. Needs no graph.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.exports import serving_ids
from pipeline.inputs.prompts import lab_prompt
from pipeline.inputs.prompts.templates import ChatTemplate, Row, Template, TextTemplate
from pipeline.system.files import to_json

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
WHERE = "Foundry Local's chat sessions"
WAY_OUT = "publish to this lab, or choose another base model"
SHOWN = 40  # letters of a text that is read otherwise
Messages = list[dict[str, Any]]
TALK = ("Hello there", "Hi. What would you like to see?", "The sea.", "It is wide.")


@dataclass(frozen=True)
class Found:
    """A template that reads ordinary prompts as training did.

    template  to be written into the folder, None if its own is good
    compared  how many prompts were
    unusual   beginnings of unusual texts that are read otherwise all the same, such as letters in two parts
    """

    template: str | None
    compared: int
    unusual: list[str]


def possible(template: Template) -> str | None:
    """Why a prompt of this template cannot be a chat's, without looking at any; None if it can."""
    if isinstance(template, TextTemplate) and len(template.fields) > 2:
        fields = ", ".join(template.fields[:-1])
        return (
            f"template: it has several fields ({fields}), and a message in Foundry Local is one text; publish"
            " elsewhere, or train with a template of one field"
        )
    return None


def messages(template: Template, row: Row) -> Messages:
    """A row's prompt as a session gets it."""
    if isinstance(template, TextTemplate):
        return [{"role": "user", "content": str(row[template.fields[0]])}]
    return lab_prompt.messages_of(row)


def find(folder: Path, more: Sequence[Row] = ()) -> Found:
    """The template for an exported folder; `more` are rows that must be read right besides ordinary ones.

    Raises InputError if the template's prompt is no chat's, LabError if no template makes the tokens equal.
    """
    prompts = serving_ids.load(folder)
    if why := possible(prompts.template):
        raise InputError(why)
    rows, unusual = _rows(prompts, more)
    trained = serving_ids.trained_ids(folder)
    ways = list(_ways(prompts.template, _before(folder)))
    with tempfile.TemporaryDirectory() as scratch:
        for way in ways:
            served = _served(folder, Path(scratch), prompts.template, way)
            if any(one.differs for one in serving_ids.compared(prompts.template, rows, trained, served)):
                continue
            found = serving_ids.compared(prompts.template, unusual, trained, served)
            other = [display.short(one.prompt.strip()[-SHOWN:]) for one in found if one.differs]
            return Found(way, len(rows) + len(found), other)
        first = _served(folder, Path(scratch), prompts.template, ways[0])
        serving_ids.require_same(prompts.template, rows, trained, first, WHERE, WAY_OUT)
    raise LabError(f"In {WHERE} prompts differ from those of training; {WAY_OUT}.")


def write(source: Path, folder: Path, template: str) -> None:
    """Put a chat template into a folder, where readers look first and nowhere else.

    `source` has the tokenizer's config, which is copied without its own template.
    """
    config = json.loads((source / CONFIG).read_text("utf-8"))
    config.pop("chat_template", None)
    for name, text in ((CONFIG, to_json(config, ensure_ascii=False, indent=2) + "\n"), (FILE, template)):
        (folder / name).unlink(missing_ok=True)  # it may be a link to a file of the export
        (folder / name).write_text(text, "utf-8")


def of_text(template: TextTemplate, before: str, *, space: bool = False) -> str:
    """A chat template that writes for one message what a text template writes for its field.

    `before` is written first, with `space` a space behind it where the prompt has none there. Earlier turns
    are written as training wrote a row; a system text is refused, because training had none.
    """
    pieces = template.pieces
    at = max(place for place, (is_field, _) in enumerate(pieces) if is_field)
    prompt = _joined(pieces[:at], "m['content']", strip=True)
    past = _joined(pieces[at:], "m['content']")
    first = f"{{{{ {_literal(before)} }}}}"
    if space and pieces[0][0]:
        first += "{{ '' if messages[0]['content'].startswith(' ') else ' ' }}"
    elif space and not pieces[0][1].startswith(" "):
        first += "{{ ' ' }}"
    return (
        f"{first}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{{{{ {prompt} }}}}"
        f"{{% elif m['role'] == 'assistant' %}}{{{{ {past} }}}}"
        "{% else %}{{ raise_exception('this model was trained without ' + m['role'] + ' messages') }}"
        "{% endif %}{% endfor %}"
    )


def _joined(pieces: Sequence[tuple[bool, str]], content: str, *, strip: bool = False) -> str:
    """A Jinja expression of pieces as `TextTemplate` has them; with `strip`, without spaces at its end."""
    texts = [(is_field, text) for is_field, text in pieces if is_field or text]
    if strip and not texts[-1][0]:
        texts[-1] = False, texts[-1][1].rstrip(" ")
        texts = texts if texts[-1][1] else texts[:-1]
    parts = [content if is_field else _literal(text) for is_field, text in texts]
    if strip and texts[-1][0]:
        parts[-1] += ".rstrip(' ')"
    return " + ".join(parts)


def _literal(text: str) -> str:
    """A text as a Jinja literal on one line."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"'{escaped.replace(chr(13), chr(92) + 'r')}'"


def _ways(template: Template, before: str) -> Iterator[str | None]:
    """What may be written, the best first. None is the folder's own."""
    if isinstance(template, TextTemplate):
        yield from (of_text(template, before, space=space) for space in (False, True))
        return
    starts = dict.fromkeys((before, f"{before} ", " "))
    assert isinstance(template, ChatTemplate)
    assert template.chat is not None
    yield None
    yield from (f"{{{{ {_literal(start)} }}}}{template.chat.source}" for start in starts if start)


def _before(folder: Path) -> str:
    """The tokens that training puts before every text, as text."""
    tokenizer = serving_ids.trained_by(folder)
    return "".join(tokenizer.id_to_token(number) for number in serving_ids.before_of(folder))


def _served(folder: Path, scratch: Path, template: Template, way: str | None) -> Callable[[Row], list[int]]:
    """What a session reads of a row, with a template in place of the folder's own."""
    import onnxruntime_genai as og

    for name in (*serving_ids.TOKENIZER_FILES, FILE):
        (scratch / name).unlink(missing_ok=True)
        if (folder / name).is_file():
            shutil.copyfile(folder / name, scratch / name)
    if way is not None:
        write(folder, scratch, way)
    tokenizer = og.Tokenizer(og.Config(str(scratch)))

    def ids(row: Row) -> list[int]:
        said = json.dumps(messages(template, row), allow_nan=False)
        text = tokenizer.apply_chat_template(messages=said, add_generation_prompt=True)
        return [int(token) for token in tokenizer.encode(text)]

    return ids


def _rows(prompts: serving_ids.Prompts, more: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that must be read right, and unusual ones.

    What GenAI's tokenizer does with letters in two parts, with special spaces and with special tokens that a
    user writes, it does for every model of its kind, and no template changes it.
    """
    hard = serving_ids.hard_rows(prompts.reader, prompts.template)
    plain = [row for row in hard if _is_plain(row, prompts)]
    unusual = [row for row in hard if not _is_plain(row, prompts)]
    return [*more, *plain, *_talks(prompts.template)], [*unusual]


def _is_plain(row: Row, prompts: serving_ids.Prompts) -> bool:
    text = " ".join(map(str, row.values()))
    return text.isascii() and not any(token in text for token in prompts.reader.special)


def _talks(template: Template) -> list[Row]:
    """A conversation of two turns, for a template that knows earlier ones."""
    if not isinstance(template, ChatTemplate):
        return []
    said = zip(("user", "assistant") * 2, TALK, strict=True)
    return [{"messages": [{"role": role, "content": text} for role, text in said]}]
