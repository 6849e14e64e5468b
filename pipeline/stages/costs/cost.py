"""What a stage may take, as ranges, and what is known of the rows it works on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """From the least to the most that is expected, and what is most likely."""

    low: float
    likely: float
    high: float

    @classmethod
    def around(cls, likely: float, below: float, above: float) -> Range:
        """A range that reaches so much below and above, as fractions."""
        return cls(likely * (1 - below), likely, likely * (1 + above))

    def times(self, factor: float) -> Range:
        """The range, scaled."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)

    def plus(self, other: Range) -> Range:
        """Both together."""
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def to_list(self) -> list[float]:
        """As JSON has it: low, likely, high."""
        return [self.low, self.likely, self.high]


def weighed(parts: Mapping[str, float], factors: Mapping[str, float]) -> float:
    """The sum of all parts, each with its factor."""
    return sum(value * factors[name] for name, value in parts.items())


def range_of(given: Any) -> Range | None:
    """What `to_list` gave; None for anything else."""
    if not isinstance(given, list) or len(given) != 3:
        return None
    numbers = [float(x) for x in given if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if len(numbers) != 3 or not all(math.isfinite(x) and x >= 0 for x in numbers):
        return None
    return Range(*numbers)


# How far ranges reach below and above what is likely, as fractions.
MEMORY_WIDTH, GPU_WIDTH, DISK_WIDTH, SECONDS_WIDTH = (0.1, 0.035), (0.1, 0.05), (0.1, 0.1), (0.3, 0.3)


@dataclass(frozen=True)
class Cost:
    """What a stage takes: bytes of main memory, on the GPU (None on a CPU), on the disk; and seconds."""

    memory: Range
    gpu_memory: Range | None
    disk: Range
    seconds: Range

    @classmethod
    def of(
        cls,
        memory: float,
        gpu_memory: float | None,
        disk: float,
        seconds: float,
        width: tuple[float, float] = MEMORY_WIDTH,
    ) -> Cost:
        """The usual ranges around what is likely; how wide they are follows from `benchmarks/RESULTS.md`."""
        return cls(
            Range.around(memory, *width),
            Range.around(gpu_memory, *GPU_WIDTH) if gpu_memory is not None else None,
            Range.around(disk, *DISK_WIDTH),
            Range.around(seconds, *SECONDS_WIDTH),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        gpu = self.gpu_memory.to_list() if self.gpu_memory else None
        return {
            "memory": self.memory.to_list(), "gpu_memory": gpu,
            "disk": self.disk.to_list(), "seconds": self.seconds.to_list(),
        }  # fmt: skip


def cost_of(given: Any) -> Cost | None:
    """What `Cost.to_dict` gave; None for anything else."""
    if not isinstance(given, Mapping):
        return None
    memory, disk, seconds = (range_of(given.get(name)) for name in ("memory", "disk", "seconds"))
    if memory is None or disk is None or seconds is None:
        return None
    return Cost(memory, range_of(given.get("gpu_memory")), disk, seconds)


@dataclass(frozen=True)
class Rows:
    """A dataset, in tokens of the model.

    train, held_out  rows
    mean, most       tokens of a row: on average, and of the longest one
    answer           the share of tokens that are the answer's
    counted          False: these are guesses
    """

    train: int
    held_out: int
    mean: float
    most: float
    answer: float = 0.5
    counted: bool = True
