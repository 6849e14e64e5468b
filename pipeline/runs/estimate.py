"""How far a run is and how long it still takes, from what its stages say and what earlier ones took."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import Any

from pipeline.store.run import DONE, PUBLISH, RUNNING, Run, StageRun

# Less of a stage says nothing about the rest of it.
LEAST_PROGRESS = 0.05
# A stage that takes longer than expected is not done for that.
MOST_GUESSED = 0.95


def expected(run: Run, earlier: Iterable[Run]) -> dict[str, float]:
    """Seconds that stages of the run may take, by name; a stage of which nothing is known is missing.

    They are what the same stage took, on the same model, in the first of `earlier` that has the same options
    too, else in the first at all. Reused stages took nothing and say nothing.
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
    return alike | same


def progress(
    run: Run, facts: dict[str, Any], elapsed: float | None, expected: dict[str, float]
) -> dict[str, float | None]:
    """How much of the run is done, and the seconds it still takes.

    `facts` is what the running stage last said, `elapsed` how long it has been at it. "fraction" weighs
    stages by the seconds they took or are expected to take. "eta_seconds" is None if that of any stage is
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
    """Of one stage: the seconds it takes, the share of them that is done, the seconds that are left."""
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
    """Seconds left of the running stage: as it says itself, as it usually takes, or as it goes on so far."""
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
