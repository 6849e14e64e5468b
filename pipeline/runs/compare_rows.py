"""Two runs judged on the same held-out rows: two adapters, or two quantizations, with the verdict of one run.

Their evaluations have kept both sides' losses row by row; rows are paired by their line in the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.inputs.prompts import templates
from pipeline.store.run import DONE, Run

if TYPE_CHECKING:
    from pipeline.evaluation.measured import MeasuredRows

EVALUATE, KIND = "evaluate", "row_losses"
SIDES = ("adapter", "base")
HELD_OUT = "held_out"
LARGEST = 1 << 30  # bytes of a file of losses: about ten million rows


@dataclass(frozen=True)
class Losses:
    """Losses of a run's held-out rows."""

    run: Run
    rows: MeasuredRows

    @property
    def sides(self) -> set[str]:
        """The sides that every row has."""
        return {*self.rows.sides} & {*SIDES}


def judge(one: Run, other: Run) -> dict[str, Any]:
    """{"runs": [id, id], "rows": so many, "adapter": verdict, "base": verdict} of the second run against the
    first, without the sides that they don't both have; see `evaluation.verdict` for a verdict.

    Raises InputError if they were not measured on the same rows.
    """
    import numpy as np

    from pipeline.evaluation import verdict as verdicts

    first, second = (_losses(run) for run in (one, other))
    lines, at_first, at_second = np.intersect1d(
        first.rows.lines, second.rows.lines, assume_unique=True, return_indices=True
    )
    _require_alike(first, second, at_first, at_second)
    sides = [side for side in SIDES if side in first.sides & second.sides]
    if not len(lines) or not sides:
        what = "side, with or without an adapter" if len(lines) else "held-out row"
        raise InputError(f"{one.id} and {other.id}: have no {what} in common")
    pairs = {
        verdicts.Metric(side, verdicts.LOSS.words, less_is_better=True, of_base=True): (
            first.rows.means(side)[at_first],
            second.rows.means(side)[at_second],
        )
        for side in sides
    }
    found = {name: judged.to_json() for name, judged in verdicts.judge_all(pairs).items()}
    for metric, (before, after) in pairs.items():
        if np.array_equal(before, after):
            found[metric.name]["text"] = f"No difference: equal losses on all {len(lines):,} rows."
    return {"runs": [one.id, other.id], "rows": len(lines), **found}


def sentences(found: dict[str, Any]) -> list[str]:
    """What `judge` has found, a sentence a side."""
    first, second = found["runs"]
    named = {"adapter": "with their adapters", "base": "without adapters"}
    return [
        f"{second} against {first}, {named[side]}: {found[side]['text']}" for side in SIDES if side in found
    ]


def _losses(run: Run) -> Losses:
    path = next(
        (
            Path(artifact["path"])
            for stage in run.stages
            if stage.name == EVALUATE and stage.status == DONE
            for artifact in stage.artifacts
            if artifact["kind"] == KIND
        ),
        None,
    )
    if path is None or not path.is_file():
        raise InputError(
            f"{run.id}: has no losses row by row; the evaluate stage keeps them unless evaluate.rows is 0"
        )
    if path.stat().st_size > LARGEST:
        raise InputError(f"{run.id}: its losses row by row are too many to compare")
    from pipeline.evaluation.measured import MeasuredRows, read

    return Losses(run, MeasuredRows(read(row) for row in _held_out(path)))


def _held_out(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        next(file, None)  # what they were measured with
        for line in file:
            row = json.loads(line)
            if row.get("kind") == HELD_OUT and row["tokens"]:
                yield row


def _require_alike(first: Losses, second: Losses, at_first: Any, at_second: Any) -> None:
    """Raise InputError unless the rows are the same, read alike, and held out from both; at these positions
    they have the same lines."""
    import numpy as np

    one, other = first.run, second.run
    names = f"{one.id} and {other.id}"
    if _data(one) != _data(other):
        raise InputError(f"{names}: were evaluated on different data, so their rows are no pairs")
    for key, default in (("template", templates.CHAT), ("eval_fraction", 0.1), ("seed", 0)):
        values = [run.recipe.get(key, default) for run in (one, other)]
        if values[0] != values[1]:
            raise InputError(f"{names}: differ in {key}, so they were not evaluated on the same rows")
    differ = np.asarray(first.rows.tokens)[at_first] != np.asarray(second.rows.tokens)[at_second]
    if differ.any():
        line = first.rows.lines[int(at_first[differ][0])]
        raise InputError(
            f"{names}: their models read line {line:,} as other tokens, so losses a token are not comparable"
        )


def _data(run: Run) -> str:
    """What tells the rows of a run's evaluation apart from others: of a file of its own, or of its data."""
    path = Path((run.recipe.get(EVALUATE) or {}).get("data") or run.data)
    return datasets.kept_sha256(path) or str(path)
