"""Several ways of quantizing one model on the same rows: which suits best, each pair tested row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from pipeline.evaluation import against
from pipeline.evaluation.paired import Floats
from pipeline.evaluation.verdict import BETTER, CANNOT_TELL, WORSE, Metric, Pair, Verdict, judge_each

LOSS = Metric("loss_by_way", "loss on your rows", less_is_better=True, of_base=True)


@dataclass(frozen=True)
class Way:
    """An export quantized in one way. `exact` are the float model's losses, nats a token, float64 [rows], and
    `losses` its own on the same rows. All are finite."""

    name: str
    bytes: int
    exact: Floats
    losses: Floats


@dataclass(frozen=True)
class Best:
    """The way that suits best, in `words` against float, and those that the rows cannot tell from it."""

    way: Way
    words: str
    alike: list[Way]


def best(ways: Sequence[Way]) -> Best:
    """The smallest of the ways that no other one beats.

    A way beats another one if the paired verdict says so. All pairs, and each way against float, are tested
    together and corrected for being so many (`verdict.judge_each`), so that all that is said holds. The way
    with the least loss is never beaten, so there is always one. All ways have the same rows, and names of
    their own; there is one or more. Raises ValueError if they have other rows.
    """
    by_name = {way.name: way for way in ways}
    tested: dict[tuple[str, ...], tuple[Metric, Pair]] = {
        (one, other): (LOSS, (by_name[one].losses, by_name[other].losses))
        for one, other in combinations(by_name, 2)
    }
    tested |= {(way.name,): (against.LOSS, (way.exact, way.losses)) for way in ways}
    found = judge_each(tested)
    beaten = _beaten(found)
    left = [way for way in ways if way.name not in beaten]
    chosen = min(left, key=lambda way: (way.bytes, float(way.losses.mean())))
    alike = {name for pair in found if chosen.name in pair and found[pair].outcome == CANNOT_TELL
             for name in pair if len(pair) > 1}  # fmt: skip
    words = against.words(found[(chosen.name,)], chosen.exact, chosen.losses)
    return Best(chosen, words, [way for way in ways if way.name in alike - {chosen.name}])


def _beaten(found: Mapping[tuple[str, ...], Verdict]) -> set[str]:
    """Names of the ways that another one beats."""
    pairs = [(pair, verdict.outcome) for pair, verdict in found.items() if len(pair) > 1]
    return {pair[0] for pair, told in pairs if told == BETTER} | {
        pair[1] for pair, told in pairs if told == WORSE
    }
