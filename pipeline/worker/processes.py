"""A stage's processes as the system sees them: which are left, and whether the kernel killed one."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from pipeline.store.run import EVENTS

PASSES = 10  # over the process list: a process may start another before it is killed
GONE_SECONDS = 5.0
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def end_all(folder: Path) -> int:
    """Kill every process of the stage of that folder, even outside its process group; return how many.

    They are recognized by the events file in their environment, which the worker set.
    """
    mark = f"OLIVE_LAB_EVENTS={folder / EVENTS}".encode()
    killed = 0
    for _ in range(PASSES):
        found = [pid for pid in _processes() if pid != os.getpid() and mark in _environment(pid)]
        if not found:
            break
        killed += sum(_kill(pid, mark) for pid in found)
    return killed


def oom_kills(pid: int) -> dict[Path, int]:
    """How many processes the kernel has killed to free memory: in the cgroup of `pid`, and in all.

    By the file that has the count; {} if there is none.
    """
    counts = {path: _count(path) for path in (_cgroup(pid), PROC / "vmstat") if path is not None}
    return {path: count for path, count in counts.items() if count is not None}


def killed_since(before: dict[Path, int]) -> bool | None:
    """Whether these counts have risen since `before`; None if there are none."""
    now = {path: _count(path) for path in before}
    told = [count > before[path] for path, count in now.items() if count is not None]
    return any(told) if told else None


def _processes() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    """The environment a process was started with; [] if it is another user's or has ended."""
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _kill(pid: int, mark: bytes) -> bool:
    """Kill it and wait until it is gone. Through a descriptor, because its number may be reused."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if mark not in _environment(pid):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], GONE_SECONDS)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _cgroup(pid: int) -> Path | None:
    """The file that counts kills in the memory cgroup of a process, for cgroup version 1 or 2."""
    try:
        lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inner = path.lstrip("/")
        if controllers == "memory":
            return CGROUPS / "memory" / inner / "memory.oom_control"
        if controllers == "" and (CGROUPS / inner / "memory.events").exists():
            return CGROUPS / inner / "memory.events"
    return None


def _count(path: Path) -> int | None:
    """The number after `oom_kill` in a file."""
    try:
        words = path.read_text().split()
    except OSError:
        return None
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else None
