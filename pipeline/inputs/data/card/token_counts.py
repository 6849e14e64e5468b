"""How many tokens rows have, in figures: median, the long ones, a histogram, and what is trained on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.inputs.data.card.thinning import Thinned
from pipeline.inputs.data.lengths import Lengths
from pipeline.inputs.data.telling import Clock
from pipeline.inputs.prompts import templates
from pipeline.inputs.prompts.templates import Rendered

MOST_ROWS = 100_000
SAMPLE = (
    25_000  # of more rows: the share of rows that are cut, say, is then known to half a percent or better
)
MOST_LETTERS = 24_000_000  # of rows counted; a usual tokenizer reads a million in a second or less
BARS = 40


@dataclass(frozen=True)
class Tokens:
    """Tokens of rows, prompt and answer together.

    cut        rows of more than `max_length`; an estimate where only a part was counted
    counted    rows that were counted
    trained    the share of all tokens that the loss is taken of: answers, as far as they are not cut; of
               the earlier ones in a conversation it is an estimate, by their letters
    width      tokens of a bar; bar i has the rows from i * width on, and below (i + 1) * width
    bars       rows of each bar
    """

    median: int
    p95: int
    max: int
    cut: int
    counted: int
    trained: float
    max_length: int
    width: int
    bars: list[int] = field(default_factory=list)


class Counts:
    """The token counts of rows as they come, of a spread part of them where they are many or long.

    `coming` is about how many there will be, 0 if nobody knows; `rows` and `letters` are the most counted.
    """

    def __init__(
        self, max_length: int, coming: int = 0, rows: int | None = None, letters: int | None = None
    ) -> None:
        self.rows = Thinned(rows or MOST_ROWS, coming, SAMPLE)
        self._letters = Thinned(letters or MOST_LETTERS)
        self._max_length = max_length
        self._numbers = array("Q")
        self._prompts = array("I")
        self._answers = array("I")
        self._earlier = array("I")  # tokens of answers in the prompt
        self._sizes = array("I")
        self._waiting: dict[int, tuple[int, float]] = {}  # of rows not yet counted: see `add`

    def takes(self, row: int) -> bool:
        """Whether the row is to be rendered and counted."""
        return self.rows.keeps(row) and self._letters.keeps(row)

    def add(self, row: int, line: int, text: Rendered, lengths: Lengths) -> Iterator[str]:
        """Have a row counted; what that waits for, as sentences. Raises Busy."""
        answered = sum(span.stop - span.start for span in text.earlier)
        answered += sum(len(one.full) - len(one.prompt) for one in text.apart)
        share = min(answered / max(len(text.prompt), 1), 1.0)  # of the prompt's letters
        self._waiting[row] = len(text.full), share
        lengths.add(row, line, text)
        if lengths.full:
            yield from self.finish(lengths)

    def finish(self, lengths: Lengths) -> Iterator[str]:
        """Have all counted that were added. Raises Busy."""
        if lengths.waits_for:
            yield lengths.waits_for
        lengths.count()
        self._waiting.clear()
        while True:
            self.rows.count, self._letters.count = len(self._numbers), sum(self._sizes)
            too_many, too_long = self.rows.is_full, self._letters.is_full
            if not (too_many or too_long):
                return
            self._thin()

    def note(self, row: int, prompt: int, answer: int) -> None:
        """What `Lengths` tells of each row."""
        self._numbers.append(row)
        self._prompts.append(prompt)
        self._answers.append(answer)
        letters, share = self._waiting.get(row, (0, 0.0))
        self._earlier.append(round(share * prompt))
        self._sizes.append(letters)

    def cut(self) -> list[int]:
        """The rows that are cut, of those that were counted."""
        return [
            row
            for row, prompt, answer in zip(self._numbers, self._prompts, self._answers, strict=True)
            if prompt + answer > self._max_length
        ]

    def totals(self) -> list[int]:
        """The tokens of each row that was counted, the shortest first."""
        return sorted(map(sum, zip(self._prompts, self._answers, strict=True)))

    def figures(self, rows: int) -> Tokens | None:
        """The figures, for a dataset of so many rows; None if nothing was counted."""
        counted = len(self._numbers)
        if not counted:
            return None
        ordered = self.totals()
        trained = sum(map(self._trained, self._prompts, self._answers, self._earlier))
        width, bars = _bars(ordered)
        cut = sum(total > self._max_length for total in ordered)
        return Tokens(
            median=ordered[(counted - 1) // 2],
            p95=ordered[-(-counted * 95 // 100) - 1],
            max=ordered[-1],
            cut=cut if counted == rows else round(cut * rows / counted),
            counted=counted,
            trained=trained / sum(ordered),
            max_length=self._max_length,
            width=width,
            bars=bars,
        )

    def _trained(self, prompt: int, answer: int, earlier: int = 0) -> int:
        """Tokens of answers that training sees; what is cut is cut by `training_ids.sample`."""
        most = self._max_length
        if prompt + answer <= most:
            return answer + earlier
        if earlier:  # a conversation keeps its beginning
            return earlier * min(most, prompt) // prompt + max(most - prompt, 0)
        return min(answer, most - min(prompt, most // 2))

    def _thin(self) -> None:
        """Forget those that are not in the sample any more."""
        kept = [at for at, row in enumerate(self._numbers) if self.takes(row)]
        self._numbers = array("Q", (self._numbers[at] for at in kept))
        lists = self._prompts, self._answers, self._earlier, self._sizes
        self._prompts, self._answers, self._earlier, self._sizes = (
            array("I", (values[at] for at in kept)) for values in lists
        )


def counting(
    template: templates.Template,
    rows: Iterable[tuple[int, dict[str, Any]]],
    number: Callable[[int, dict[str, Any]], int | None],
    counts: Counts,
    lengths: Lengths,
    step: Callable[[], str],
) -> Generator[str, None, None]:
    """Have `counts` take (line, row) as far as they are in its sample; all are given to `number`.

    That says a row's number, or None to leave it out. Yields what it waits for, and `step()` every
    `telling.TELL_SECONDS` or so. Raises Busy.
    """
    numbers: list[tuple[int, int]] = []
    clock = Clock()

    def chosen() -> Iterator[dict[str, Any] | None]:
        for line, row in rows:
            at = number(line, row)
            if at is not None and counts.takes(at):
                numbers.append((at, line))
                yield row
            if clock.is_due():
                yield None

    done = 0
    for text in templates.each_or_none(template, chosen()):
        if text is None:
            yield step()
            continue
        at, line = numbers[done]
        done += 1
        if isinstance(text, Rendered):
            yield from counts.add(at, line, text, lengths)
        if done >= templates.AT_ONCE:
            del numbers[:done]
            done = 0
    yield from counts.finish(lengths)


def _bars(ordered: list[int]) -> tuple[int, list[int]]:
    """A histogram of at most BARS bars of a whole number of tokens each."""
    width = ordered[-1] // BARS + 1
    bars = [0] * (ordered[-1] // width + 1)
    for total in ordered:
        bars[total // width] += 1
    return width, bars
