"""What a stage takes of the machine, sampled for real; only nvidia-smi is a script of the test's."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.stages import events
from pipeline.system import hardware
from pipeline.worker import usage
from tests.helpers.lab import until


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The events file of a stage that is sampled a hundred times a second."""
    monkeypatch.setenv("OLIVE_LAB_EVENTS", str(tmp_path / "events.jsonl"))
    monkeypatch.setattr(usage, "SECONDS", 0.01)
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    return tmp_path / "events.jsonl"


def samples(path: Path) -> list[dict[str, float]]:
    return [event for event in events.read(path)[0] if "elapsed" in event]


def test_memory_is_told_while_the_block_runs_and_no_longer(path: Path) -> None:
    with usage.told(time.monotonic()):
        until(lambda: len(samples(path)) >= 3, "three samples")
    taken = samples(path)
    assert all(10**7 < sample["memory_bytes"] < sample["host_memory_bytes"] for sample in taken)
    assert [sample["elapsed"] for sample in taken] == sorted(sample["elapsed"] for sample in taken)
    assert all("gpu_utilization" not in sample for sample in taken)
    until(lambda: not alive(), "the end of the thread")


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "resources"]


def test_outside_a_stage_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLIVE_LAB_EVENTS", raising=False)
    with usage.told(time.monotonic()):
        assert alive() == []


def test_what_the_stage_has_started_counts_too() -> None:
    before = usage.memory()["memory_bytes"]
    code = "import sys; taken = b'x' * 100_000_000; print(len(taken), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert usage.memory()["memory_bytes"] > before + 100_000_000
        child.communicate()


def test_a_full_disk_ends_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[OSError] = []
    append = events.append

    def note(path: Path, facts: dict[str, float]) -> None:
        try:
            append(path, facts)
        except OSError as error:
            refused.append(error)
            raise

    monkeypatch.setattr(events, "append", note)
    path.symlink_to("/dev/full")  # the kernel answers ENOSPC to every write
    with usage.told(time.monotonic()):
        until(lambda: len(refused) >= 2, "two samples that could not be written")
        path.unlink()
        until(lambda: len(samples(path)) >= 2, "samples once there is room")


def test_a_month_is_a_megabyte_or_two() -> None:
    month = 30 * 24 * 3600
    times = itertools.takewhile(lambda t: t < month, itertools.accumulate(usage.intervals()))
    assert 150 * len(list(times)) < 2_000_000
    assert list(itertools.islice(usage.intervals(), 2)) == [2.0, 2.0]


def test_the_driver_is_asked_about_the_gpu_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\ncase "$*" in *--id=3) echo "87, 40536" ;; *) exit 6 ;; esac\n')
    script.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(hardware, "gpus", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert usage.gpu() == {"gpu_utilization": 87, "gpu_memory_used_bytes": 40536 * 2**20}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert usage.gpu() == {}  # it refuses to tell of GPU 0
    script.unlink()
    assert usage.gpu() == {}


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("0, 1\n", {"gpu_utilization": 0, "gpu_memory_used_bytes": 2**20}),
        ("[N/A], 512\n", {"gpu_memory_used_bytes": 512 * 2**20}),  # a slice of a GPU
        ("No devices were found\n", {}),
        ("", {}),
    ],
)
def test_what_the_driver_does_not_tell_is_left_out(line: str, facts: dict[str, int]) -> None:
    assert usage.parsed(line) == facts
