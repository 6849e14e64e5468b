"""Ask an exported model: `stream` is how the page and the command line get answers.

The process that answers is started when needed, see `chat_processes`, and kept for the next prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.exports.chat import chat_processes
from pipeline.exports.chat.chat_processes import Asked, Server
from pipeline.exports.chat.sources import Source
from pipeline.inputs.options import coerce, describe, option

NO_TURNS: Mapping[str, Sequence[tuple[str, str]]] = {}
MOST_ASKED = 8  # questions that a model answers at a time
BUSY = "Many others are being answered just now; try again in a minute."


class Refused(LabError):
    """The model cannot be asked this; it can be asked something else."""


@dataclass(frozen=True)
class Answering:
    """How an answer is drawn."""

    seed: int = option(0, "The same seed draws the same answer", min=0, max=2**31 - 1)
    max_new_tokens: int = option(128, "The longest answer", min=1, max=1_000_000)
    temperature: float = option(0.0, "0 always picks the most likely token", min=0, max=100)


SEED, TOKENS, TEMPERATURE = describe(Answering)
_numbers = itertools.count(1)


async def stream(
    home: Path,
    source: Source,
    prompt: str,
    sides: tuple[str, ...] | None = None,
    seed: int = 0,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    system: str = "",
    turns: Mapping[str, Sequence[tuple[str, str]]] = NO_TURNS,
    gather_seconds: float = 0.0,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield pieces of the answers as they are generated, `sides` interleaved; closing the iterator cancels.

    A piece has the text of one token, or of what is generated in `gather_seconds`, the first one excepted;
    each takes time of this process.
    `system` goes before the prompt where the model's chat template takes one; `turns` are earlier questions
    and answers by side. `temperature` 0 always picks the most likely token. The last piece of a side has
    done, tokens, cut (by `max_new_tokens` or by what the model reads), tokens_per_second,
    first_token_seconds, and SHA-256 of the files that answered: adapter (None for none) and graph, by name.
    Questions are answered by turns; where a model has too many, the oldest one ends. Raises LabError if the
    model cannot answer or has no turn left, InputError for a number out of bounds.
    """
    for value, known in ((seed, SEED), (max_new_tokens, TOKENS), (temperature, TEMPERATURE)):
        coerce(known, value, known.name)
    request = {
        "prompt": prompt, "sides": list(sides or source.sides), "seed": seed,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "system": system,
        "turns": {side: [list(turn) for turn in said] for side, said in turns.items()},
        "gather_seconds": gather_seconds,
    }  # fmt: skip
    if not prompt.strip():
        raise InputError("The prompt is empty; type a question first.")
    texts = "".join((prompt, system, *(text for said in turns.values() for turn in said for text in turn)))
    if display.valid(texts) != texts:
        raise InputError("The prompt has half of a character; type it again.")
    async with aclosing(exchange(home, source, request)) as pieces:
        async for piece in pieces:
            yield piece


async def probe(home: Path, source: Source) -> dict[str, Any]:
    """What the model's process says of its files, and of logits with its adapter and without: see
    `detaching`. A source without an adapter is probed in a process of its own, which ends.

    Raises LabError if it cannot be asked.
    """
    fresh = source.adapter is None
    asked = replace(source, name=f"{source.name}, probed") if fresh else source  # shared with nobody
    try:
        async with aclosing(exchange(home, asked, {"probe": True})) as pieces:
            async for piece in pieces:
                if "probe" in piece:
                    return dict(piece["probe"])
        raise LabError("The model did not answer the probe; try again.")
    finally:
        if fresh:
            await chat_processes.unload(asked)


async def exchange(
    home: Path, source: Source, request: dict[str, Any], most: int | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """The pieces that a model's process answers a request with, as `chat_server` describes; closing it ends
    the answer. Where the model answers `most` others, by default MOST_ASKED, the oldest makes room.

    Raises LabError, a Refused where the request itself is at fault.
    """
    server = await chat_processes.server(home, source)
    _make_room_for_one(server, most or MOST_ASKED)
    number = next(_numbers)
    asked = server.answers[number] = Asked()
    finished = False
    try:
        await chat_processes.send(server, {"id": number, **request})
        while True:
            answer = await asked.answer.get()
            if "error" in answer:
                finished = "left" not in answer
                raise (Refused if answer.get("refused") else LabError)(answer["error"])
            if answer.get("end"):
                finished = True
                return
            yield {key: value for key, value in answer.items() if key != "id"}
    finally:
        server.answers.pop(number, None)
        if not finished and server.process.returncode is None:
            with suppress(LabError):
                await chat_processes.send(server, {"cancel": number})


def _make_room_for_one(server: Server, most: int) -> None:
    """End the oldest question of a model that answers too many. Raises LabError if all are young."""
    if len(server.answers) < most:
        return
    number, asked = next(iter(server.answers.items()))
    if not asked.old:
        raise LabError(BUSY)
    del server.answers[number]
    asked.make_room()
