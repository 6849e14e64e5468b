"""A data card made of a dataset's rows, in one pass over them.

Memory is some 200 MB, and less than a byte a row; the rest of what is noted of each row is on disk. Time is
linear, with bounds where it would be long: texts are searched as far as `plain_faults.SEARCHED`,
near-duplicates looked for among `near_copies.MOST_ROWS` rows, tokens counted of `token_counts.MOST_ROWS` rows
and `MOST_LETTERS` letters. Where a bound tells, `Card.notes` says so. What is counted of all rows, however
many: rows, duplicates, leaks of duplicates, findings by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipeline.inputs.data.card import likely_secrets, near_copies, personal_data, plain_faults, token_counts
from pipeline.inputs.data.card.findings import KINDS, NAMES, PERSONAL, Found, flags_of
from pipeline.inputs.data.card.token_counts import Counts, Tokens
from pipeline.inputs.data.datasets import COMPARING
from pipeline.inputs.data.lengths import Lengths
from pipeline.inputs.data.many.bits import Bits
from pipeline.inputs.data.splitting import POSITIONS, Contents
from pipeline.inputs.data.telling import Clock, ended, told
from pipeline.inputs.prompts import conversations, templates

MOST_TEXT = 100_000  # letters of a field that are looked at
MOST_KNOWN = 20_000  # rows of which a copy is recognized at once
FIRST = 5  # lines that are shown of a finding
Row = tuple[int, dict[str, Any]]
NEAR = ("near_duplicates", "leaks")


@dataclass(frozen=True)
class Card:
    """What is in a dataset. `tokens` is None where no tokenizer was at hand; `notes` say what is a sample."""

    rows: int
    found: Found
    tokens: Tokens | None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The card's part of `check --json`: whole numbers, or null."""
        tokens = self.tokens and {
            name: getattr(self.tokens, name) for name in ("median", "p95", "max", "cut")
        }
        counts = self.found.counts()
        names = ("duplicates", "near_duplicates", "leaks")
        return {"tokens": tokens, **{name: counts.get(name, 0) for name in names}}

    def to_page(self) -> dict[str, Any]:
        """All but the lines, of which there are the first FIRST of each finding: for a page."""
        counts = self.found.counts()
        return {
            "rows": self.rows,
            "tokens": self.tokens and dataclasses.asdict(self.tokens),
            "notes": self.notes,
            "findings": [
                {
                    "name": kind.name,
                    "title": kind.title,
                    "about": kind.about,
                    "rows": counts[kind.name],
                    "first": list(islice(self.found.lines_with([kind.name]), FIRST)),
                }
                for kind in KINDS
                if kind.name in counts
            ],
        }


def of(rows: Iterable[Row], template: templates.Template, **given: Any) -> Card:
    """`making` to its end."""
    return ended(making(rows, template, **given))


def making(
    rows: Iterable[Row],
    template: templates.Template,
    *,
    counting: Counts | None = None,
    lengths: Lengths | None = None,
    eval_fraction: float = 0.1,
    seed: int = 0,
    only: Iterable[str] = NAMES,
    coming: int = 0,
) -> Generator[str, None, Card]:
    """Make a card of (line, row); yields how far that is, as sentences, every `telling.TELL_SECONDS` or so.

    Rows that lack a field of the template, or have no text or number there, are counted and not looked at.
    `counting` and `lengths` go together: see `counter`. `only` names the findings that are wanted; `coming`
    is about how many rows there are, if that is known: of many a sample then takes less time.
    Leaks are those of the split of `eval_fraction` and `seed`. Raises Busy if others take what `lengths`
    needs.
    """
    maker = _Maker(template, set(only), Contents(template.fields, template.optional, seed), coming)
    if counting is not None and lengths is not None:
        yield from token_counts.counting(template, rows, maker.add, counting, lengths, maker.step)
        maker.why_no_tokens = lengths.unknown
    else:
        clock = Clock()
        for line, row in rows:
            maker.add(line, row)
            if clock.is_due():
                yield maker.step()
    yield from maker.compare(eval_fraction)
    return maker.card(counting)


def counter(max_length: int, coming: int = 0) -> Counts:
    """What counts tokens: give its `note` to the `Lengths` that goes with it, as `every`.

    `coming` is as for `making`.
    """
    return Counts(max_length, coming)


class _Maker:
    """What `making` collects."""

    def __init__(self, template: templates.Template, only: set[str], contents: Contents, coming: int) -> None:
        self.template = template
        self.found = Found()
        self.why_no_tokens = ""
        self._only = only
        self._contents = contents
        self._near = near_copies.Near(coming) if only.intersection(NEAR) else None
        self._secrets = likely_secrets.Search() if "secrets" in only else None
        self._personal = personal_data.Search() if only.intersection(PERSONAL) else None
        self._known: dict[int, int] = {}  # the findings of texts by themselves

    def step(self) -> str:
        """How far it is."""
        return f"Row {len(self.found):,}: looking for findings…"

    def add(self, line: int, row: dict[str, Any]) -> int | None:
        """Look at a row; its number, None if it does not fit the template."""
        texts = self._texts(row)
        if texts is None:
            self.found.add(line)
            return None
        key = hash(tuple(texts))  # of a copy nothing is looked for again
        known = flags = self._known.get(key)
        if flags is None:
            *prompts, answer = texts
            flags = flags_of(self._alone("\n".join(prompts), answer))
            if len(self._known) < MOST_KNOWN:
                self._known[key] = flags
        number = self.found.add(line, flags)
        if not texts[-1].strip():
            return None
        self._contents.add(row, number)
        if self._near is not None and known is None:
            self._near.add(number, "\n".join(texts))
        return number

    def _texts(self, row: dict[str, Any]) -> list[str] | None:
        """What the template reads of a row, the answer last; None if it lacks something."""
        template = self.template
        if templates.is_conversation(template, row):
            return _said(row)
        values = [row.get(name) for name in template.fields]
        if not all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values):
            return None
        more = [row.get(name) or "" for name in template.optional]
        return [value[:MOST_TEXT] if isinstance(value, str) else str(value) for value in (*more, *values)]

    def _alone(self, prompt: str, answer: str) -> list[str]:
        """The findings of a row by itself."""
        found = plain_faults.of(prompt.strip("\n"), answer)
        for text in (prompt, answer):
            if self._secrets is not None and "secrets" not in found and self._secrets.finds(text):
                found.append("secrets")
            if self._personal is not None:
                found += self._personal.finds(text)
        return [name for name in found if name in self._only]

    def compare(self, eval_fraction: float) -> Iterator[str]:
        """Find what is the same as, or near, another row; yields how far that is."""
        yield COMPARING
        contents, clock = self._contents, Clock()
        yield from self._mark_all("duplicates", contents.repeated_rows(), clock)
        yield from self._mark_all("different_answers", contents.repeated_prompts(), clock)
        held_out, by = Bits(), ""
        if len(contents) > 1:
            held_out, by = yield from told(contents.held_out(eval_fraction), COMPARING, clock)
        if by == POSITIONS:  # else copies are on one side
            self.found.mark(held_out.numbers(), "leaks")
        if self._near is not None:
            near, leaks = yield from self._compared(self._near, held_out)
            self.found.mark(map(int, near), "near_duplicates")
            if len(leaks):
                leaked = contents.equal_to(set(map(int, leaks)))
                same = ([row for row in rows if row in held_out] for rows in leaked)
                yield from self._mark_all("leaks", same, clock)
        copies = self.found.marked("duplicates")
        for name in ("different_answers", "near_duplicates"):
            self.found.unmark(copies, name)
        for name in set(NAMES).difference(self._only):
            self.found.unmark(self.found.marked(name), name)

    def _mark_all(self, name: str, found: Iterable[list[int]], clock: Clock) -> Iterator[str]:
        for rows in found:
            self.found.mark(rows, name)
            if clock.is_due():
                yield COMPARING

    def _compared(self, near: near_copies.Near, held_out: Bits) -> Generator[str, None, tuple[Any, Any]]:
        trained = held_out.others(len(self.found)) if held_out else held_out
        steps, clock = near.comparing(trained), Clock()
        while True:
            try:
                share = next(steps)
            except StopIteration as end:
                found: tuple[Any, Any] = end.value
                return found
            if clock.is_due():
                yield f"Comparing rows: {100 * share:.0f} %…"

    def card(self, counting: Counts | None) -> Card:
        tokens = None
        if counting is not None:
            tokens = counting.figures(len(self._contents))
            if "cut" in self._only:
                self.found.mark(counting.cut(), "cut")
        return Card(len(self.found), self.found, tokens, list(self._notes(tokens)))

    def _notes(self, tokens: Tokens | None) -> Iterator[str]:
        rows = len(self._contents)
        if tokens is not None and tokens.counted < rows:
            yield (
                f"Tokens are counted in {tokens.counted:,} of {rows:,} rows, spread over the dataset; the"
                " number of rows that are cut is an estimate, and only those counted are listed."
            )
        if self.why_no_tokens:
            yield f"Tokens are not counted: {self.why_no_tokens}"
        if self._near is not None and not self._near.kept.is_all:
            yield (
                f"Near-duplicates are looked for among {self._near.kept.count:,} of {rows:,} rows, spread"
                " over the dataset."
            )
        for search, what in ((self._secrets, "Likely secrets"), (self._personal, "Personal data")):
            if search is not None and search.is_over:
                yield f"{what}: so much may be some that only the first rows were searched to the end."


def _said(row: dict[str, Any]) -> list[str] | None:
    """The texts of a conversation, the last answer last; None if it cannot be learned."""
    if next(conversations.faults(row), None):
        return None
    before = [str(message.get("content") or "")[:MOST_TEXT] for message in row["messages"][:-1]]
    return [*before, conversations.answer(row)[:MOST_TEXT]]
