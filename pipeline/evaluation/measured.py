"""Losses row by row, for as many rows as there are: numbers in columns, about 40 bytes a row."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Loss of one row by side: in nats, added up over `tokens`. `line` is its line in the dataset."""

    line: int
    tokens: int
    totals: dict[str, float]

    def mean(self, side: str) -> float:
        """Nats a token. Raises ZeroDivisionError if there is none."""
        return self.totals[side] / self.tokens


def read(entry: Mapping[str, Any]) -> Measured:
    """A line of rows.jsonl; null is a loss that is no number. Raises KeyError, TypeError for any other."""
    totals = {
        name: float("nan") if total is None else float(total)
        for name, total in entry.items()
        if name not in ("kind", "line", "tokens")
    }
    return Measured(entry["line"], entry["tokens"], totals)


class MeasuredRows:
    """Rows in the order of their lines, each line once. All have the same sides."""

    def __init__(self, rows: Iterable[Measured] = ()) -> None:
        self.lines = array("q")
        self.tokens = array("q")
        self._totals: dict[str, array[float]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Measured) -> None:
        """One more row, or another loss of one that is there. Raises KeyError if it has other sides."""
        at = len(self.lines) if not self.lines or row.line > self.lines[-1] else self._place(row.line)
        if not self.lines:
            self._totals = {side: array("d") for side in row.totals}
        if row.totals.keys() != self._totals.keys():
            raise KeyError(f"line {row.line} has the sides {', '.join(row.totals)}")
        stop = at + (at < len(self.lines) and self.lines[at] == row.line)
        self.lines[at:stop] = array("q", [row.line])
        self.tokens[at:stop] = array("q", [row.tokens])
        for side, total in row.totals.items():
            self._totals[side][at:stop] = array("d", [total])

    def find(self, line: int) -> Measured | None:
        """The row of a line."""
        at = self._place(line)
        return self._at(at) if at < len(self.lines) and self.lines[at] == line else None

    def means(self, side: str) -> Floats:
        """Nats a token of each row, float64 [rows]; not a number for a row without tokens."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self._totals[side], np.float64) / np.asarray(self.tokens, np.float64)

    def row_mean(self, side: str) -> float:
        """The mean of `means`: each row counts once, as in a verdict; not a number if there are none."""
        return float(self.means(side).mean()) if len(self) else float("nan")

    def token_mean(self, side: str) -> float:
        """Nats a token of all rows together: each token counts once, as in perplexity; not a number if there
        are none."""
        tokens = sum(self.tokens)
        return float(np.sum(np.asarray(self._totals[side], np.float64))) / tokens if tokens else float("nan")

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the sides; () without rows."""
        return tuple(self._totals)

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Measured]:
        return map(self._at, range(len(self.lines)))

    def _at(self, at: int) -> Measured:
        totals = {side: totals[at] for side, totals in self._totals.items()}
        return Measured(self.lines[at], self.tokens[at], totals)

    def _place(self, line: int) -> int:
        return bisect_left(self.lines, line)
