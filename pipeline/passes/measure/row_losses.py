"""Losses of an exported model on rows, without and with its adapter, one row at a time.

What is measured is written to a file at once, line by line, so an interrupted evaluation resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.evaluation import measured
from pipeline.evaluation.measured import Measured, MeasuredRows
from pipeline.exports import generation, token_losses
from pipeline.inputs.data import datasets
from pipeline.inputs.data.sampling import spread
from pipeline.inputs.models.contents import tokenizer_of
from pipeline.inputs.prompts import training_ids
from pipeline.passes.measure.kept_lines import KeptLines
from pipeline.passes.measure.known.known_rows import Known
from pipeline.passes.pace import Pace
from pipeline.passes.quantize.calibration import text_tokens
from pipeline.passes.rows import Rows

FILE = "rows.jsonl"
HELD_OUT, TRAINED, GENERAL = "held_out", "trained", "general"
EXACT = "float"  # held-out rows, on the float model: a kind, and its side
BATCH = 200  # rows in memory
BLOCKS, BLOCK = 12, 64  # of the general text: as many as a verdict needs, and tokens of each
Sides = Mapping[str, str | None]  # each side's adapter
Measure = Callable[[Sequence[int], Sequence[bool], str | None], token_losses.Loss]  # ids, counted, adapter


class Record:
    """What is measured, by kind and line. Opened on a file of other inputs, it starts a new one."""

    def __init__(self, file: Path, inputs: Mapping[str, Any]) -> None:
        self._found: dict[str, MeasuredRows] = {}
        self._file = KeptLines(file, inputs, self._take)
        self.resumed = self._file.resumed

    def _take(self, entry: Mapping[str, Any]) -> None:
        self._found.setdefault(entry["kind"], MeasuredRows()).add(measured.read(entry))

    def get(self, kind: str, line: int) -> Measured | None:
        """What this attempt or an earlier one measured."""
        rows = self._found.get(kind)
        return rows.find(line) if rows is not None else None

    def add(self, kind: str, row: Measured) -> None:
        """Keep a row, whatever happens next."""
        self._found.setdefault(kind, MeasuredRows()).add(row)
        self._file.add({"kind": kind, "line": row.line, "tokens": row.tokens, **row.totals})


@dataclass
class Losses:
    """Measures rows on a loaded model: `folder` has the tokenizer that training read with."""

    model: generation.Model
    folder: Path
    data: Path
    template: Any
    sides: Sides
    record: Record
    pace: Pace | None = None
    known: Mapping[str | None, Known] = field(default_factory=dict)  # by the adapter that is active
    too_long: int = field(default=0, init=False)  # rows that the model cannot read whole

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer."""
        return tokenizer_of(self.folder)

    def rows(
        self,
        kind: str,
        positions: Sequence[int],
        sides: Sides | None = None,
        data: Path | None = None,
        measure: Measure | None = None,
    ) -> MeasuredRows:
        """The rows at these positions, ascending, of the dataset or of other data, without those that are too
        long. `measure` takes the place of the loaded model.

        Rows that the record has are not even rendered. Raises InputError if a row is broken or does not fit
        the template.
        """
        found = MeasuredRows()
        done = 0
        for batch in _batches(data or self.data, positions):
            new = [(line, row) for line, row in batch if self.record.get(kind, line) is None]
            self._measure_new(kind, new, sides or self.sides, measure, done + len(batch) - len(new))
            done += len(batch)
            for line, _ in batch:
                row = self.record.get(kind, line)
                if row is None:
                    self.too_long += 1
                else:
                    found.add(row)
        return found

    def _measure_new(
        self,
        kind: str,
        rows: list[tuple[int, dict[str, Any]]],
        sides: Sides,
        measure: Measure | None,
        done: int,
    ) -> None:
        """Put rows, by their lines, into the record; `done` others of the kind are behind."""
        if not rows:
            return
        only = [row for _, row in rows]
        texts = Rows(only, self.template, self.folder, self.model.context_length, "response", self.tokenizer)
        samples: dict[int, list[int]] = {}
        for sample, (row, _) in enumerate(texts.samples):
            samples.setdefault(row, []).append(sample)
        for number, (row, parts) in enumerate(samples.items()):
            if self.pace is not None:
                self.pace.tell(kind, done + number)
            found = self._row(texts, row, parts, rows[row][0], sides, measure)
            if found is not None:
                self.record.add(kind, found)
                if self.pace is not None:
                    self.pace.worked(kind)

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
        known = self.known.get(adapter) or Known()
        return known.loss(ids, counted, lambda: token_losses.measure(self.model, ids, counted, adapter))

    def general(self) -> MeasuredRows:
        """Blocks of a general text that nobody trains on, from all over it."""
        ids, before = text_tokens(self.tokenizer, "scoring"), training_ids.before(self.tokenizer)
        starts = spread(range(0, len(ids) - BLOCK + 1, BLOCK), BLOCKS)
        found = MeasuredRows()
        for number, start in enumerate(starts):
            if self.pace is not None:
                self.pace.tell(GENERAL, number)
            known = self.record.get(GENERAL, number)
            if known is None:
                block = [*before, *ids[start : start + BLOCK]][: self.model.context_length]
                known = self._block(number, block, max(len(before), 1))
                self.record.add(GENERAL, known)
            found.add(known)
        return found

    def _block(self, number: int, ids: list[int], begin: int) -> Measured:
        """The losses of ids from the position `begin` on."""
        counted = [at >= begin for at in range(len(ids))]
        losses = {side: self._measure(ids, counted, adapter) for side, adapter in self.sides.items()}
        tokens = next(iter(losses.values())).tokens
        return Measured(number, tokens, {side: loss.total for side, loss in losses.items()})


def _batches(data: Path, positions: Sequence[int]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """(line, row) of the rows at these positions, ascending, BATCH at a time."""
    batch: list[tuple[int, dict[str, Any]]] = []
    coming = iter(positions)
    wanted = next(coming, None)
    for position, (line, row) in enumerate(datasets.rows(data)):
        if wanted is None:
            break
        if position < wanted:
            continue
        wanted = next(coming, None)
        batch.append((line, row))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
