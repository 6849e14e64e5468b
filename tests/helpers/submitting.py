"""A recipe that is refused when it is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.runs import submit
from pipeline.stages import recipe
from pipeline.store import Store


def problem(store: Store, path: Path, *changes: str) -> str:
    """What submitting says; nothing may be queued or written then."""
    before = sorted(store.home.rglob("*"))
    with pytest.raises(InputError) as caught:
        submit.submit(store, recipe.load(path, list(changes)))
    assert store.list() == []
    assert sorted(store.home.rglob("*")) == before
    return str(caught.value)
