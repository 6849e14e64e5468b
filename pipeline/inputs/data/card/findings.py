"""What a card may find in a row, and which rows have it: six bytes a row, however much is found."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline import display
from pipeline.errors import InputError


@dataclass(frozen=True)
class Kind:
    """A finding: its name in recipes and files, its title on the page, and what it means."""

    name: str
    title: str
    about: str


KINDS = (
    Kind("duplicates", "Duplicates", "An earlier row is exactly the same."),
    Kind("near_duplicates", "Near-duplicates", "An earlier row is nearly the same."),
    Kind(
        "different_answers", "Same prompt, different answer", "An earlier row answers this prompt otherwise."
    ),
    Kind("leaks", "Leaks", "A held-out row that is the same, or nearly, as one that is trained on."),
    Kind("cut", "Cut", "The row has more tokens than max_length, so it is cut."),
    Kind("empty_answers", "Empty answers", "There is nothing to learn from this row."),
    Kind("one_word_answers", "One-word answers", "The answer is a single word."),
    Kind(
        "repeated_prompts", "Answers that repeat the prompt", "The answer is the prompt, or begins with it."
    ),
    Kind("control_characters", "Control characters", "Characters that nobody sees, other than line breaks."),
    Kind("secrets", "Likely secrets", "What looks like a key, a token or a password."),
    Kind("emails", "E-mail addresses", "Personal data: an e-mail address."),
    Kind("phones", "Phone numbers", "Personal data: a phone number."),
    Kind(
        "id_numbers",
        "ID and account numbers",
        "Personal data: a card, bank account or social security number.",
    ),
)
NAMES = tuple(kind.name for kind in KINDS)
BITS = {name: 1 << number for number, name in enumerate(NAMES)}
PERSONAL = ("emails", "phones", "id_numbers")


@dataclass
class Found:
    """The line of each row, and its findings as bits of `BITS`; rows are numbered from 0."""

    lines: array[int] = field(default_factory=lambda: array("I"))
    flags: array[int] = field(default_factory=lambda: array("H"))

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, line: int) -> int:
        """The next row; its number."""
        self.lines.append(line)
        self.flags.append(0)
        return len(self.lines) - 1

    def mark_row(self, row: int, names: Iterable[str]) -> None:
        """Note findings of one row."""
        for name in names:
            self.flags[row] |= BITS[name]

    def mark(self, rows: Iterable[int], name: str) -> None:
        """Note a finding of rows."""
        for row in rows:
            self.flags[row] |= BITS[name]

    def counts(self) -> dict[str, int]:
        """How many rows have each finding; findings that no row has are left out."""
        often: dict[int, int] = {}
        for flags in self.flags:
            if flags:
                often[flags] = often.get(flags, 0) + 1
        counts = {
            name: sum(many for flags, many in often.items() if flags & bit) for name, bit in BITS.items()
        }
        return {name: count for name, count in counts.items() if count}

    def lines_with(self, names: Iterable[str]) -> Iterator[int]:
        """The lines of rows that have one of the findings, ascending as the rows stand."""
        wanted = sum(BITS[name] for name in set(names))
        return (line for line, flags in zip(self.lines, self.flags, strict=True) if flags & wanted)


def parse(text: str) -> tuple[str, ...]:
    """The findings that a recipe's `leave_out` names, joined by commas, in the order of `NAMES`.

    "" is none. Raises InputError for a word that names no finding.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in BITS:
            raise InputError(f"leave_out: {display.value(word)} is not allowed; allowed: {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in words)
