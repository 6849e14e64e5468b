"""The store of the home that this process serves, and its runs by the ids a browser sends."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pipeline import settings
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.store.run import Run

LONGEST_ID = 100


def store() -> Store:
    """The store of `settings.home()`, checked completely and opened once."""
    return _open(settings.home())


def known_run(named: object, among: Store | None = None) -> Run:
    """The run of exactly that id, deleted or not; abbreviations are for the command line.

    Every run id from a browser is looked up here. Raises InputError.
    """
    if not isinstance(named, str) or not named:
        raise InputError("run: choose a run from the list")
    if len(named) > LONGEST_ID or not named.isprintable():
        raise InputError("run: this is not the id of a run")
    return (among or store()).get(named, whole=True)


@lru_cache(maxsize=8)
def _open(home: Path) -> Store:
    return Store(home, check=True)
