"""A home that cannot be written any more: a disk the kernel has made read-only, say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import settings
from tests.helpers.lab import mounting

# In a mount namespace of its own, which takes the right to mount.
READ_ONLY = """
set -e
mount -t tmpfs -o size=8m,mode=700 tmpfs "$1"
if [ "$4" = used ]; then OLIVE_LAB_HOME="$1" "$2" -m pipeline list > /dev/null; fi
mount -o remount,ro "$1"
shift 1; python=$1; recipe=$2; shift 3
exec "$python" -m "$@"
"""


@pytest.mark.parametrize("before", ["used", "new"])
@pytest.mark.parametrize("verb", ["list", "submit", "webapp"])
def test_one_sentence_says_what_to_do(tmp_path: Path, recipe_file: Path, verb: str, before: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    given = {
        "list": ["pipeline", "list"],
        "submit": ["pipeline", "submit", str(recipe_file)],
        "webapp": ["webapp", "--port", "0"],
    }[verb]
    done = subprocess.run(
        [*mounting(), "sh", "-c", READ_ONLY, "sh", home, sys.executable, recipe_file, before, *given],
        env=settings.child_environment(OLIVE_LAB_HOME=str(home)), cwd=settings.ROOT,
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert str(home) in sentence
    assert "writable" in sentence
    assert "OLIVE_LAB_HOME" in sentence
