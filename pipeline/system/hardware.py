"""Which GPUs and how many cores there are. Start here to add a kind of GPU."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache

from pipeline import settings


@lru_cache(maxsize=1)
def gpus() -> int:
    """Number of NVIDIA GPUs, found with `nvidia-smi` to avoid importing torch."""
    try:
        out = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in out.stdout.splitlines())


def devices() -> list[str]:
    """The GPUs that runs may use, one run on each (`CUDA_VISIBLE_DEVICES`, default all), or else the CPU."""
    allowed = settings.visible_gpus()
    numbers = [str(i) for i in range(gpus())] if allowed is None else allowed.split(",")
    return [f"cuda:{number.strip()}" for number in numbers if gpus() and number.strip()] or ["cpu"]


def on_gpu() -> bool:
    """Whether this process may use a GPU."""
    return devices() != ["cpu"]


def visible_gpu() -> str:
    """The GPU this process computes on, as nvidia-smi names it."""
    return (settings.visible_gpus() or "").split(",")[0].strip() or "0"


def cores() -> int:
    """Physical cores that this process may use; a second thread per core slows matrix products down."""
    import psutil

    allowed = len(os.sched_getaffinity(0))
    return min(psutil.cpu_count(logical=False) or allowed, allowed)
