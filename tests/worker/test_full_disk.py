"""Store, worker and child on a file system of 2 MB that gets full, which takes the right to mount one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.store.run import DONE, FAILED
from tests.helpers.lab import CHILDREN, mounting

FULL = "The disk is full; free some space in the home folder and retry."
IN_A_SMALL_ROOM = """
set -e
mount -t tmpfs -o size=2m,mode=700 tmpfs "$1"
exec "$2" "$3" full_disk "$1" "$4"
"""


@pytest.mark.parametrize(
    ("stage", "room"),
    [
        *((stage, "for the result") for stage in ("quantize", "finetune", "optimize", "evaluate", "score")),
        *(("publish", room) for room in ("for the result", "for nothing")),
        ("finetune", "for nothing"),
    ],
)
def test_nothing_is_left_half_written_and_a_retry_is_done(
    tmp_path: Path, recipe_file: Path, stage: str, room: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [*mounting(), "sh", "-c", IN_A_SMALL_ROOM, "sh", home, sys.executable, CHILDREN, recipe_file],
        env=settings.child_environment(OLIVE_LAB_HOME=str(home), GREEDY=room, FULL=stage),
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    faults, error = facts.pop("faults"), facts.pop("error")
    assert facts == {"status": FAILED, "half": [], "retried": DONE, "run": DONE}
    # The store cannot be used then either; the worker tries again until it can.
    assert all("check that its disk has space" in fault for fault in faults)
    assert error == FULL or (room == "for nothing" and "check that its disk has space" in error)
    assert faults or room == "for the result"
