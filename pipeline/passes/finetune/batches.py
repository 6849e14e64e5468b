"""Which rows are in which batch, and which part of a step's rows is whose."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

LENGTH_POOL = 16  # batches shuffled together before rows are grouped by length


class LikeLengths(Sampler[int]):
    """Row indices in an order that puts rows of similar length into a batch, different in every epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate; a resumed run thus draws the same batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        shuffler = random.Random(f"{self.seed}:{self.epoch}")  # noqa: S311 - a shuffle, not a secret
        order = list(range(len(self.lengths)))
        shuffler.shuffle(order)
        pool = self.batch_size * LENGTH_POOL
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda i: self.lengths[i])
            batches = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            shuffler.shuffle(batches)
            yield from (index for batch in batches for index in batch)


class Shares(Sampler[list[int]]):
    """The batches of one of several processes, which together have each step's rows.

    A step has as many batches as it would have in one process, and no more rows in any; where they are fewer
    rows, the last ones are empty.
    """

    def __init__(self, rows: LikeLengths, accumulation: int, rank: int, ranks: int) -> None:
        self.rows = rows
        self.batch_size = rows.batch_size  # accelerate asks for it
        self.accumulation = accumulation
        self.rank, self.ranks = rank, ranks

    def set_epoch(self, epoch: int) -> None:
        """As of `LikeLengths`."""
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order, size = list(self.rows), self.batch_size
        for start in range(0, len(order), size * self.accumulation):
            step = order[start : start + size * self.accumulation]
            mine = share(step, self.rows.lengths, self.rank, self.ranks)
            yield from (mine[size * n : size * (n + 1)] for n in range(math.ceil(len(step) / size)))


def share(rows: Sequence[int], lengths: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The rows of one of `ranks` processes: of each as many, give or take one, and as long, by length.

    The longest go to the processes in turn, there and back.
    """
    order = sorted(rows, key=lambda row: -lengths[row])
    turns = [*range(ranks), *reversed(range(ranks))]
    return [row for place, row in enumerate(order) if turns[place % len(turns)] == rank]
