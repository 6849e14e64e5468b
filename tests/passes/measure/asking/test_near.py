"""Metrics of answers of several adapters, and what is claimed of each."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.evaluation import secondary
from pipeline.passes.measure.asking.near import Near

pytestmark = pytest.mark.chain  # chrF is torchmetrics'
ROWS = 12


def answered(**texts: str) -> list[dict[str, Any]]:
    """Rows whose expected answer is "a b c d NUMBER", with the texts as answers of these sides."""
    side = {"tokens": 3, "cut": False}
    return [
        {"expected": f"a b c d {n}"} | {name: {"text": f"{text} {n}", **side} for name, text in texts.items()}
        for n in range(ROWS)
    ]


def test_each_adapter_has_metrics_and_verdicts_of_its_own() -> None:
    """Also where the name of one ends as that of a metric of another does."""
    rows = answered(
        base="x x x x", adapter="x x x x", **{"adapter fr": "a b c d", "adapter fr chrf": "x x y y"}
    )
    near = Near.of(rows, ["adapter fr", "adapter fr chrf"], "contains: a b")
    near.put(secondary.judge(near.claims), {"base": 0.0, "adapter fr": 0.5})
    found = near.beside({"fr": {"verdict": {}}, "fr chrf": {}, "wide": {"verdict": {}}})
    assert found["wide"] == {"verdict": {}}
    outcomes = {
        name: told["answers"]["rouge_l"]["verdict"]["outcome"]
        for name, told in found.items()
        if "answers" in told
    }
    assert outcomes == {"fr": "better", "fr chrf": "cannot_tell"}
    assert near.own["rouge_l"]["verdict"]["outcome"] == "cannot_tell"
    assert found["fr"]["answers"]["checks"][0]["adapter"] == 1
    assert found["fr"]["answers"]["verbatim"] == {"base": 0.0, "adapter": 0.5}
    assert near.own["verbatim"] == {"base": 0.0}
    assert rows[0]["adapter fr"]["nearness"]["exact_match"] == 1


def test_where_nothing_was_asked_nothing_is_told() -> None:
    near = Near.of([], ["adapter fr"], "")
    near.put(secondary.judge(near.claims), {})
    assert near.beside({"fr": {"verdict": {}}}) == {"fr": {"verdict": {}}}
    assert near.own == {}
