"""A set of rows by their numbers: a bit each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_BITS = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


class Bits:
    """Numbers from 0 on, each in it or not."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)

    def add(self, number: int) -> None:
        """Put a number into it."""
        at = number >> 3
        if at >= len(self._data):
            self._data.extend(bytes(at + 1 - len(self._data)))
        self._data[at] |= 1 << (number & 7)

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        at = number >> 3
        return at < len(self._data) and bool(self._data[at] >> (number & 7) & 1)

    def __len__(self) -> int:
        return int.from_bytes(self._data, "little").bit_count()

    def __bool__(self) -> bool:
        return any(self._data)

    def without(self, other: Bits) -> Bits:
        """Those that are not in another one."""
        ours, theirs = (int.from_bytes(bits._data, "little") for bits in (self, other))
        return Bits((ours & ~theirs).to_bytes(len(self._data), "little"))

    def others(self, count: int) -> Bits:
        """The numbers below `count` that are not in it."""
        return Bits(((1 << count) - 1).to_bytes((count + 7) >> 3, "little")).without(self)

    def numbers(self, start: int = 0, stop: int | None = None) -> Iterator[int]:
        """Those from `start`, a multiple of 8, and below `stop`, ascending."""
        data = self._data
        end = len(data) if stop is None else min(len(data), (stop + 7) >> 3)
        return (8 * at + bit for at in range(start >> 3, end) if data[at] for bit in _BITS[data[at]])

    def __getitem__(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Which of some numbers are in it, as truths."""
        import numpy as np

        data = np.frombuffer(bytes(self._data) + b"\0", np.uint8)
        at = np.minimum(numbers >> 3, len(data) - 1)
        found: np.ndarray[Any, Any] = (data[at] >> (numbers & 7).astype(np.uint8) & 1).astype(bool)
        return found
