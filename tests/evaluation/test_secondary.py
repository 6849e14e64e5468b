"""What is claimed beside a verdict holds together."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import verdict as simulated
from pipeline.evaluation import secondary
from pipeline.evaluation.fewest import LEAST_ROWS
from pipeline.evaluation.verdict import Metric

SIMULATIONS = 60


@pytest.mark.parametrize("shape", ["normal", "log-normal (s = 0.8), centred"])
def test_where_nothing_differs_hardly_ever_anything_is_claimed(shape: str) -> None:
    """Each on its own, more than one in ten evaluations would."""
    found = simulated.false_claims(simulated.SHAPES[shape], 20, SIMULATIONS)
    assert found <= 0.05
    alone = simulated.false_claims(simulated.SHAPES[shape], 20, SIMULATIONS // 2, alone=True)
    assert alone > 0.1


def test_what_is_far_apart_is_claimed_all_the_same() -> None:
    random = np.random.default_rng(0)
    exact = random.normal(4.0, 0.5, 20)
    pairs = {
        str(n): (Metric(str(n), "token F1"), (exact, exact + random.normal(1, 0.2, 20))) for n in range(9)
    }
    told = secondary.judge(pairs, exact - 3, exact)
    assert {verdict.outcome for verdict in told.verdicts.values()} == {"better"}
    assert told.memorized


def test_comparisons_that_can_tell_nothing_cost_the_others_nothing() -> None:
    """Three prompts are answered by default: their metrics are no tests."""
    few = {str(n): (Metric(str(n), "token F1"), ([0.0] * 3, [1.0] * 3)) for n in range(20)}
    blocks = np.full(12, 4.0)
    worse = blocks + np.r_[-0.01, np.arange(11) / 100 + 0.1]
    general = {"general": (Metric("general", "loss", less_is_better=True), (blocks, worse))}
    assert secondary.judge({**few, **general}).verdicts["general"].outcome == "worse"
    enough = {str(n): (Metric(str(n), "token F1"), (exact := [0.0, 1.0] * 6, exact[::-1])) for n in range(20)}
    assert secondary.judge({**enough, **general}).verdicts["general"].outcome == "cannot_tell"


def test_rows_are_known_by_heart_only_beyond_chance() -> None:
    random = np.random.default_rng(1)
    held_out = random.normal(3.0, 0.5, 40)
    assert not secondary.judge({}, random.normal(3.0, 0.5, 40), held_out).memorized
    assert secondary.judge({}, random.normal(2.0, 0.5, 40), held_out).memorized
    assert not secondary.judge({}, held_out + 1, held_out).memorized
    low = np.zeros(LEAST_ROWS)
    assert secondary.judge({}, low, low + 1).memorized
    assert not secondary.judge({}, low[1:], low + 1).memorized
    assert not secondary.judge({}, [*low, np.nan], low + 1).memorized
    assert not secondary.judge({}).memorized
