"""The columns of the Compare tab: which sides of which models are asked, and what they answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.evaluation.examples import answered_by
from pipeline.exports.chat import chat_client, chat_processes, sources
from pipeline.store import Store
from webapp import threads
from webapp.talks import Talk
from webapp.ui import choices, prompt_boxes
from webapp.ui.streams import merged

SIDES = sources.SIDES
MOST_ALSO = 2
MOST = len(SIDES) + MOST_ALSO
WORDS = {"base": "Base", "adapter": "With adapter"}
TOO_MANY = f"Also ask: choose up to {MOST_ALSO}; the model's own two columns are always there."
UNLISTED = "Also ask: choose a model from the list."
ROOM = 60  # characters of a label


@dataclass(frozen=True)
class Column:
    """A side of a model; `value` names it in lists and in conversations, `at` is its position.

    `fields` are those of the model's prompts: they are read once a question, from a file that anybody may
    have brought."""

    at: int
    value: str
    source: sources.Source
    side: str
    fields: prompt_boxes.Fields


def value(side: str, export: str) -> str:
    """What names a column: the side, and the value of its model in `choices.exports`."""
    return f"{side}@{export}"


def offered(store: Store) -> choices.Choices:
    """Both sides of each model that can answer, and the other adapters in the folders of runs, as choices."""
    beside = choices.beside(store)
    return [
        (f"{words}: {label}", value(side, key))
        for label, key in choices.exports(store)
        for side, words in [*WORDS.items(), *map(_named, beside.get(key, ()))]
    ]


def _named(adapter: str) -> tuple[str, str]:
    """Another adapter's side, and its words."""
    side = answered_by.side(adapter)
    return side, display.line(answered_by.said(side))


def chosen(store: Store, run: str, also: Sequence[str]) -> list[Column]:
    """The columns of a model that can answer, and the others. Raises InputError, LabError."""
    if len(also) > MOST_ALSO:
        raise InputError(TOO_MANY)
    source = choices.source(store, run)
    fields = sources.prompt_fields(source)
    own = [
        Column(at, value(side, run), source, side, fields)
        for at, side in enumerate(SIDES)
        if side in source.sides
    ]
    return own + [_other(store, len(SIDES) + at, named) for at, named in enumerate(also)]


def _other(store: Store, at: int, named: str) -> Column:
    side, _, export = named.partition("@")
    if side not in SIDES:
        return _beside(store, at, named, answered_by.other(side), export)
    source = choices.source(store, export)
    if side not in source.sides:
        raise LabError(source.missing_side or UNLISTED)
    return Column(at, named, source, side, sources.prompt_fields(source))


def _beside(store: Store, at: int, named: str, adapter: str, export: str) -> Column:
    """The column of another adapter in a run's folder, which is a model of its own."""
    source = choices.source(store, export)
    file = choices.others(source).get(adapter)
    if file is None or value(answered_by.side(adapter), export) != named:
        raise LabError(UNLISTED)
    source = replace(source, name=f"{source.name} with {adapter}", adapter=file)
    return Column(at, named, source, answered_by.ADAPTER, sources.prompt_fields(source))


def asked(
    store: Store,
    columns: Sequence[Column],
    prompt: str,
    fields: prompt_boxes.Fields,
    talk: Talk,
    options: dict[str, Any],
) -> AsyncGenerator[dict[str, Any], None]:
    """Pieces of all answers as they come, each with its column as `at`, or with an `error` of some `columns`.

    Of a prompt with several `fields`, each model gets those of its own template.
    As many models are asked at a time as can be loaded; one that cannot answer does not end the others.
    """
    by_source: dict[sources.Source, list[Column]] = {}
    for column in columns:
        by_source.setdefault(column.source, []).append(column)
    answers = [
        _of(store, source, own, prompt_boxes.of_model(prompt, fields, own[0].fields), talk, options)
        for source, own in by_source.items()
    ]
    return merged(answers, chat_processes.MOST_PROCESSES)


async def _of(
    store: Store,
    source: sources.Source,
    columns: Sequence[Column],
    prompt: str,
    talk: Talk,
    options: dict[str, Any],
) -> AsyncGenerator[dict[str, Any], None]:
    """One model's answers; a side that stands in two columns is asked once."""
    at: dict[str, list[Column]] = {}
    for column in columns:
        at.setdefault(column.side, []).append(column)
    try:
        turns = await threads.run(threads.COMPARE, _before, talk, [same[0] for same in at.values()])
        stream = chat_client.stream(store.home, source, prompt, tuple(at), turns=turns, **options)
        async with contextlib.aclosing(stream) as answers:
            async for piece in answers:
                for column in at[piece["side"]]:
                    yield {**piece, "at": column.at}
    except (LabError, OSError) as error:
        yield {"error": sentence(error), "source": source}


def _before(talk: Talk, columns: Sequence[Column]) -> dict[str, list[tuple[str, str]]]:
    """The earlier questions of one model's columns by side, as it gets them, with its answers.

    Each question is read once. Raises InputError.
    """
    found: dict[str, list[tuple[str, str]]] = {column.side: [] for column in columns}
    for turn in talk.turns:
        said = [(column, answer) for column in columns if (answer := turn.of(column.value)) is not None]
        if said:
            prompt = prompt_boxes.of_model(turn.prompt, turn.fields, columns[0].fields)
            for column, answer in said:
                found[column.side].append((prompt, answer.text))
    return found
