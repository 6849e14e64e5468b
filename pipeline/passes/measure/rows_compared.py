"""Base and adapter compared on held-out rows, through the exported graph: a verdict, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.evaluation import against, words
from pipeline.evaluation.verdict import BETTER, LOSS, Metric, Verdict, judge, missing
from pipeline.inputs.data.sampling import spread
from pipeline.inputs.data.splitting import Parts
from pipeline.passes.measure import float_losses
from pipeline.passes.measure.new_rows import NewRows
from pipeline.passes.measure.row_losses import BLOCKS, EXACT, GENERAL, HELD_OUT, TRAINED, Losses, Measured
from pipeline.stages.events import emit

BASE, ADAPTER = "base", "adapter"
Speeds = tuple[tuple[int, float], tuple[int, float]]  # tokens, and tokens a second, of base and adapter
MOST_TRAINED = 64  # rows of the training part whose loss is compared with that of new ones
SAID = {
    HELD_OUT: "Loss on held-out rows",
    TRAINED: "Loss on training rows",
    GENERAL: "Loss on general text",
    EXACT: "Loss of the float model",
}
MERGED = "the adapter is merged into the weights, and the base is not in this export"


@dataclass(frozen=True)
class Compared:
    """What is measured, by kind of row. `copies` and `too_long` of the held-out rows are left out.

    `asked` is the name of the file whose rows these are in place of held-out ones; "" if they are held out.
    """

    held_out: list[Measured]
    trained: list[Measured]
    general: list[Measured]
    copies: int
    too_long: int
    floats: list[Measured] = field(default_factory=list)  # the held-out rows on the float model
    asked: str = ""

    def metrics(
        self, answers: Sequence[Mapping[str, Any]], tax: Mapping[str, Any] | None = None, recites: str = ""
    ) -> dict[str, Any]:
        """The stage's metrics; `answers` are rows of answers.json, which tell the speed of both sides if
        there is no `tax`. `recites` is what is said of answers that stand in the training rows."""
        metrics: dict[str, Any] = {
            "rows": len(self.held_out),
            "copies_left_out": self.copies,
            "long_rows_left_out": self.too_long,
            **_means(self.held_out, "{}_loss"),
            **_means(self.trained, "{}_loss_on_training_rows"),
            **_means(self.general, "{}_loss_on_general_text"),
            **_means(self.floats, "{}_loss"),
        }
        if self.overfitting:
            metrics["overfitting"] = self.overfitting
        if self.floats:
            metrics["against_float"] = self.against_float()
        verdict = self.verdict(_turns(tax) if tax else _speeds(answers), recites)
        return metrics if verdict is None else {**metrics, "verdict": verdict.to_json()}

    def verdict(self, speeds: Sequence[Speeds], recites: str = "") -> Verdict | None:
        """Whether the adapter is better than the base; None if there is no adapter."""
        sides = {side for row in (*self.held_out, *self.general) for side in row.totals}
        if ADAPTER not in sides:
            return None
        if BASE not in sides:
            return missing(self._loss, MERGED)
        if not self.held_out:
            return missing(self._loss, self._why_none())
        found = judge(self._loss, *_by_row(self.held_out))
        heart = "" if found.outcome == BETTER else self.overfitting
        forgot, _ = words.forgot(*_by_row(self.general))
        cost = f"the base without it has {self.against_float()[BASE]['words']}" if self.floats else ""
        return found.with_more([part for part in (heart, recites, forgot, cost, words.speed(speeds)) if part])

    def against_float(self) -> dict[str, Any]:
        """By side of the export, how it compares with the float model: see `evaluation.against`."""
        exact = [row.mean(EXACT) for row in self.floats]
        sides = [side for side in (BASE, ADAPTER) if side in self.held_out[0].totals]
        return {side: against.of(exact, [row.mean(side) for row in self.held_out]) for side in sides}

    @property
    def overfitting(self) -> str:
        """What is to be said of the adapter's losses on rows it was trained on and on others, or ""."""
        if not self.trained or not self.held_out:
            return ""
        return words.by_heart(_mean(self.trained, ADAPTER), _mean(self.held_out, ADAPTER))

    @property
    def _loss(self) -> Metric:
        """What is judged, in words that say whose answers they are."""
        words = f"loss on the answers of {display.short(self.asked)}"
        return replace(LOSS, words=words) if self.asked else LOSS

    def _why_none(self) -> str:
        row = f"each row of {display.short(self.asked)}" if self.asked else "each held-out row"
        if self.copies and not self.too_long:
            return f"{row} is the same, or nearly, as one that is trained on"
        if self.too_long and not self.copies:
            return f"{row} is longer than what the model reads"
        return f"{row} is nearly one that is trained on, or longer than what the model reads"


def compare(
    losses: Losses, parts: Parts, new: NewRows, limit: int | None, exact: Path | None = None
) -> Compared:
    """Measure `limit` of the new rows (None: all), from all over them, and what they are compared with: rows
    that were trained on, general text, and the float model in the folder `exact`.

    Raises InputError if a row is broken, and what onnxruntime_genai raises.
    """
    asked = "" if new.file == losses.data else new.file.name
    said = {**SAID, HELD_OUT: f"Loss on rows of {display.short(asked)}"} if asked else SAID
    emit(message=f"Looking for {'held-out ' * (not asked)}rows that are nearly training rows", progress=0.04)
    copies = new.copies(losses.data, parts, losses.template)
    chosen = spread([position for position in new.positions if position not in copies], limit)
    trained = spread(parts.train, min(len(chosen), MOST_TRAINED))
    shares = {
        HELD_OUT: (0.05, 0.4, len(chosen)),
        TRAINED: (0.45, 0.1, len(trained)),
        GENERAL: (0.55, 0.08, BLOCKS),
        EXACT: (0.64, 0.01, len(chosen)),
    }

    def tell(kind: str, done: int) -> None:
        begin, share, count = shares[kind]
        emit(message=f"{said[kind]}: {done + 1:,} of {count:,}", progress=begin + share * done / count)

    if losses.record.resumed:
        emit(message=f"{losses.record.resumed:,} rows were measured before this stage was interrupted")
    losses.tell = tell
    held_out = losses.rows(HELD_OUT, chosen, data=new.file)
    too_long = losses.too_long
    if too_long or copies:
        emit(message=f"Left out {len(copies):,} copies of training rows, {too_long:,} rows that are too long")
    own = {side: adapter for side, adapter in losses.sides.items() if side == ADAPTER}
    known = losses.rows(TRAINED, trained, own) if own else []
    general = losses.general()
    floats = _floats(losses, chosen, new.file, exact) if exact and held_out else []
    return Compared(held_out, known, general, len(copies), too_long, floats, asked)


def _floats(losses: Losses, chosen: Sequence[int], file: Path, exact: Path) -> list[Measured]:
    """The chosen rows on the float model."""
    emit(message="Loading the float model", progress=0.64)
    with float_losses.loaded(exact) as measure:
        return losses.rows(EXACT, chosen, {EXACT: None}, file, measure)


def _by_row(rows: Sequence[Measured]) -> tuple[list[float], list[float]]:
    return [row.mean(BASE) for row in rows], [row.mean(ADAPTER) for row in rows]


def _mean(rows: Sequence[Measured], side: str) -> float:
    """Nats a token of all rows together; not a number if there are none."""
    tokens = sum(row.tokens for row in rows)
    return sum(row.totals[side] for row in rows) / tokens if tokens else math.nan


def _means(rows: Sequence[Measured], name: str) -> dict[str, float]:
    """The mean loss of each side that the rows have, by names such as "{}_loss"."""
    sides = rows[0].totals if rows else ()
    return {name.format(side): _mean(rows, side) for side in sides}


def _turns(tax: Mapping[str, Any]) -> list[Speeds]:
    """The same of the turns in which both sides decoded the same number of tokens."""
    count, (base, adapter) = tax["new_tokens"], (tax[side]["decode_turns"] for side in (BASE, ADAPTER))
    return [((count, one), (count, other)) for one, other in zip(base, adapter, strict=True)]


def _speeds(answers: Sequence[Mapping[str, Any]]) -> list[Speeds]:
    """(tokens, tokens per second) of the base's and the adapter's answer to each prompt."""
    return [
        (
            (row[BASE]["tokens"], row[BASE]["tokens_per_second"]),
            (row[ADAPTER]["tokens"], row[ADAPTER]["tokens_per_second"]),
        )
        for row in answers
        if row[BASE] and row[ADAPTER]
    ]
