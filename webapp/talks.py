"""Conversations of the Compare tab, kept in the home: they are there again after a reload or a restart.

A browser chooses a long random name for its conversation. Whoever knows the name reads it, so nobody lists
them. A conversation that nobody continues for a while is removed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, LabError
from pipeline.runs.crowds import Kept, making_room
from pipeline.system.files import make_room, to_json, write_whole

FOLDER = "talks"
NAME = re.compile(r"[A-Za-z0-9_-]{22}")
MOST_TURNS = 40
ARRIVED = re.compile(rb'{"arrived": ([0-9.e+]+),')
LARGEST = 4 << 20  # bytes of a conversation
MOST = 2000  # conversations in a home
REST_SECONDS = 3600.0  # after which one that nobody continues makes room for others
OLD_SECONDS = 30 * 24 * 3600.0
TOO_LONG = "This conversation is too long to be continued; ask without the earlier turns."


@dataclass(frozen=True)
class Answer:
    """What a column answered, with the facts below it; `column` is as `comparing.Column.value`."""

    column: str
    text: str
    facts: list[list[str]]


@dataclass(frozen=True)
class Turn:
    """A question, its system text, and the answers; with several `fields`, the prompt is JSON of these."""

    prompt: str
    system: str
    answers: tuple[Answer, ...]
    fields: tuple[str, ...] = ()

    def of(self, column: str) -> Answer | None:
        """What a column answered; None if it was not asked."""
        return next((answer for answer in self.answers if answer.column == column), None)


@dataclass(frozen=True)
class Talk:
    """A conversation: the model that was chosen, the columns besides its own, and the turns."""

    model: str = ""
    also: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()

    def after(self, column: str) -> list[tuple[Turn, str]]:
        """The earlier questions of a column, each with its answer."""
        found = [(turn, turn.of(column)) for turn in self.turns]
        return [(turn, answer.text) for turn, answer in found if answer is not None]


def load(home: Path, name: str) -> Talk:
    """A conversation, empty if there is none of this name or its file cannot be read."""
    try:
        return _read(json.loads(_file(home, name).read_text("utf-8")))
    except (OSError, ValueError, LookupError, TypeError, InputError):
        return Talk()


def save(home: Path, name: str, talk: Talk) -> None:
    """Keep a conversation. Raises InputError for a name that is none, LabError if it is too long or the disk
    is nearly full, OSError."""
    file = _file(home, name)
    kept = dataclasses.asdict(talk)
    letters = sum(len(turn.prompt) + sum(len(answer.text) for answer in turn.answers) for turn in talk.turns)
    if len(talk.turns) > MOST_TURNS or letters > LARGEST or len(to_json(kept)) > LARGEST:
        raise LabError(TOO_LONG)
    make_room(home, LARGEST)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    arrived = time.time()
    with suppress(FileNotFoundError):
        arrived = _arrived(file)
    write_whole(file, {"arrived": arrived, **kept})  # first, where `tidy` finds it without reading all


def tidy(home: Path) -> None:
    """Remove conversations that are old, and of too many those that make room (`crowds.making_room`)."""
    kept: list[Kept] = []
    now = time.time()
    for file in (home / FOLDER).glob("*.json"):
        with suppress(FileNotFoundError):
            one = Kept(file, _arrived(file), file.stat().st_mtime)
            if one.used < now - OLD_SECONDS:
                file.unlink()
            else:
                kept.append(one)
    if len(kept) > MOST:
        for one in making_room(kept, MOST, now, REST_SECONDS)[: len(kept) - MOST]:
            one.path.unlink(missing_ok=True)


def _arrived(file: Path) -> float:
    """When a conversation was first kept; 0 for those of older versions."""
    with file.open("rb") as opened:
        found = ARRIVED.match(opened.read(64))
    return float(found[1]) if found else 0.0


def _file(home: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise InputError("This conversation has no name; reload the page.")
    return home / FOLDER / f"{name}.json"


def _read(kept: dict[str, Any]) -> Talk:
    turns = [
        Turn(
            turn["prompt"],
            turn["system"],
            tuple(Answer(**answer) for answer in turn["answers"]),
            tuple(turn.get("fields", ())),
        )
        for turn in kept["turns"]
    ]
    return Talk(str(kept["model"]), tuple(kept["also"]), tuple(turns))
