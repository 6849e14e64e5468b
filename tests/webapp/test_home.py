"""Runs by the ids a browser sends."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError
from pipeline.store import Store, history
from pipeline.store.run import Run
from webapp.home import known_run


def test_only_whole_ids_are_known_and_none_is_looked_for(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(history, "_named")  # what reads the ids of all runs
    assert known_run(finished.id, store) == finished
    for part in (finished.id[0], finished.id[:-1], finished.id[-6:], "%", "2"):
        with pytest.raises(InputError, match="no such run"):
            known_run(part, store)
