"""Runs to vote on, whose answers tell their sides to a test, and votes as a page sends them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.inputs.data import telling
from pipeline.runs.voting import blind_rows, booth
from pipeline.store import Store
from tests.helpers import planted

SECRET = bytes(range(32))


def rows(count: int, base: str = "of the base", adapter: str = "of the adapter") -> list[dict[str, Any]]:
    """Recorded answers, each of which names its side."""
    return [
        {
            "prompt": f"Question {number}?",
            "system": "",
            "expected": f"It is {number}.",
            "base": {"text": f"{base} {number:05}", "tokens": 7, "cut": False, "tokens_per_second": 30.0},
            "adapter": {"text": f"{adapter} {number:05}", "tokens": 9, "cut": False},
        }
        for number in range(count)
    ]


class Booth:
    """A run with answers, and the questions of its booth."""

    def __init__(self, store: Store, answers: list[dict[str, Any]]) -> None:
        self.run = planted.finished(store, answers=answers)
        self.folder = store.folder(self.run)
        self.answers = blind_rows.recorded(store.get(self.run))

    def ask(self, question: str, **given: Any) -> dict[str, Any]:
        """The answer to a question of `booth`."""
        steps = getattr(booth, question)(str(self.folder), str(self.answers), **given)
        found: dict[str, Any] = telling.ended(steps)
        return found

    def vote(self, voter: str, wanted: str, row: int | None = None) -> dict[str, Any]:
        """Vote for a side, a tie or both bad, by the letter that shows the side."""
        shown = self.ask("state", voter=voter, row=row)["row"]
        letters = [letter for letter in "ab" if f"the {wanted}" in shown[letter]]
        return self.cast(voter, shown, letters[0] if letters else wanted)

    def cast(self, voter: str, shown: dict[str, Any], choice: str) -> dict[str, Any]:
        """Vote on a row as it was shown."""
        return self.ask("vote", voter=voter, row=shown["row"], choice=choice, seen=shown["seen"])

    def rewrite(self, answers: list[dict[str, Any]]) -> None:
        """Other answers in the same run."""
        self.answers.write_text(json.dumps({"rows": answers}))

    @property
    def ballots(self) -> Path:
        return self.folder / "votes" / "ballots.jsonl"
