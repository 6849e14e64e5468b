"""What a card may find in a row, and which rows have it: six bytes a row on disk, a few bits in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.data.many.bits import Bits
from pipeline.inputs.data.many.listed import Listed

if TYPE_CHECKING:
    from array import array


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


class Found:
    """The line of each row, and its findings as bits of `BITS`; rows are numbered from 0."""

    def __init__(self) -> None:
        self._lines = Listed("I")
        self._flags = Listed("H")
        self._marked: dict[str, Bits] = {}  # what is found when all rows are known

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: int, flags: int = 0) -> int:
        """The next row, with what is found in it alone; its number. Raises LabError if the disk is full."""
        self._lines.append(line)
        self._flags.append(flags)
        return len(self._lines) - 1

    def mark(self, rows: Iterable[int], name: str) -> None:
        """Note a finding of rows."""
        marked = self._marked.setdefault(name, Bits())
        for row in rows:
            marked.add(row)

    def marked(self, name: str) -> Bits:
        """The rows that `mark` was given."""
        return self._marked.get(name) or Bits()

    def unmark(self, rows: Bits, name: str) -> None:
        """Take a finding back that was noted by `mark`."""
        if name in self._marked:
            self._marked[name] = self._marked[name].without(rows)

    def pieces(self) -> Iterator[tuple[array[int], array[int]]]:
        """The lines and the findings of all rows, some at a time."""
        start = 0
        for lines, flags in zip(self._lines.pieces(), self._flags.pieces(), strict=True):
            for name, marked in self._marked.items():
                for row in marked.numbers(start, start + len(lines)):
                    flags[row - start] |= BITS[name]
            yield lines, flags
            start += len(lines)

    def counts(self) -> dict[str, int]:
        """How many rows have each finding; findings that no row has are left out."""
        often: Counter[int] = Counter()
        for _, flags in self.pieces():
            often.update(flags)
        counts = {
            name: sum(many for flags, many in often.items() if flags & bit) for name, bit in BITS.items()
        }
        return {name: count for name, count in counts.items() if count}

    def lines_with(self, names: Iterable[str]) -> Iterator[int]:
        """The lines of rows that have one of the findings, ascending as the rows stand."""
        return lines_with(self.pieces(), names)


def flags_of(names: Iterable[str]) -> int:
    """Findings as bits of `BITS`."""
    return sum(BITS[name] for name in set(names))


def lines_with(pieces: Iterable[tuple[Iterable[int], Iterable[int]]], names: Iterable[str]) -> Iterator[int]:
    """Those of the lines whose findings are among the names."""
    wanted = flags_of(names)
    return (
        line for lines, flags in pieces for line, found in zip(lines, flags, strict=True) if found & wanted
    )


def parse(text: str) -> tuple[str, ...]:
    """The findings that a recipe's `leave_out` names, joined by commas, in the order of `NAMES`.

    "" is none. Raises InputError for a word that names no finding.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in BITS:
            raise InputError(f"leave_out: {display.value(word)} is not allowed; allowed: {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in words)
