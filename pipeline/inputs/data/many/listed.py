"""A list of numbers, of which the last ones are in memory and the others on disk."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from pipeline.inputs.data.many.scratch import Scratch

PIECE = 1 << 15  # numbers


class Listed:
    """Numbers in the order in which they came; `kind` is that of an `array`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._last = array(kind)
        self._starts: list[int] = []
        self._scratch = Scratch()

    def __len__(self) -> int:
        return PIECE * len(self._starts) + len(self._last)

    def append(self, number: int) -> None:
        """Add a number. Raises LabError if the disk is full."""
        self._last.append(number)
        if len(self._last) == PIECE:
            self._starts.append(self._scratch.write(self._last.tobytes()))
            self._last = array(self._kind)

    def pieces(self) -> Iterator[array[int]]:
        """All numbers, PIECE at a time: copies, to be changed at will."""
        for start in self._starts:
            yield array(self._kind, self._scratch.read(start, PIECE * self._last.itemsize))
        if self._last:
            yield self._last[:]

    def __iter__(self) -> Iterator[int]:
        return (number for piece in self.pieces() for number in piece)
