"""How often a verdict's interval holds what is true, and how often it is false where nothing is better.

    python -m benchmarks.verdict [--simulations 2000] [--grouped | --claims]

Differences of paired rows are drawn from shapes whose mean is known. `covers` is the share of 95 % intervals
that hold the mean; `false` the share of verdicts "better" or "worse" where the mean is 0. Of the last shape,
and of the centred log-normal one, sides cannot be swapped, which is what the exact tests suppose.
A second table is of the interval in the sentence, "62 % less loss (58–65)": pairs of losses are drawn whose
means are known, and `covers` is the share of intervals that hold the ratio of these, less 1.

`--grouped`: of more than 10,000 rows groups are drawn (`paired.MOST_DRAWN`); here 2,000 rows in 400 groups,
as many rows a group as 50,000 in 10,000, and less near to normal than those.

`--claims`: how often anything is claimed beside a verdict where nothing differs (`evaluation.secondary`): of
general text, both sides against float, four metrics and two checks of answers, and learning by heart; with as
many answers and training rows as held-out rows. `each alone` is without the correction for being several.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from pipeline.evaluation import against, paired, secondary, verdict, words
from pipeline.evaluation.verdict import Metric, Pair

ROWS = (14, 40, 200)
BLOCKS = 12  # of general text
GROUPED, GROUPS = 2_000, 400
SEED = 7
Shape = Callable[[np.random.Generator, int], Any]
Drawn = TypeVar("Drawn")
SKEW = 0.8


def _normal(random: np.random.Generator, rows: int) -> Any:
    return random.normal(size=rows)


def _log_normal(random: np.random.Generator, rows: int) -> Any:
    return np.exp(SKEW * random.normal(size=rows)) - math.exp(SKEW**2 / 2)


def _two_sided(random: np.random.Generator, rows: int) -> Any:
    return np.exp(SKEW * random.normal(size=rows)) * random.choice([-1.0, 1.0], rows)


def _student(random: np.random.Generator, rows: int) -> Any:
    return random.standard_t(3, rows)


def _cauchy(random: np.random.Generator, rows: int) -> Any:
    return random.standard_cauchy(rows)


def _tenth(random: np.random.Generator, rows: int) -> Any:
    return random.normal(size=rows) * np.where(random.random(rows) < 0.1, 10, 1)


def _mostly_equal(random: np.random.Generator, rows: int) -> Any:
    return np.where(random.random(rows) < 0.5, 0, random.normal(size=rows))


def _tenth_one_sided(random: np.random.Generator, rows: int) -> Any:
    return random.normal(size=rows) + 5.0 * (random.random(rows) < 0.1) - 0.5


SHAPES: dict[str, Shape] = {
    "normal": _normal,
    "log-normal (s = 0.8), centred": _log_normal,
    "log-normal (s = 0.8), either sign": _two_sided,
    "Student's t, 3 degrees": _student,
    "Cauchy": _cauchy,
    "a tenth ten times as far": _tenth,
    "half of the rows equal": _mostly_equal,
    "a tenth far, to one side": _tenth_one_sided,
}
NO_MEAN = ("Cauchy",)
Losses = Callable[[np.random.Generator, int], tuple[Any, Any, float]]  # base, other, true share
LEFT = 0.4  # of the base's mean loss


def _normal_losses(random: np.random.Generator, rows: int) -> tuple[Any, Any, float]:
    return random.normal(4.4, 0.8, rows), random.normal(4.4 * LEFT, 0.5, rows), LEFT - 1


def _follows(random: np.random.Generator, rows: int) -> tuple[Any, Any, float]:
    base = random.normal(4.4, 0.8, rows)
    return base, LEFT * base + random.normal(0, 0.2, rows), LEFT - 1


def _log_normal_losses(random: np.random.Generator, rows: int) -> tuple[Any, Any, float]:
    base, other = np.exp(SKEW * random.normal(size=(2, rows)))
    return base, LEFT * other, LEFT - 1


def _log_normal_follows(random: np.random.Generator, rows: int) -> tuple[Any, Any, float]:
    first, second = random.normal(size=(2, rows))
    return np.exp(SKEW * first), LEFT * np.exp(SKEW * (0.7 * first + math.sqrt(0.51) * second)), LEFT - 1


def _log_normal_other(random: np.random.Generator, rows: int) -> tuple[Any, Any, float]:
    other = np.exp(SKEW * random.normal(size=rows) - SKEW**2 / 2)
    return random.normal(4.4, 0.5, rows), 4.4 * LEFT * other, LEFT - 1


LOSSES: dict[str, Losses] = {
    "normal": _normal_losses,
    "normal, the adapter's follow the base's": _follows,
    "log-normal (s = 0.8)": _log_normal_losses,
    "log-normal (s = 0.8), correlated by 0.7": _log_normal_follows,
    "normal of the base, log-normal (s = 0.8) of the adapter": _log_normal_other,
}


def covers(shape: Shape, rows: int, simulations: int) -> float:
    """The share of intervals that hold the mean, which is 0."""
    random = np.random.default_rng([SEED, rows])
    held = 0
    for _ in range(simulations):
        low, high = paired.interval(shape(random, rows))
        held += low <= 0 <= high
    return held / simulations


def share_covers(losses: Losses, rows: int, simulations: int) -> float:
    """The share of sentences' intervals that hold the true share of loss more or less."""
    random = np.random.default_rng([SEED, rows])
    held = 0
    for _ in range(simulations):
        base, other, share = losses(random, rows)
        found = paired.share_interval(base, other)
        held += found is not None and found[0] <= share <= found[1]
    return held / simulations


def false_verdicts(shape: Shape, rows: int, simulations: int) -> float:
    """The share of verdicts that name a better side where there is none."""
    random = np.random.default_rng([SEED, rows])
    told = 0
    for _ in range(simulations):
        base = random.normal(4.0, 0.5, rows)
        told += verdict.judge(verdict.LOSS, base, base + shape(random, rows)).outcome != verdict.CANNOT_TELL
    return told / simulations


def claims(shape: Shape, random: np.random.Generator, rows: int) -> dict[str, tuple[Metric, Pair]]:
    """All comparisons beside a verdict, of sides that do not differ. Metrics of answers go together."""
    exact = random.normal(4.0, 0.5, rows)
    blocks = random.normal(4.0, 0.3, BLOCKS)
    found: dict[str, tuple[Metric, Pair]] = {
        "general": (words.GENERAL, (blocks, blocks + 0.05 * shape(random, BLOCKS))),
        "float_base": (against.LOSS, (exact, exact + shape(random, rows))),
        "float_adapter": (against.LOSS, (exact, exact + shape(random, rows))),
    }
    good = [random.random(rows) for _ in range(2)]
    for number in range(4):
        near = tuple((side + random.random(rows)) / 2 for side in good)
        found[f"near_{number}"] = Metric(f"near_{number}", "token F1"), (near[0], near[1])
    for number in range(2):
        passed = tuple((random.random(rows) < 0.5).astype(float) for _ in range(2))
        found[f"check_{number}"] = Metric(f"check_{number}", "share that passes"), (passed[0], passed[1])
    return found


def false_claims(shape: Shape, rows: int, simulations: int, alone: bool = False) -> float:
    """The share of evaluations that claim anything beside their verdict; `alone` tests each on its own."""
    random = np.random.default_rng([SEED, rows])
    told = 0
    for _ in range(simulations):
        pairs = claims(shape, random, rows)
        trained, held_out = np.exp(SKEW * random.normal(size=(2, rows)))
        if alone:
            found = [secondary.judge({name: pair}) for name, pair in pairs.items()]
            found.append(secondary.judge({}, trained, held_out))
        else:
            found = [secondary.judge(pairs, trained, held_out)]
        outcomes = {judged.outcome for one in found for judged in one.verdicts.values()} | {
            verdict.CANNOT_TELL
        }
        told += any(one.memorized for one in found) or outcomes != {verdict.CANNOT_TELL}
    return told / simulations


def _table(heads: list[str], cells: Callable[[str, Shape], list[str]]) -> None:
    _rows("differences", heads, SHAPES, cells)


def _rows(
    of: str, heads: list[str], shapes: Mapping[str, Drawn], cells: Callable[[str, Drawn], list[str]]
) -> None:
    print(f"| {of} | {' | '.join(heads)} |")
    print(f"| {' | '.join(['---'] * (len(heads) + 1))} |")
    for name, shape in shapes.items():
        print(f"| {' | '.join([name, *cells(name, shape)])} |", flush=True)


def _covered(name: str, shape: Shape, rows: int, simulations: int) -> str:
    return "–" if name in NO_MEAN else f"{covers(shape, rows, simulations):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=2000, help="of each shape and number of rows")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--grouped", action="store_true", help="of more rows than are drawn one by one")
    which.add_argument("--claims", action="store_true", help="of all that is said beside a verdict")
    args = parser.parse_args()
    many = args.simulations
    if args.grouped:
        paired.MOST_DRAWN = GROUPS
        heads = [f"{what}, {GROUPED:,} rows in {GROUPS} groups" for what in ("covers", "false")]
        _table(heads, lambda name, shape: [
            _covered(name, shape, GROUPED, many), f"{false_verdicts(shape, GROUPED, many):.3f}"
        ])  # fmt: skip
        return
    if args.claims:
        heads = [f"any claim, {n} rows" for n in ROWS[:2]] + [f"each alone, {n} rows" for n in ROWS[:2]]
        _table(heads, lambda _, shape: [
            f"{false_claims(shape, n, many, alone):.3f}" for alone in (False, True) for n in ROWS[:2]
        ])  # fmt: skip
        return
    heads = [f"{what}, {rows} rows" for what in ("covers", "false") for rows in ROWS]
    _table(heads, lambda name, shape: [
        *(_covered(name, shape, n, many) for n in ROWS),
        *(f"{false_verdicts(shape, n, many):.3f}" for n in ROWS),
    ])  # fmt: skip
    print()
    heads = [f"covers, {rows} rows" for rows in ROWS]
    _rows("losses", heads, LOSSES, lambda _, drawn: [f"{share_covers(drawn, n, many):.3f}" for n in ROWS])


if __name__ == "__main__":
    main()
