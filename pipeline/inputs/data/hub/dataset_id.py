"""How a dataset of the hub is named: `hub:org/name`, what pins it, and which part of it is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pipeline import display
from pipeline.errors import InputError

PREFIX = "hub:"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]{0,199}", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")
KEYS = ("config", "split", "file")
LONGEST_VALUE = 200
ALLOWED = (
    "allowed: hub:org/name, then @REVISION, and after commas config=, split= or file=, such as"
    " hub:org/name@main,split=train"
)


@dataclass(frozen=True)
class DatasetId:
    """A dataset of the hub; "" for what is not said. `file` may be a pattern such as `data/*.csv`."""

    name: str
    revision: str = ""
    config: str = ""
    split: str = ""
    file: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether it names the commit, so that it always means the same rows."""
        return bool(COMMIT.fullmatch(self.revision))

    def at(self, commit: str) -> DatasetId:
        """The same at a commit."""
        return replace(self, revision=commit)

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        more = [f",{key}={value}" for key in KEYS if (value := getattr(self, key))]
        return f"{PREFIX}{self.name}{at}{''.join(more)}"


def is_id(text: str) -> bool:
    """Whether a text is meant as such an id, not as a path."""
    return text.startswith(PREFIX)


def parse(text: str) -> DatasetId:
    """The id that a text is. Raises InputError."""
    named, *more = text.removeprefix(PREFIX).split(",")
    name, at, revision = named.strip().partition("@")
    chosen: dict[str, str] = {}
    good = is_id(text) and bool(NAME.fullmatch(name)) and bool(REVISION.fullmatch(revision) if at else True)
    for part in more:
        key, _, value = (word.strip() for word in part.partition("="))
        good = good and key in KEYS and key not in chosen and 0 < len(value) <= LONGEST_VALUE
        good = good and value.isprintable()
        chosen[key] = value
    if not good:
        raise InputError(f"data: {display.value(text)} is no dataset of the hub; {ALLOWED}")
    if "file" in chosen and len(chosen) > 1:
        raise InputError(f"data: {display.value(text)} has file=, so leave config= and split= out")
    return DatasetId(name, revision, **chosen)
