"""Memory and GPU use of a stage, reported every few seconds whatever the stage is doing.

A thread of the stage's process takes samples and appends events, see `events`. It never imports torch, but
asks nvidia-smi.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psutil

from pipeline import settings
from pipeline.stages import events
from pipeline.system import hardware

SECONDS = 2.0
# Samples get further apart after this many, so that a stage of a month writes a megabyte or two.
SAMPLES = 500
WIDER = 1.5
QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
GPU_TIMEOUT = 10.0


@contextmanager
def told(began: float) -> Iterator[None]:
    """Take samples while the block runs of an attempt that `began` then, by the monotonic clock.

    Outside a stage, without an events file, do nothing.
    """
    path = settings.events_path()
    if path is None:
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_tell, args=(path, began, ended), name="resources", daemon=True).start()
    try:
        yield
    finally:
        ended.set()  # don't wait: nvidia-smi may take long


def intervals() -> Iterator[float]:
    """Seconds to wait before each sample."""
    for widened in count():
        for _ in range(SAMPLES):
            yield SECONDS * WIDER**widened


def _tell(path: Path, began: float, ended: threading.Event) -> None:
    for seconds in intervals():
        if ended.wait(seconds):
            return
        facts = {"elapsed": round(time.monotonic() - began, 1), **memory(), **gpu()}
        with suppress(OSError):  # if the disk is full, the stage itself reports it
            events.append(path, facts)


def memory() -> dict[str, int]:
    """Bytes of main memory: of this process and those it has started, and in use on the whole machine."""
    own = psutil.Process()
    taken = own.memory_info().rss
    for child in own.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            taken += child.memory_info().rss
    machine = psutil.virtual_memory()
    return {"memory_bytes": taken, "host_memory_bytes": machine.total - machine.available}


def gpu() -> dict[str, int]:
    """How busy the GPU is, and bytes in use on it by any process; facts the driver lacks are left out."""
    if not hardware.gpus():
        return {}
    try:
        out = subprocess.run(
            [*QUERY, f"--id={hardware.visible_gpu()}"],
            capture_output=True, text=True, timeout=GPU_TIMEOUT, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    return parsed(out)


def parsed(line: str) -> dict[str, int]:
    """The facts in nvidia-smi's answer: percent and MiB, or `[N/A]`."""
    facts = {}
    for (key, unit), field in zip(
        (("gpu_utilization", 1), ("gpu_memory_used_bytes", 2**20)), line.split(","), strict=False
    ):
        if field.strip().isdigit():
            facts[key] = int(field) * unit
    return facts
