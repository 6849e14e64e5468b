"""How often a verdict's interval holds what is true, and how often it is false where nothing is better.

    python -m benchmarks.verdict [--simulations 2000]

Differences of paired rows are drawn from shapes whose mean is known. `covers` is the share of 95 % intervals
that hold the mean; `false` the share of verdicts "better" or "worse" where the mean is 0. Of the last shape,
and of the centred log-normal one, sides cannot be swapped, which is what the exact tests suppose.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.evaluation import paired, verdict

ROWS = (14, 40, 200)
SEED = 7
Shape = Callable[[np.random.Generator, int], Any]
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


def covers(shape: Shape, rows: int, simulations: int) -> float:
    """The share of intervals that hold the mean, which is 0."""
    random = np.random.default_rng([SEED, rows])
    held = 0
    for _ in range(simulations):
        low, high = paired.interval(shape(random, rows))
        held += low <= 0 <= high
    return held / simulations


def false_verdicts(shape: Shape, rows: int, simulations: int) -> float:
    """The share of verdicts that name a better side where there is none."""
    random = np.random.default_rng([SEED, rows])
    told = 0
    for _ in range(simulations):
        base = random.normal(4.0, 0.5, rows)
        told += verdict.judge(verdict.LOSS, base, base + shape(random, rows)).outcome != verdict.CANNOT_TELL
    return told / simulations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=2000, help="of each shape and number of rows")
    args = parser.parse_args()
    heads = [f"{what}, {rows} rows" for what in ("covers", "false") for rows in ROWS]
    print(f"| differences | {' | '.join(heads)} |")
    print(f"| {' | '.join(['---'] * (len(heads) + 1))} |")
    for name, shape in SHAPES.items():
        held = ["–" if name in NO_MEAN else f"{covers(shape, n, args.simulations):.3f}" for n in ROWS]
        told = [f"{false_verdicts(shape, n, args.simulations):.3f}" for n in ROWS]
        print(f"| {' | '.join([name, *held, *told])} |", flush=True)


if __name__ == "__main__":
    main()
