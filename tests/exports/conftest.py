"""A small script in the place of the inference process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.exports.chat import chat_processes
from tests.helpers.inference import SCRIPT


@pytest.fixture
def process(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(start: str = "say(ready=True)") -> None:
        script = tmp_path / "process"
        script.write_text(SCRIPT.format(python=sys.executable, start=start))
        script.chmod(0o700)
        monkeypatch.setattr("pipeline.settings.python", lambda: str(script))

    monkeypatch.setattr(chat_processes, "_servers", {})
    monkeypatch.setattr(chat_processes, "_starting", asyncio.Lock())
    monkeypatch.setattr(chat_processes, "_starting_slowly", asyncio.Lock())
    monkeypatch.setattr(chat_processes, "_slow", {})
    install()
    return install
