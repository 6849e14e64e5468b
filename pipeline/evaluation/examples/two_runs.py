"""The same rows in two runs: what was asked and expected, and what each run answered."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

from pipeline import display
from pipeline.evaluation.examples import rows
from pipeline.evaluation.examples.pages import SHORT
from pipeline.evaluation.examples.rows import Example, Sources
from pipeline.evaluation.examples.word_diff import difference

TEXTS = ("prompt", "system", "expected")


def told(
    one: Sources, other: Sources, lines: Sequence[int], side: Literal["adapter", "base"]
) -> Generator[str, None, list[dict[str, Any]]]:
    """The rows at these lines of the dataset, in this order, with texts up to SHORT letters: line, prompt,
    system, expected, `answers` of both runs on one side (None where it was not asked), and `words`, how the
    second answer differs from the first. Texts are empty where the dataset or a run's answers are gone.

    Raises InputError, OSError.
    """
    yield "Reading examples…"
    here, there = ({found.number: found for found in rows.some(of, set(lines))} for of in (one, other))
    return [_row(line, here.get(line), there.get(line), side) for line in lines]


def _row(line: int, one: Example | None, other: Example | None, side: str) -> dict[str, Any]:
    known = one or other
    texts = {name: display.cut(getattr(known, name), SHORT) if known else "" for name in TEXTS}
    answers = [_answer(example, side) for example in (one, other)]
    both = [answer["text"] for answer in answers if answer]
    words = difference(*both) if len(both) == len(answers) else None
    return {"line": line, **texts, "answers": answers, "words": words}


def _answer(example: Example | None, side: str) -> dict[str, Any] | None:
    answer = getattr(example, side) if example else None
    return {"text": display.valid(display.cut(answer.text, SHORT)), "cut": answer.cut} if answer else None
