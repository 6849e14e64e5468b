"""The answers that a run has recorded, as the Compare tab offers them and finds what is typed among them.

A file of answers is read and indexed once until it changes: whoever types asks at each letter.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline import display
from pipeline.store.run import Run
from webapp import handler_values
from webapp.ui import prompt_boxes, views

MOST = 200  # prompts in the list, and rows in the table
LONGEST = handler_values.LONGEST_TEXT  # characters of a prompt that can be asked
LONGEST_LABEL = 120  # of its label in the list: all of them are sent, each with its value
Row = dict[str, Any]  # prompt, expected, base and adapter, of which the last may be None; perhaps system
_ROW = re.compile(r"row ([0-9]{1,6})")
_reading = threading.Lock()  # else all who wait for a large file would read it


@dataclass(frozen=True, eq=False)
class Recorded:
    """Recorded answers, and the first place of each prompt by the digest of its canonical form."""

    rows: Sequence[Row] = ()
    places: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The first prompt of the list, "" if it has none."""
        return str(self.rows[0]["prompt"]) if self.rows else ""

    @property
    def note(self) -> str:
        """What the list leaves out, "" for nothing."""
        shown = len(self._listed())
        return "" if shown == len(self.rows) else f"; listed: {shown:,} of {len(self.rows):,}"

    def place(self, prompt: str) -> int | None:
        """Where a prompt asks the same, however its JSON is written; it is read once, the others are not."""
        return self.places.get(_digest(prompt)) if self.places else None

    def find(self, prompt: str) -> Row | None:
        """The row of that place."""
        at = self.place(prompt)
        return None if at is None else self.rows[at]

    def offered(self, fields: prompt_boxes.Fields) -> list[tuple[str, str]]:
        """The prompts of the list as people read them, each with its value."""
        told = words(self, fields)
        return [(self._label(at, told[at]), self._value(at)) for at in self._listed()]

    def value(self, at: int | None) -> str | None:
        """The value in the list of the prompt at a place; None if it is not there."""
        return self._value(at) if at is not None and at in self._listed() else None

    def prompt(self, value: str) -> str:
        """The prompt of a value of the list; any other text is a prompt itself."""
        named = _ROW.fullmatch(value)
        at = int(named[1]) - 1 if named else -1
        return str(self.rows[at]["prompt"]) if at in self._listed() and self._value(at) == value else value

    def _listed(self) -> range:
        return range(min(len(self.rows), MOST))

    def _value(self, at: int) -> str:
        """A short prompt is its own value; a long one is named by its place, which costs nothing to send."""
        prompt: str = self.rows[at]["prompt"]
        return prompt if len(prompt) <= LONGEST_LABEL else f"row {at + 1}"

    def _label(self, at: int, told: str) -> str:
        return told if len(told) <= LONGEST_LABEL else display.cut(f"{at + 1}: {told}", LONGEST_LABEL)


def of_run(run: Run | None) -> Recorded:
    """The recorded answers of a run, none for no run. Raises what `views.answers` does."""
    file = views.answers_file(run) if run is not None else None
    if file is None:
        return Recorded()
    with _reading:
        return _indexed(*file)


@lru_cache(maxsize=8)
def words(recorded: Recorded, fields: prompt_boxes.Fields) -> list[str]:
    """The prompts of the first rows as people read them, as much as the table shows."""
    prompts = [row["prompt"] for row in recorded.rows[:MOST]]
    return [display.cut(prompt_boxes.words(prompt, fields), views.LONGEST_ANSWER) for prompt in prompts]


@lru_cache(maxsize=8)
def _indexed(path: str, changed: int, size: int) -> Recorded:
    """The answers in a file, without prompts that are longer than any that can be asked."""
    rows = [row for row in views.read_answers(path, changed, size) if len(row["prompt"]) <= LONGEST]
    places: dict[bytes, int] = {}
    for at, row in enumerate(rows):
        places.setdefault(_digest(row["prompt"]), at)
    return Recorded(rows, places)


def _digest(prompt: str) -> bytes:
    return hashlib.sha256(prompt_boxes.canonical(prompt).encode("utf-8", "surrogatepass")).digest()
