"""Peaks of memory, of a process that really takes some."""

from __future__ import annotations

import subprocess
import sys

from pipeline import settings

CODE = """
from pipeline.system import peak_memory
taken = bytearray(300 << 20)
taken[::4096] = b"x" * len(taken[::4096])
before = peak_memory.peaks()["peak_memory_bytes"]
del taken
peak_memory.reset_peak()
after = peak_memory.peaks()
print(before, after["peak_memory_bytes"], sorted(after))
"""


def test_a_peak_is_seen_and_forgotten() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=settings.ROOT
    )
    before, after, *names = done.stdout.split(maxsplit=2)
    assert int(before) > 300 << 20
    assert int(after) < 200 << 20
    assert names == ["['peak_memory_bytes']\n"]  # without torch nothing is known of a GPU


GROUP = """
import subprocess, sys
from pipeline.system.peak_memory import GroupPeak
child = "taken = bytearray(200 << 20); taken[::4096] = b'x' * (200 << 8); print(1, flush=True); input()"
with GroupPeak() as peak:
    with subprocess.Popen([sys.executable, "-c", child], stdin=-1, stdout=-1) as process:
        process.stdout.readline()
        while peak.bytes() < 200 << 20:
            pass
        process.stdin.close()
print(peak.bytes())
"""


def test_what_a_process_has_started_counts_and_is_remembered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROUP], capture_output=True, text=True, check=True, cwd=settings.ROOT,
        start_new_session=True,
    )  # fmt: skip
    assert 200 << 20 < int(done.stdout) < 400 << 20
