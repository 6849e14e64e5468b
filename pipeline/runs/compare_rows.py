"""Two runs judged on the same held-out rows: two adapters, or two quantizations, with the verdict of one run.

Their evaluations have kept both sides' losses row by row; rows are paired by their line in the dataset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.inputs.prompts import templates
from pipeline.store.run import DONE, Run

EVALUATE, KIND = "evaluate", "row_losses"
SIDES = ("adapter", "base")
HELD_OUT = "held_out"
LARGEST = 1 << 30  # bytes of a file of losses: about ten million rows


@dataclass(frozen=True)
class Losses:
    """Losses of a run's held-out rows by line: tokens, and by side nats added up over them."""

    run: Run
    rows: dict[int, dict[str, Any]]

    @property
    def sides(self) -> set[str]:
        """The sides that every row has."""
        return {side for side in SIDES if self.rows and all(side in row for row in self.rows.values())}

    def mean(self, line: int, side: str) -> float:
        """Nats a token; not a number where the model predicted none."""
        total = self.rows[line][side]
        return math.nan if total is None else float(total) / int(self.rows[line]["tokens"])


def judge(one: Run, other: Run) -> dict[str, Any]:
    """{"runs": [id, id], "rows": so many, "adapter": verdict, "base": verdict} of the second run against the
    first, without the sides that they don't both have; see `evaluation.verdict` for a verdict.

    Raises InputError if they were not measured on the same rows.
    """
    from pipeline.evaluation import verdict as verdicts

    first, second = (_losses(run) for run in (one, other))
    _require_alike(first, second)
    lines = sorted(first.rows.keys() & second.rows.keys())
    sides = [side for side in SIDES if side in first.sides & second.sides]
    if not lines or not sides:
        what = "side, with or without an adapter" if lines else "held-out row"
        raise InputError(f"{one.id} and {other.id}: have no {what} in common")
    pairs = {
        verdicts.Metric(side, verdicts.LOSS.words, less_is_better=True, of_base=True): (
            [first.mean(line, side) for line in lines],
            [second.mean(line, side) for line in lines],
        )
        for side in sides
    }
    found = {name: judged.to_json() for name, judged in verdicts.judge_all(pairs).items()}
    for metric, (before, after) in pairs.items():
        if before == after:
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
    return Losses(run, {row["line"]: row for row in _held_out(path)})


def _held_out(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        next(file, None)  # what they were measured with
        for line in file:
            row = json.loads(line)
            if row.get("kind") == HELD_OUT and row["tokens"]:
                yield row


def _require_alike(first: Losses, second: Losses) -> None:
    """Raise InputError unless the rows are the same, read alike, and held out from both."""
    one, other = first.run, second.run
    names = f"{one.id} and {other.id}"
    if _data(one) != _data(other):
        raise InputError(f"{names}: were evaluated on different data, so their rows are no pairs")
    for key, default in (("template", templates.CHAT), ("eval_fraction", 0.1), ("seed", 0)):
        values = [run.recipe.get(key, default) for run in (one, other)]
        if values[0] != values[1]:
            raise InputError(f"{names}: differ in {key}, so they were not evaluated on the same rows")
    for line in first.rows.keys() & second.rows.keys():
        if first.rows[line]["tokens"] != second.rows[line]["tokens"]:
            raise InputError(
                f"{names}: their models read line {line:,} as other tokens, so losses a token are not"
                " comparable"
            )


def _data(run: Run) -> str:
    """What tells the rows of a run's evaluation apart from others: of a file of its own, or of its data."""
    path = Path((run.recipe.get(EVALUATE) or {}).get("data") or run.data)
    return datasets.kept_sha256(path) or str(path)
