"""The table of examples, a page at a time: sorted, filtered, searched; shortened, with differences of words.

A page takes two passes through the dataset: the first finds the order, of which only numbers are in memory.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Generator
from itertools import islice
from typing import Any, Literal, get_args

from pipeline import display
from pipeline.errors import InputError
from pipeline.evaluation.examples import answered_by, rows
from pipeline.evaluation.examples.rows import Example, Side, Sources
from pipeline.evaluation.examples.word_diff import difference

Sort = Literal["worst", "best", "line", "base", "adapter"]
SORTS: tuple[Sort, ...] = get_args(Sort)
ROWS = 20
SHORT = 600  # letters of a cell in the table
MOST_SIDES = 6  # of answers beside those of base and adapter; a file of examples has all
WHOLE = 200_000  # of a cell that is shown whole
GONE = "This example is no longer there; reload the page."
KEYS: dict[Sort, Callable[[Example], float | None]] = {
    "worst": lambda example: None if example.difference is None else -example.difference,
    "best": lambda example: example.difference,
    "line": lambda example: example.line,
    "base": lambda example: None if example.base_loss is None else -example.base_loss,
    "adapter": lambda example: None if example.adapter_loss is None else -example.adapter_loss,
}


def page(
    sources: dict[str, Any], sort: Sort, worse: bool, search: str, start: int
) -> Generator[str, None, dict[str, Any]]:
    """A page of the examples that hold `search`, from `start` on: {rows, more, total, start, rest, files,
    changed}.

    `worse` leaves only rows whose loss is higher with the adapter; `rest` says that not all are listed;
    `more` are the sides in words, by name, that some of the rows were answered on beside base and adapter, at
    most MOST_SIDES, and `hidden` is how many others there are;
    `files` are those that answered by side, with their SHA-256, and `changed` are sentences on those that are
    others by now. Raises InputError, OSError.
    """
    yield "Reading examples…"
    where, wanted = Sources(**sources), search.casefold()
    numbers, keys = array("q"), array("d")
    for example in rows.each(where):
        if worse and not example.is_worse:
            continue
        if wanted and not _holds(example, wanted):
            continue
        key = KEYS[sort](example)
        numbers.append(example.number)
        keys.append(math.inf if key is None else key)
    order = sorted(range(len(numbers)), key=keys.__getitem__)  # of equal ones, that of the dataset
    shown = [numbers[at] for at in order[start : start + ROWS]]
    found = {example.number: example for example in rows.some(where, set(shown))}
    there = [found[number] for number in shown if number in found]
    more = {side: answered_by.said(side) for example in there for side in example.more}
    hidden = len(more) - MOST_SIDES
    more = dict(islice(more.items(), MOST_SIDES))
    told = [_told(example, SHORT, more) for example in there]
    counts = {"total": len(numbers), "start": start, "rest": len(numbers) >= rows.MOST_ROWS}
    yield "Comparing checksums…"
    who = where.answered
    files = [{"side": name, "files": named} for name, named in who.lines]
    return {
        "rows": told,
        "more": more,
        "hidden": max(hidden, 0),
        **counts,
        "files": files,
        "changed": who.changes,
    }


def whole(sources: dict[str, Any], number: int) -> Generator[str, None, dict[str, Any]]:
    """One example with its texts whole. Raises InputError if it is not there, OSError."""
    yield "Reading an example…"
    for example in rows.some(Sources(**sources), {number}):
        return _told(example, WHOLE, [*islice(example.more, MOST_SIDES)])
    raise InputError(GONE)


def _holds(example: Example, wanted: str) -> bool:
    answers = (answer.text for answer in example.answers.values())
    return any(
        wanted in text.casefold() for text in (example.prompt, example.system, example.expected, *answers)
    )


def _told(example: Example, most: int, beside: Collection[str]) -> dict[str, Any]:
    """An example as the page draws it: texts up to `most` letters, and how the answers differ; of `more`
    answers those of the sides `beside`."""
    sides = {"base": example.base, "adapter": example.adapter}
    more = {name: _side(side, most) for name, side in example.more.items() if name in beside}
    texts = {name: display.cut(getattr(example, name), most) for name in ("prompt", "system", "expected")}
    answers = {name: _side(side, most) for name, side in sides.items()}
    told = [
        *(getattr(example, name) for name in texts),
        *(answer.text for answer in example.answers.values()),
    ]
    return {
        "number": example.number,
        "line": example.line,
        **texts,
        **answers,
        "tokens": example.tokens,
        "base_loss": example.base_loss,
        "adapter_loss": example.adapter_loss,
        "float_loss": example.float_loss,
        "difference": example.difference,
        "short": any(len(text) > most for text in told),
        "more": more,
        "words": _words(texts["expected"], answers, more),
    }


def _side(side: Side | None, most: int) -> dict[str, Any] | None:
    return {"text": display.valid(display.cut(side.text, most)), "cut": side.cut} if side else None


def _words(
    expected: str, answers: dict[str, dict[str, Any] | None], more: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """Differences of words: of each answer to the expected one, and of the adapter's to the base's."""
    base, adapter = (side["text"] if side else None for side in (answers["base"], answers["adapter"]))
    texts = {name: side["text"] if side else None for name, side in (answers | more).items()}
    pairs = {name: (expected, text) for name, text in texts.items()} | {"sides": (base, adapter)}
    return {
        name: difference(one, other) if one is not None and other is not None else None
        for name, (one, other) in pairs.items()
    }
