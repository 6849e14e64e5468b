"""How much there is on this machine: main memory, memory of a GPU, room on the disk of a folder."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.system import hardware

# What a container may use, by version of control groups; a number of bytes, or none where it may use all.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
GPU_TIMEOUT = 20.0
QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Capacity:
    """Bytes in all of main memory and of the smallest GPU that runs may use (None without one), and free on
    disk."""

    memory: int
    gpu_memory: int | None
    disk: int


def of(folder: Path) -> Capacity:
    """What there is for what lies in a folder. Raises OSError where its disk cannot be asked."""
    return Capacity(memory(), _gpu_memory(), shutil.disk_usage(folder).free)


def memory() -> int:
    """Bytes of main memory that this machine has, or this container may use."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for path in LIMITS if (limit := _limit(path)))])


def _limit(path: Path) -> int:
    """What a container's file says; 0 where it sets no limit, or is not there."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isascii() and text.isdigit() else 0


@lru_cache(maxsize=1)
def _gpu_memory() -> int | None:
    if not hardware.on_gpu():
        return None
    ids = ",".join(device.partition(":")[2] for device in hardware.devices())
    try:
        out = subprocess.run(
            [*QUERY, f"--id={ids}"], capture_output=True, text=True, timeout=GPU_TIMEOUT, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return smallest(out)


def smallest(answer: str) -> int | None:
    """Bytes of the smallest GPU in nvidia-smi's answer, MiB a line; None where it says nothing."""
    sizes = [int(line) for line in answer.split() if line.isascii() and line.isdigit()]
    return min(sizes) * 2**20 if sizes else None
