"""The rows of a run that are voted on, and which of a row's two answers is shown as A.

That is drawn for each run, row and voter by an HMAC with a random secret of the run, which no browser gets.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.runs.voting import ballots
from pipeline.runs.voting.ballots import ADAPTER, BASE, Vote, Voter
from pipeline.store.run import Run

LARGEST = 128 << 20  # bytes of recorded answers: a thousand prompts with two of 8,000 tokens take 70 MB
LONGEST_SHOWN = 200_000  # letters of a text on the page; the longest answer has a fifth of that
LETTERS = ("a", "b")
NONE = (
    "This run recorded no answers to vote on; use its recipe again with evaluate, for example"
    " `{} run {} --set evaluate.prompts=50`."
)
ONE_SIDE = (
    "This run recorded the answers of one side only, because its adapter is merged into the weights; a vote"
    " needs both: use its recipe again with optimize.adapter=detachable."
)
NOTHING = "There is nothing to vote on. {}"
UNREADABLE = "The recorded answers of this run cannot be read ({}); retry its evaluate stage in a new run."
TOO_MUCH = f"The recorded answers of this run take more than {LARGEST >> 20} MB, too much for a vote."
ALL_EQUAL = "Base and adapter gave equal answers to all {} prompts of this run; there is nothing to vote on."


@dataclass(frozen=True)
class Row:
    """One prompt with both answers; `number` is its position in the file."""

    number: int
    prompt: str
    system: str
    expected: str
    base: str
    adapter: str
    marked: tuple[str, str] = field(repr=False)  # both answers with a mark where they were cut, base first

    @cached_property
    def of(self) -> str:
        """A digest of what a vote on it is about."""
        said = json.dumps([self.prompt, self.system, self.base, self.adapter], allow_nan=False)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Rows:
    """The rows of a run whose answers differ, and how many have equal ones."""

    asked: tuple[Row, ...]
    equal: int

    @cached_property
    def by_number(self) -> dict[int, Row]:
        return {row.number: row for row in self.asked}

    def fitting(self, votes: dict[int, Vote]) -> dict[int, str]:
        """The choices by row, of those votes that are about these answers."""
        rows = self.by_number
        return {
            number: vote.choice
            for number, vote in votes.items()
            if number in rows and rows[number].of == vote.of
        }


def recorded(run: Run) -> Path:
    """The file of a run's recorded answers. Raises LabError where there is nothing to vote on."""
    if run.deleted is not None:
        raise LabError(ballots.GONE)
    path = run.artifact("answers")
    if path is None or not Path(path).is_file():
        raise LabError(NONE.format(settings.command(), run.id))
    return Path(path)


def load(path: Path) -> Rows:
    """The rows in a file of answers; read again only when it has changed. Raises LabError, OSError."""
    facts = path.stat()
    if facts.st_size > LARGEST:
        raise LabError(TOO_MUCH)
    return _load(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1)
def _load(path: Path, _changed: int, _size: int) -> Rows:
    try:
        told = json.loads(path.read_bytes())
        found = [_row(number, given) for number, given in enumerate(told["rows"])]
        why = told.get("why_none")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LabError(UNREADABLE.format(type(error).__name__)) from None
    rows = [row for row in found if row is not None]
    if not rows and not found and why:
        raise LabError(NOTHING.format(display.valid(str(why))))
    if not rows:
        raise LabError(ONE_SIDE if found else UNREADABLE.format("no rows"))
    asked = tuple(row for row in rows if row.base != row.adapter)
    if not asked:
        raise LabError(ALL_EQUAL.format(f"{len(rows):,}"))
    return Rows(asked, len(rows) - len(asked))


def _row(number: int, given: dict[str, Any]) -> Row | None:
    """One row; None where a side is missing. Raises TypeError, KeyError, AttributeError."""
    of_base, of_adapter = given.get(BASE), given.get(ADAPTER)
    if not (of_base and of_adapter):
        return None
    base, adapter = (display.valid(str(side["text"])) for side in (of_base, of_adapter))
    system, expected = (display.valid(str(given.get(name) or "")) for name in ("system", "expected"))
    marked = (display.valid(display.answer(of_base)), display.valid(display.answer(of_adapter)))
    return Row(number, display.valid(str(given["prompt"])), system, expected, base, adapter, marked)


def sides(key: bytes, row: Row, voter: Voter) -> tuple[str, str]:
    """Which sides A and B are, for this voter."""
    drawn = ballots.sign(key, "sides", row.number, *voter)[0] & 1
    return (BASE, ADAPTER) if drawn else (ADAPTER, BASE)


def shown(key: bytes, row: Row, voter: Voter) -> dict[str, Any]:
    """What the page gets of a row before a vote: the same, but for the texts of A and B, whichever side is A.

    `seen` is sent back with the vote, and says that the texts are still those, in that order.
    """
    texts = dict(zip((BASE, ADAPTER), row.marked, strict=True))
    first, second = (display.cut(texts[side], LONGEST_SHOWN) for side in sides(key, row, voter))
    told = {name: display.cut(getattr(row, name), LONGEST_SHOWN) for name in ("prompt", "system", "expected")}
    return {"row": row.number, **told, "a": first, "b": second, "seen": seen(key, row, voter)}


def seen(key: bytes, row: Row, voter: Voter) -> str:
    """A mark of what a voter was shown; it does not depend on which of the texts is the adapter's."""
    texts = sorted([row.base, row.adapter])
    return ballots.sign(key, "seen", row.number, *voter, row.prompt, row.system, *texts).hex()[:32]


def is_seen(key: bytes, row: Row, voter: Voter, given: str) -> bool:
    """Whether a mark is that of this row as it is now."""
    return hmac.compare_digest(seen(key, row, voter).encode(), given.encode())


def meant(key: bytes, row: Row, voter: Voter, letter: str) -> str:
    """What is voted for with "a" or "b", or with a choice that names neither."""
    return sides(key, row, voter)[LETTERS.index(letter)] if letter in LETTERS else letter


def lettered(key: bytes, row: Row, voter: Voter, choice: str) -> str:
    """A choice as the voter saw it: "a" or "b" for a side."""
    return LETTERS[sides(key, row, voter).index(choice)] if choice in (BASE, ADAPTER) else choice
