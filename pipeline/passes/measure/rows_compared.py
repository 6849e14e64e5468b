"""Base and adapter compared on held-out rows, through the exported graph: a verdict, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.evaluation import against, secondary, words
from pipeline.evaluation.examples import answered_by
from pipeline.evaluation.measured import MeasuredRows
from pipeline.evaluation.secondary import Told
from pipeline.evaluation.verdict import LOSS, Figures, Metric, Pair, Verdict, judge, missing
from pipeline.inputs.data.sampling import spread
from pipeline.inputs.data.splitting import Parts
from pipeline.passes.measure import float_losses
from pipeline.passes.measure.known.known_rows import Known
from pipeline.passes.measure.row_losses import BLOCKS, EXACT, GENERAL, HELD_OUT, TRAINED, Losses
from pipeline.passes.new_rows import ALL_COPIES, NewRows
from pipeline.passes.pace import Pace, Part
from pipeline.stages.events import emit

BASE, ADAPTER = answered_by.BASE, answered_by.ADAPTER
MEANS = (BASE, ADAPTER, EXACT)  # sides whose figures the metrics have by names; others: see `Compared.others`
Speeds = tuple[tuple[int, float], tuple[int, float]]  # tokens, and tokens a second, of base and adapter
MOST_TRAINED = 64  # rows of the training part whose loss is compared with that of new ones
SAID = {
    HELD_OUT: "Loss on held-out rows",
    TRAINED: "Loss on training rows",
    GENERAL: "Loss on general text",
    EXACT: "Loss of the float model",
}
LARGEST_LOSS = 700.0  # whose perplexity is a number
MERGED = "the adapter is merged into the weights, and the base is not in this export"


@dataclass(frozen=True)
class Compared:
    """What is measured, by kind of row. `copies` and `too_long` of the held-out rows are left out.

    asked     the name of the file whose rows these are in place of held-out ones; "" if they are held out
    sampled   whether copies were looked for in a sample only, because there are very many rows
    """

    held_out: MeasuredRows
    trained: MeasuredRows
    general: MeasuredRows
    copies: int
    too_long: int
    floats: MeasuredRows = field(default_factory=MeasuredRows)  # the held-out rows on the float model
    asked: str = ""
    sampled: bool = False

    def metrics(
        self,
        answers: Sequence[Mapping[str, Any]],
        tax: Mapping[str, Any] | None = None,
        recites: str = "",
        told: Told | None = None,
    ) -> dict[str, Any]:
        """The stage's metrics; `answers` are rows of answers.json, which tell the speed of both sides if
        there is no `tax`. `recites` is what is said of answers that stand in the training rows, `told` what
        `judged` found together with other claims."""
        told = told or self.judged({})
        heart = self._overfitting(told)
        metrics: dict[str, Any] = {
            "rows": len(self.held_out),
            "copies_left_out": self.copies,
            "long_rows_left_out": self.too_long,
            **_means(self.held_out, "{}_loss"),
            **_perplexities(self.held_out),
            **_means(self.trained, "{}_loss_on_training_rows"),
            **_means(self.general, "{}_loss_on_general_text"),
            **_means(self.floats, "{}_loss"),
            **_perplexities(self.floats),
        }
        if self.sampled:
            metrics["copies_sampled"] = True
        if heart:
            metrics["overfitting"] = heart
        if self.floats:
            metrics["against_float"] = self._against_float(told)
        verdict = self._verdict(told, _turns(tax) if tax else _speeds(answers), recites)
        return metrics if verdict is None else {**metrics, "verdict": verdict.to_json()}

    def others(self, told: Told, unfit: Mapping[str, str]) -> dict[str, Any]:
        """By name, what is to be said of each other adapter in the folder: its losses and its verdict against
        the base, corrected together with all other claims. `unfit` are those that the graph does not take."""
        found: dict[str, Any] = {}
        for side in self._others:
            forgot = words.forgot(told.verdicts[f"{GENERAL} {side}"], self.general.means(BASE))
            found[answered_by.other(side)] = {
                "loss": self.held_out.row_mean(side),
                "perplexity": _perplexities(self.held_out, (side,)).get(f"{side}_perplexity"),
                "loss_on_general_text": self.general.row_mean(side),
                "verdict": told.verdicts[side].with_more([forgot] if forgot else []).to_json(),
            }
        bad = {name: missing(self._loss, f"it does not fit the graph: {why}") for name, why in unfit.items()}
        return found | {name: {"verdict": verdict.to_json()} for name, verdict in bad.items()}

    def judged(self, others: Mapping[str, tuple[Metric, Pair]]) -> Told:
        """What can be claimed besides the verdict itself, corrected together with `others`, such as the
        metrics of answers: all of it is said beside one verdict. See `evaluation.secondary`."""
        pairs = dict(others)
        if {BASE, ADAPTER} <= {*self.general.sides}:
            pairs[GENERAL] = words.GENERAL, _by_row(self.general)
        for side in self._others:
            pairs[side] = self._loss, _by_row(self.held_out, side)
            pairs[f"{GENERAL} {side}"] = words.GENERAL, _by_row(self.general, side)
        if self.floats:
            exact = self.floats.means(EXACT)
            for side in self._sides:
                pairs[f"{EXACT}_{side}"] = against.LOSS, (exact, self.held_out.means(side))
        if not self.trained or not self.held_out:
            return secondary.judge(pairs)
        return secondary.judge(pairs, self.trained.means(ADAPTER), self.held_out.means(ADAPTER))

    def _verdict(self, told: Told, speeds: Sequence[Speeds], recites: str) -> Verdict | None:
        """Whether the adapter is better than the base; None if there is no adapter."""
        sides = {*self.held_out.sides, *self.general.sides}
        if ADAPTER not in sides:
            return None
        if BASE not in sides:
            return missing(self._loss, MERGED)
        if not self.held_out:
            return missing(self._loss, self._why_none())
        found = judge(self._loss, *_by_row(self.held_out))
        heart = self._overfitting(told)  # also of one that is better: more would be, if it had stopped before
        forgot = words.forgot(told.verdicts[GENERAL], self.general.means(BASE))
        cost = f"the base without it has {self._against_float(told)[BASE]['words']}" if self.floats else ""
        return found.with_more([part for part in (heart, recites, forgot, cost, words.speed(speeds)) if part])

    def _against_float(self, told: Told) -> dict[str, Any]:
        """By side of the export, how it compares with the float model: see `evaluation.against`."""
        exact = self.floats.means(EXACT)
        return {
            side: against.said(told.verdicts[f"{EXACT}_{side}"], exact, self.held_out.means(side))
            for side in self._sides
        }

    def _overfitting(self, told: Told) -> str:
        """What is to be said of the adapter's losses on rows it was trained on and on others, or ""."""
        if not told.memorized:
            return ""
        return words.by_heart(self.trained.row_mean(ADAPTER), self.held_out.row_mean(ADAPTER))

    @property
    def _sides(self) -> list[str]:
        return [side for side in (BASE, ADAPTER) if side in self.held_out.sides]

    @property
    def _others(self) -> list[str]:
        """The sides that are other adapters."""
        return [side for side in self.held_out.sides if side not in (BASE, ADAPTER)]

    @property
    def _loss(self) -> Metric:
        """What is judged, in words that say whose answers they are."""
        words = f"loss on the answers of {display.short(self.asked)}"
        return replace(LOSS, words=words) if self.asked else LOSS

    def _why_none(self) -> str:
        row = f"each row of {display.short(self.asked)}" if self.asked else "each held-out row"
        if self.copies and not self.too_long:
            return f"{row} {ALL_COPIES}"
        if self.too_long and not self.copies:
            return f"{row} is longer than what the model reads"
        return f"{row} is nearly one that is trained on, or longer than what the model reads"


def compare(
    losses: Losses,
    parts: Parts,
    new: NewRows,
    limit: int | None,
    exact: Path | None = None,
    known: Known | None = None,
) -> Compared:
    """Measure `limit` of the new rows, which are `without_copies` (None: all), from all over them, and what
    they are compared with: rows that were trained on, general text, and the float model in the folder
    `exact`, some of whose losses may be `known`.

    Raises InputError if a row is broken, and what onnxruntime_genai raises.
    """
    asked = "" if new.file == losses.data else new.file.name
    said = {**SAID, HELD_OUT: f"Loss on rows of {display.short(asked)}"} if asked else SAID
    chosen = new.positions if limit is None else spread(new.positions, limit)
    own = {side: adapter for side, adapter in losses.sides.items() if side == ADAPTER}
    trained = spread(parts.train, min(len(chosen), MOST_TRAINED)) if own else []
    if losses.record.resumed:
        emit(message=f"{losses.record.resumed:,} rows were measured before this stage was interrupted")
    work = _work(said, len(chosen), len(trained), len(losses.sides), exact is not None)
    losses.pace = Pace(work, 0.05, 0.6)
    held_out = losses.rows(HELD_OUT, chosen, data=new.file)
    too_long = losses.too_long
    if too_long:
        emit(message=f"Left out {too_long:,} rows that are too long")
    learned = losses.rows(TRAINED, trained, own)
    general = losses.general()
    floats = MeasuredRows()
    if exact and held_out:
        with float_losses.known_or_loaded(exact, known or Known()) as measure:
            floats = losses.rows(EXACT, chosen, {EXACT: None}, new.file, measure)
    losses.pace.end()
    return Compared(held_out, learned, general, new.copies, too_long, floats, asked, new.sampled)


def _work(said: Mapping[str, str], rows: int, trained: int, sides: int, exact: bool) -> dict[str, Part]:
    """What `compare` reads, in words by kind, with the effort of reading a row once as the unit."""
    parts = {
        HELD_OUT: (rows, sides),
        TRAINED: (trained, 1),
        GENERAL: (BLOCKS, sides),
        EXACT: (rows * exact, 2),
    }
    return {kind: Part(said[kind], *part) for kind, part in parts.items()}


def _by_row(rows: MeasuredRows, side: str = ADAPTER) -> tuple[Figures, Figures]:
    return rows.means(BASE), rows.means(side)


def _means(rows: MeasuredRows, name: str) -> dict[str, float]:
    """The mean loss over rows of each of MEANS that they have, by names such as "{}_loss"."""
    return {name.format(side): rows.row_mean(side) for side in rows.sides if side in MEANS}


def _perplexities(rows: MeasuredRows, sides: Sequence[str] = MEANS) -> dict[str, float]:
    """e to each side's mean loss over all tokens, which is what perplexity means; without those that are no
    numbers or too large for one."""
    losses = {side: rows.token_mean(side) for side in rows.sides if side in sides}
    return {f"{side}_perplexity": math.exp(loss) for side, loss in losses.items() if loss < LARGEST_LOSS}


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
