"""How many tokens the rows of a dataset have, counted in a sample where they are many or long."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pipeline import settings
from pipeline.inputs.data import datasets
from pipeline.inputs.data.card import token_counts
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import templates

MOST_ROWS = 10_000  # that are counted;
MOST_LETTERS = 4_000_000  # which takes some seconds


@dataclass(frozen=True)
class RowLengths:
    """Tokens of rows that were counted, the shortest first; none where `unknown` says why."""

    tokens: tuple[int, ...] = ()
    unknown: str = ""

    @property
    def longest(self) -> int:
        return self.tokens[-1]

    def reaching(self, percent: int) -> int:
        """Tokens that so many percent of the rows have at most."""
        return self.tokens[-(-len(self.tokens) * percent // 100) - 1]

    def longer(self, length: int) -> int:
        """How many of those counted have more tokens."""
        return sum(tokens > length for tokens in self.tokens)


def counting(path: Path, template: str, model: base_models.Model) -> Generator[str, None, RowLengths]:
    """The lengths of a dataset's rows as training reads them; yields how far that is.

    Raises InputError for a faulty template, Busy if others take what it needs, OSError.
    """
    home, parsed = settings.home(), templates.parse(template, model.chat)
    counts, numbers, done = token_counts.Counts(0, rows=MOST_ROWS, letters=MOST_LETTERS), count(), 0

    def number(line: int, row: dict[str, object]) -> int:
        nonlocal done
        done = line
        return next(numbers)

    with Lengths(
        lambda: base_models.tokenizer_folder(model, home), model.id, Limits(), lambda: parsed.stop,
        counts.note,
    ) as lengths:  # fmt: skip
        rows = datasets.readable(path)
        yield from token_counts.counting(
            parsed, rows, number, counts, lengths, lambda: f"Line {done:,}: counting tokens…"
        )
    return RowLengths(tuple(counts.totals()), lengths.unknown)
