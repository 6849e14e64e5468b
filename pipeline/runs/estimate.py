"""Progress and remaining time of a run: from its stages' reports, the times of earlier runs, and what its
preflight predicted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.stages.costs.cost import cost_of
from pipeline.store.run import DONE, PREFLIGHT, PUBLISH, RUNNING, Run, StageRun

# A smaller part of a stage does not predict the rest.
LEAST_PROGRESS = 0.05
# A stage that takes longer than expected is still not done.
MOST_GUESSED = 0.95


def expected(
    run: Run, earlier: Iterable[Run], predicted: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Expected seconds of the run's stages by name, without stages of which nothing is known.

    They are what the same stage took on the same model in the first of `earlier` with the same options, else
    what was `predicted`, else what it took in the first with any options. Reused stages took no time and
    don't count.
    """
    same: dict[str, float] = {}
    alike: dict[str, float] = {}
    for other in earlier:
        if other.recipe.get("model") != run.recipe.get("model"):
            continue
        for stage in run.stages:
            took = _took(other, stage.name)
            if took is None:
                continue
            alike.setdefault(stage.name, took)
            if other.stage(stage.name).options == stage.options:
                same.setdefault(stage.name, took)
    return alike | dict(predicted or {}) | same


def predicted(folder: Path) -> dict[str, float]:
    """Seconds that a run's preflight, kept in its folder, predicted for its stages; {} without one."""
    found = {}
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        for name, given in json.loads((folder / PREFLIGHT).read_text("utf-8"))["stages"].items():
            if (cost := cost_of(given)) is not None:
                found[name] = cost.seconds.likely
    return found


def progress(
    run: Run, facts: dict[str, Any], elapsed: float | None, expected: dict[str, float]
) -> dict[str, float | None]:
    """The fraction of the run that is done, and the remaining seconds.

    `facts` is the latest of the running stage, `elapsed` how long it has run. "fraction" weights stages by
    the seconds they took or are expected to take. "eta_seconds" is None if that of any stage is
    unknown; "at_least_seconds" counts those that are known.
    """
    stages = [stage for stage in run.stages if stage.kind != PUBLISH]
    parts = [_part(stage, facts, elapsed, expected.get(stage.name)) for stage in stages]
    known = [takes for takes, _, _ in parts if takes is not None]
    usual = mean(known) if known else 1.0
    weights = [usual if takes is None else takes for takes, _, _ in parts]
    done = sum(weight * share for weight, (_, share, _) in zip(weights, parts, strict=True))
    left = [seconds for _, _, seconds in parts]
    at_least = sum(seconds for seconds in left if seconds is not None)
    return {
        "fraction": done / sum(weights) if sum(weights) else 0.0,
        "eta_seconds": None if None in left else at_least,
        "at_least_seconds": at_least,
    }


def _part(
    stage: StageRun, facts: dict[str, Any], elapsed: float | None, usual: float | None
) -> tuple[float | None, float, float | None]:
    """For one stage: its seconds, the fraction that is done, and the remaining seconds."""
    if stage.status == DONE:
        return stage.seconds or 0.0, 1.0, 0.0
    if stage.status != RUNNING:
        return usual, 0.0, usual
    said = _number(facts.get("progress")) or 0.0
    left = _left(facts, said, elapsed, usual)
    takes = usual if left is None or elapsed is None else elapsed + left
    share = said or (min(elapsed / takes, MOST_GUESSED) if elapsed and takes else 0.0)
    return takes, min(max(share, 0.0), 1.0), left


def _left(facts: dict[str, Any], said: float, elapsed: float | None, usual: float | None) -> float | None:
    """Remaining seconds of the running stage: as it reports, by its usual time, or by its speed so far."""
    eta = _number(facts.get("eta_seconds"))
    if eta is not None:
        return max(eta, 0.0)
    if elapsed is not None and usual is not None and elapsed < usual:
        return usual - elapsed
    if elapsed is not None and said >= LEAST_PROGRESS:
        return elapsed * (1 - min(said, 1.0)) / said
    return None


def _took(run: Run, stage: str) -> float | None:
    for found in run.stages:
        if found.name == stage and found.status == DONE and not found.reused:
            return found.seconds
    return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
