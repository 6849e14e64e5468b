from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import events
from pipeline.stages.context import Context
from tests.helpers import tiny
from tests.helpers.carry import context_of


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A stage's context with a tiny llama."""
    return context_of(tmp_path, tiny.build("llama", tmp_path / "model"))


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """The events written so far."""
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv("OLIVE_LAB_EVENTS", str(file))
    return lambda: events.read(file)[0]
