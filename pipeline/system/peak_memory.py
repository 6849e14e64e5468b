"""Peak memory of this process, on the host and on the GPU, and memory of a whole process group."""

from __future__ import annotations

import os
import resource
import sys
import threading
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


class GroupPeak:
    """The most that all processes of this one's group have taken together, looked at from a thread.

    What this process itself took between two looks is known from the kernel.
    """

    SECONDS = 0.08  # between two looks

    def __init__(self) -> None:
        self._most = 0
        self._ended = threading.Event()

    def __enter__(self) -> GroupPeak:
        threading.Thread(target=self._look, name="group-peak", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _look(self) -> None:
        group = os.getpgid(0)
        while not self._ended.is_set():
            self._most = max(self._most, group_memory(group))
            self._ended.wait(self.SECONDS)

    def bytes(self) -> int:
        """The peak so far."""
        self._most = max(self._most, group_memory(os.getpgid(0)), _resident())
        return self._most


def group_memory(group: int) -> int:
    """Bytes of resident memory of all processes of a process group; what they share counts several times."""
    sizes = set()  # a process that is just being started has all memory of its parent, as it is
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a path for each takes long
        if entry.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                if os.getpgid(int(entry)) == group:
                    size, resident, *_ = Path(f"/proc/{entry}/statm").read_text().split()
                    sizes.add((int(size), int(resident)))
    return sum(resident for _, resident in sizes) * resource.getpagesize()


def memory_now() -> int:
    """Bytes of resident memory. The kernel's peak of a process begins with that of its parent."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _resident() -> int:
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
