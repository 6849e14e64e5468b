"""Losses of an exported model on rows, without and with its adapter, one row at a time.

What is measured is written to a file at once, line by line, so an interrupted evaluation resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.exports import generation, token_losses
from pipeline.inputs.data import datasets
from pipeline.inputs.data.sampling import spread
from pipeline.inputs.prompts import training_ids
from pipeline.passes.measure.kept_lines import KeptLines
from pipeline.passes.quantize.calibration import text_tokens
from pipeline.passes.rows import Rows

FILE = "rows.jsonl"
HELD_OUT, TRAINED, GENERAL = "held_out", "trained", "general"
EXACT = "float"  # held-out rows, on the float model: a kind, and its side
BATCH = 200  # rows in memory
BLOCKS, BLOCK = 12, 64  # of the general text: as many as a verdict needs, and tokens of each
Sides = Mapping[str, str | None]  # each side's adapter
Measure = Callable[[Sequence[int], Sequence[bool], str | None], token_losses.Loss]  # ids, counted, adapter


@dataclass(frozen=True)
class Measured:
    """Loss of one row by side: in nats, added up over `tokens`."""

    line: int
    tokens: int
    totals: dict[str, float]

    def mean(self, side: str) -> float:
        """Nats a token."""
        return self.totals[side] / self.tokens


class Record:
    """What is measured, by kind and line. Opened on a file of other inputs, it starts a new one."""

    def __init__(self, file: Path, inputs: Mapping[str, Any]) -> None:
        self._file = KeptLines(file, inputs)
        self._found = {(entry["kind"], entry["line"]): _measured(entry) for entry in self._file.entries}
        self.resumed = len(self._file.entries)

    def get(self, kind: str, line: int) -> Measured | None:
        """What an earlier attempt measured."""
        return self._found.get((kind, line))

    def add(self, kind: str, row: Measured) -> None:
        """Keep a row, whatever happens next."""
        self._found[kind, row.line] = row
        self._file.add({"kind": kind, "line": row.line, "tokens": row.tokens, **row.totals})


def _measured(entry: Mapping[str, Any]) -> Measured:
    totals = {
        name: float("nan") if total is None else float(total)
        for name, total in entry.items()
        if name not in ("kind", "line", "tokens")
    }
    return Measured(entry["line"], entry["tokens"], totals)


@dataclass
class Losses:
    """Measures rows on a loaded model: `folder` has the tokenizer that training read with."""

    model: generation.Model
    folder: Path
    data: Path
    template: Any
    sides: Sides
    record: Record
    tell: Callable[[str, int], None] = lambda _, __: None
    too_long: int = field(default=0, init=False)  # rows that the model cannot read whole

    def rows(
        self,
        kind: str,
        positions: Sequence[int],
        sides: Sides | None = None,
        data: Path | None = None,
        measure: Measure | None = None,
    ) -> list[Measured]:
        """The rows at these positions of the dataset, or of other data, without those that are too long.

        `measure` takes the place of the loaded model.

        `tell` gets the kind and how many are done. Raises InputError if a row is broken or does not fit the
        template.
        """
        found: list[Measured] = []
        for batch in _batches(data or self.data, set(positions)):
            rows = [row for _, row in batch]
            texts = Rows(rows, self.template, self.folder, self.model.context_length, "response")
            samples: dict[int, list[int]] = {}
            for sample, (row, _) in enumerate(texts.samples):
                samples.setdefault(row, []).append(sample)
            for row, parts in samples.items():
                self.tell(kind, len(found))
                line = batch[row][0]
                measured = self.record.get(kind, line)
                if measured is None:
                    measured = self._row(texts, row, parts, line, sides or self.sides, measure)
                    if measured is not None:
                        self.record.add(kind, measured)
                if measured is None:
                    self.too_long += 1
                else:
                    found.append(measured)
        return found

    def _row(
        self,
        texts: Rows,
        row: int,
        parts: list[int],
        line: int,
        sides: Sides,
        measure: Measure | None = None,
    ) -> Measured | None:
        """One row, of which a chat template that rewrites earlier turns makes several samples."""
        read = [texts[sample] for sample in parts]
        if row in texts.cut:
            return None
        totals = dict.fromkeys(sides, 0.0)
        tokens = 0
        for sample, labels in read:
            ids, counted = sample["input_ids"].tolist(), (labels >= 0).tolist()
            for side, adapter in sides.items():
                loss = (measure or self._measure)(ids, counted, adapter)
                totals[side] += loss.total
            tokens += loss.tokens
        return Measured(line, tokens, totals)

    def _measure(self, ids: Sequence[int], counted: Sequence[bool], adapter: str | None) -> token_losses.Loss:
        return token_losses.measure(self.model, ids, counted, adapter)

    def general(self) -> list[Measured]:
        """Blocks of a general text that nobody trains on, from all over it."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        ids, before = text_tokens(tokenizer, "scoring"), training_ids.before(tokenizer)
        starts = spread(range(0, len(ids) - BLOCK + 1, BLOCK), BLOCKS)
        found = []
        for number, start in enumerate(starts):
            self.tell(GENERAL, number)
            measured = self.record.get(GENERAL, number)
            if measured is None:
                block = [*before, *ids[start : start + BLOCK]][: self.model.context_length]
                counted = [at >= max(len(before), 1) for at in range(len(block))]
                losses = {
                    side: token_losses.measure(self.model, block, counted, adapter)
                    for side, adapter in self.sides.items()
                }
                tokens = next(iter(losses.values())).tokens
                measured = Measured(number, tokens, {side: loss.total for side, loss in losses.items()})
                self.record.add(GENERAL, measured)
            found.append(measured)
        return found


def _batches(data: Path, wanted: set[int]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """(line, row) of the rows at the wanted positions, BATCH at a time."""
    batch: list[tuple[int, dict[str, Any]]] = []
    for position, (line, row) in enumerate(datasets.rows(data)):
        if position not in wanted:
            continue
        batch.append((line, row))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
