"""Peak memory of this process, on the host and on the GPU."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 resets the peak to the current use
STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Measure the peak from now on; if that is not possible, it is over the process's whole life."""
    with suppress(OSError):
        REFS.write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, int]:
    """{"peak_memory_bytes"} of resident memory, with "peak_gpu_memory_bytes" if torch used a GPU.

    Mapped files count while they are resident. torch is used only if it is already imported.
    """
    found = {"peak_memory_bytes": _resident()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["peak_gpu_memory_bytes"] = int(torch.cuda.max_memory_allocated())
    return found


def memory_now() -> int:
    """Bytes of resident memory. The kernel's peak of a process begins with that of its parent."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _resident() -> int:
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
