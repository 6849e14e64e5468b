"""The examples of a run, put together from what evaluate wrote and from the run's copy of the dataset.

Rows whose loss was measured are in `rows.jsonl` by their line, and their texts in the dataset; those that
were answered are in `answers.json`. One at a time is in memory, beside the answers and the losses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.evaluation.examples import answered_by
from pipeline.evaluation.examples.answered_by import Answered
from pipeline.inputs.data import datasets
from pipeline.inputs.prompts import templates
from pipeline.store.run import Run

MOST_ROWS = 50_000  # whose losses are listed
MOST_MORE = 65  # answers to a row beside those of base and adapter: as many adapters as a folder may have
LARGEST_ANSWERS = 64 << 20  # bytes
TEXTS = ("prompt", "system", "expected")
HELD_OUT = "held_out"  # the kind of the entries that are about held-out rows
FLOAT = answered_by.FLOAT  # and of those that have the same rows' losses on the float model, by that name
_FLOAT = b'"kind": "float"'
BROKEN = "The answers of this run cannot be read; run its evaluation again."
LARGE = "The answers of this run are too large to show; run its evaluation with fewer prompts or max tokens."


@dataclass(frozen=True)
class Side:
    """An answer; `cut` where it was ended by the limit of its length."""

    text: str
    cut: bool = False


@dataclass(frozen=True)
class Example:
    """One row. `number` is its line in the dataset; below 0 for an answer whose line is not known.

    Losses are in nats a token, over `tokens`; None where they were not measured, or are no numbers. `more`
    are the answers of the float model, as FLOAT, and of other adapters by their sides (`answered_by.side`).
    """

    number: int
    prompt: str
    system: str
    expected: str
    base: Side | None = None
    adapter: Side | None = None
    tokens: int | None = None
    broken: bool = False  # the adapter's loss was measured, and is no number
    base_loss: float | None = None
    adapter_loss: float | None = None
    float_loss: float | None = None  # of the model that was quantized, if evaluate.float was on
    more: Mapping[str, Side] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, Side]:
        """All answers by their sides."""
        own = {answered_by.BASE: self.base, answered_by.ADAPTER: self.adapter}
        return {side: answer for side, answer in own.items() if answer} | {**self.more}

    @property
    def is_worse(self) -> bool:
        """Whether the adapter predicts the row worse than the base, or what is no number where the base
        predicts one."""
        if self.adapter_loss is None:
            return self.base_loss is not None and self.broken
        return self.difference is not None and self.difference > 0

    @property
    def difference(self) -> float | None:
        """The adapter's loss − the base's; above 0 the adapter is worse."""
        if self.base_loss is None or self.adapter_loss is None:
            return None
        return self.adapter_loss - self.base_loss

    @property
    def line(self) -> int | None:
        """Its line in the dataset, if that is known."""
        return self.number if self.number > 0 else None


@dataclass(frozen=True)
class Sources:
    """Where the examples of a run are; None for what it has not. `template` is that of its recipe.

    `files` is what the evaluation says of the files that answered, `export` and `adapter` are the paths of
    what the run exported: see `answered_by`.
    """

    data: str | None
    template: str
    answers: str | None
    losses: str | None
    files: dict[str, Any] | None = None
    export: str | None = None
    adapter: str | None = None

    @property
    def any(self) -> bool:
        """Whether there can be examples."""
        return self.answers is not None or self.losses is not None

    @property
    def answered(self) -> Answered:
        """Which files answered."""
        return answered_by.read(self.files, self.export, self.adapter, self.answers or self.losses)


def of_run(run: Run) -> Sources:
    """The sources of a run's examples, as far as they are still there."""

    def there(path: str | None) -> str | None:
        return path if path and Path(path).is_file() else None

    template = str(run.recipe.get("template", templates.CHAT))
    answers, losses = there(run.artifact("answers")), there(run.artifact("row_losses"))
    exported = run.artifact("onnx"), run.artifact("onnx_adapter")
    return Sources(there(_measured_on(run)), template, answers, losses, answered_by.told(run), *exported)


def _measured_on(run: Run) -> str | None:
    """The file whose lines are measured: the dataset, or the file that evaluation was given in its place, if
    that is kept beside it; None for any other."""
    given = next((stage.options.get("data") for stage in run.stages if stage.kind == "evaluate"), None)
    if not given:
        return run.data
    kept = Path(str(given)).parent.parent == Path(run.data).parent.parent
    return str(given) if kept and ".." not in Path(str(given)).parts else None


def each(sources: Sources) -> Iterator[Example]:
    """The examples in the order of the dataset, then answers whose line is not known.

    Raises InputError if a file is damaged or too large, OSError if one cannot be read.
    """
    left = _answers(sources.answers)
    losses = _losses(sources.losses)
    parsed = templates.parse(sources.template)
    if losses and sources.data:
        last = max(losses)
        by_text = {(answer["prompt"], answer["expected"]): at for at, answer in left.items()}
        by_line = {answer["line"]: at for at, answer in left.items() if isinstance(answer.get("line"), int)}
        for line, row in datasets.readable(Path(sources.data)):
            if line > last:
                break
            if line not in losses:
                continue
            texts = _texts(parsed, row)
            at = by_line.get(line, by_text.get((texts[0], _as_written(texts[2]))))
            yield _example(line, texts, losses[line], left.pop(at, {}) if at is not None else {})
    for at, answer in left.items():
        yield _example(-1 - at, (answer["prompt"], answer["system"], answer["expected"]), {}, answer)


def some(sources: Sources, numbers: set[int]) -> Iterator[Example]:
    """Those of these numbers. Raises as `each` does."""
    left = set(numbers)
    for example in each(sources) if left else ():
        if example.number in left:
            left.discard(example.number)
            yield example
        if not left:
            return


def _as_written(expected: str) -> str:
    return display.valid(display.cut(expected, 20_000))  # as `passes.measure.answers` cuts it


def _example(
    number: int, texts: tuple[str, str, str], losses: Mapping[str, Any], answer: Mapping[str, Any]
) -> Example:
    tokens = losses.get("tokens")

    def loss(side: str) -> float | None:
        total, counted = _number(losses.get(side)), _number(tokens)
        return total / counted if total is not None and counted else None

    sides = {side: _side(answer.get(side)) for side in ("base", "adapter")}
    counted = tokens if isinstance(tokens, int) else None
    broken = "adapter" in losses and loss("adapter") is None
    base, adapter, exact = (loss(side) for side in ("base", "adapter", FLOAT))
    beside = islice(((name, _side(given)) for name, given in answer.items() if _is_more(name)), MOST_MORE)
    more = {name: side for name, side in beside if side}
    return Example(
        number, *texts, sides["base"], sides["adapter"], counted, broken, base, adapter, exact, more
    )


def _number(value: Any) -> float | None:
    """A number of a run's file; None for what is none, or too large for one."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _is_more(name: str) -> bool:
    return name == FLOAT or answered_by.is_other(name)


def _side(given: Any) -> Side | None:
    return Side(str(given.get("text", "")), bool(given.get("cut"))) if isinstance(given, dict) else None


def _texts(template: templates.Template, row: dict[str, Any]) -> tuple[str, str, str]:
    """Prompt, system text and expected answer of a row; empty where the row does not fit the template."""
    found = []
    for tell in (templates.question, templates.system, templates.expected):
        try:
            found.append(display.valid(tell(template, row)))
        except (InputError, LookupError, TypeError, ValueError, RecursionError):
            found.append("")
    return found[0], found[1], found[2]


def _answers(path: str | None) -> dict[int, dict[str, Any]]:
    """The recorded answers by their place in the file. Raises InputError, OSError."""
    if path is None:
        return {}
    if Path(path).stat().st_size > LARGEST_ANSWERS:
        raise InputError(LARGE)
    try:
        rows = json.loads(Path(path).read_bytes())["rows"]
        return {
            at: row
            | {name: display.valid(str(row.get(name) or "")) for name in ("prompt", "system", "expected")}
            for at, row in enumerate(rows)
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(BROKEN) from None


def _losses(path: str | None) -> dict[int, dict[str, Any]]:
    """Losses of held-out rows by line, the first MOST_ROWS of them. Raises OSError."""
    found: dict[int, dict[str, Any]] = {}
    if path is None:
        return found
    with Path(path).open("rb") as file:
        while line := file.readline(1 << 16):
            if len(found) >= MOST_ROWS and _FLOAT not in line:
                continue  # only the float model's losses of the rows that are kept are missing
            entry = _entry(line)
            if entry.get("kind") == HELD_OUT and len(found) < MOST_ROWS:
                found[entry["line"]] = entry
            elif entry.get("kind") == FLOAT and entry["line"] in found:
                found[entry["line"]][FLOAT] = entry.get(FLOAT)
    return found


def _entry(line: bytes) -> dict[str, Any]:
    """A line of losses, empty if it is none: torn, or the end of a long head."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) and isinstance(entry.get("line"), int) else {}
