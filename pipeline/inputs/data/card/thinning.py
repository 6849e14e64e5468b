"""A sample of rows, spread over all of them, even while nobody knows yet how many there are."""

from __future__ import annotations

_GOLDEN = 2654435769  # 2**32 divided by the golden ratio: its multiples lie evenly, however many are taken
_WHOLE = 1 << 32


class Thinned:
    """Which rows to take. All, until there are `most`; then half of them have to go, and so on.

    Whoever takes them says so in `count`, after it let go those that `keeps` does not keep. The same rows
    give the same sample. Where about how many are `coming` is known, and that is more than `most`, about
    `sample` are taken from the first one on: letting others go later would have cost several times as much.
    """

    def __init__(self, most: int, coming: int = 0, sample: int = 0) -> None:
        self.most = most
        self.count = 0
        self._below = _WHOLE
        if coming > most:
            self._below = (sample or most * 15 // 16) * _WHOLE // coming

    @property
    def is_all(self) -> bool:
        """Whether no row was left out."""
        return self._below == _WHOLE

    @property
    def is_full(self) -> bool:
        """Whether some have to go; from now on `keeps` says which."""
        if self.count <= self.most:
            return False
        self._below //= 2
        return True

    def keeps(self, row: int) -> bool:
        """Whether the row of that number is in the sample."""
        return row * _GOLDEN % _WHOLE < self._below

    def takes(self, row: int) -> bool:
        """`keeps`, and counts it."""
        taken = self.keeps(row)
        self.count += taken
        return taken
