"""The store of the home this process serves."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pipeline import settings
from pipeline.store import Store


def store() -> Store:
    """The store of `settings.home()`, looked at as a whole and opened once."""
    return _open(settings.home())


@lru_cache(maxsize=8)
def _open(home: Path) -> Store:
    return Store(home, check=True)
