from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.system import clock


def test_a_mark_of_another_process_tells_how_long_ago_it_was() -> None:
    code = "import json; from pipeline.system import clock; print(json.dumps(clock.mark()))"
    before = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=settings.ROOT, check=True,
    )  # fmt: skip
    passed = clock.since(json.loads(told.stdout))
    assert passed is not None
    assert 0 <= passed <= time.monotonic() - before


def test_setting_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = clock.mark()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    passed = clock.since(made)
    assert passed is not None
    assert 0 <= passed < 60


def test_after_another_start_of_the_machine_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = clock.mark()
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(clock, "BOOT", tmp_path / "boot_id")
    assert clock.since(made) is None
    assert clock.since(None) is None
    assert clock.since({}) is None
