"""What earlier stages in this home really took, and what was predicted for them.

A home's `runs/<id>/<stage>/cost.json` has both. The next predictions are corrected by how far these were off,
and where the very same stage has run before, by what it took.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from pipeline.stages.costs.cost import Cost, Range, cost_of
from pipeline.store import Store
from pipeline.store.run import COST, DONE, Run

MOST_RUNS = 100  # the newest, that are read
MOST_STAGES = 20  # of each kind, that count
DOUBT = 3  # as many stages that were predicted exactly are assumed, so that one alone changes little
WIDEST = 4.0  # corrections beyond this are no corrections
SAME = 0.1  # how far a stage that ran before may differ, as a fraction


@dataclass(frozen=True)
class Past:
    """A stage that ran: predicted and measured, and the run it was of."""

    stage: str
    options: Mapping[str, Any]
    model: str
    data: str
    predicted: Cost | None
    measured: Mapping[str, float]


def stages(store: Store) -> list[Past]:
    """The stages of the newest runs that have a record, newest first."""
    return [past for run in store.list(MOST_RUNS) for past in _of_run(store, run)]


def _of_run(store: Store, run: Run) -> list[Past]:
    found = []
    for stage in run.stages:
        if stage.status != DONE or stage.reused:
            continue
        with suppress(OSError, ValueError):
            kept = json.loads((store.folder(run.id, stage.name) / COST).read_text("utf-8"))
            if isinstance(kept, dict) and (measured := _numbers(kept.get("measured"))):
                about = str(run.recipe.get("model")), run.data
                found.append(
                    Past(stage.name, stage.options, *about, cost_of(kept.get("predicted")), measured)
                )
    return found


def _numbers(given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in given.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    }


def ratios(past: Sequence[Past], stage: str, what: str) -> list[float]:
    """Measured by predicted, of the newest stages of a name."""
    found = []
    for one in past:
        predicted = getattr(one.predicted, what, None) if one.stage == stage else None
        if isinstance(predicted, Range) and predicted.likely > 0 and what in one.measured:
            found.append(one.measured[what] / predicted.likely)
    return found[:MOST_STAGES]


def correction(found: Sequence[float]) -> float:
    """What to multiply predictions by: the mean of logarithms, with some doubt."""
    logs = [math.log(min(max(ratio, 1 / WIDEST), WIDEST)) for ratio in found]
    return math.exp(sum(logs) / (len(logs) + DOUBT))


def corrected(cost: Cost, past: Sequence[Past], stage: str) -> Cost:
    """A prediction, by what earlier stages of the name took: memory is never predicted to be less for it."""
    memory = max(1.0, correction(ratios(past, stage, "memory")))
    gpu = max(1.0, correction(ratios(past, stage, "gpu_memory")))
    return replace(
        cost,
        memory=cost.memory.times(memory),
        gpu_memory=cost.gpu_memory.times(gpu) if cost.gpu_memory else None,
        seconds=cost.seconds.times(correction(ratios(past, stage, "seconds"))),
    )


def same(past: Sequence[Past], stage: str, options: Mapping[str, Any], model: str, data: str) -> Past | None:
    """The newest stage that had the same options, model and data."""
    for one in past:
        if (one.stage, one.model, one.data) == (stage, model, data) and dict(one.options) == dict(options):
            return one
    return None


def like(cost: Cost, before: Past) -> Cost:
    """What was predicted, replaced by what the same stage took before."""
    found = {
        what: Range.around(before.measured[what], SAME, SAME / 2)
        for what in ("memory", "gpu_memory", "disk")
        if what in before.measured
    }
    if "seconds" in before.measured:
        found["seconds"] = Range.around(before.measured["seconds"], 0.25, 0.25)
    return replace(cost, **found)


def errors(past: Sequence[Past]) -> dict[str, dict[str, Any]]:
    """How far predictions were off so far, for each stage: how many stages, and for memory and seconds the
    median of |measured - likely| / measured."""
    told: dict[str, dict[str, Any]] = {}
    for stage in dict.fromkeys(one.stage for one in past):
        rows = {what: ratios(past, stage, what) for what in ("memory", "gpu_memory", "seconds")}
        off = {what: median(abs(1 - 1 / ratio) for ratio in found) for what, found in rows.items() if found}
        if off:
            told[stage] = {"stages": max(len(found) for found in rows.values()), **off}
    return told
