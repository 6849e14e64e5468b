"""One running stage, as the worker sees it: whether it has ended, and how to end it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.store.run import EVENTS, LOCK, PROCESS, RESULT
from pipeline.system import clock, locks
from pipeline.worker import processes, sentences
from pipeline.worker.ahead import forking
from pipeline.worker.limits import Limits

# A stage that has not ended this long after being asked to is killed.
GRACE_SECONDS = 3.0
Process = subprocess.Popen[bytes] | forking.Forked
SIGNS = (PROCESS, EVENTS, "log.txt")


@dataclass
class Job:
    """A running stage. `process` is None if another worker started it; `failure`: why it did not start."""

    run: str
    stage: str
    folder: Path
    process: Process | None = None
    devices: tuple[str, ...] = ()  # that it has; the first one is its slot
    asked_to_end: float | None = None
    failure: str | None = None
    began: float = field(default_factory=time.monotonic)
    oom_kills: dict[Path, int] = field(default_factory=dict)  # the kernel's counts when it started
    killed_for_memory: bool | None = None  # None: unknown
    taken_bytes: int = 0
    waits: bool = False  # for a warm process to fork its own
    looked_ahead: bool = False
    lost: bool = False  # found running in the store by a new worker, which has not looked at it yet
    troubles: int = 0  # looks at it in turn that failed
    limits: Limits | None = None
    over: str | None = None  # which limit it has exceeded, as a sentence
    wrote: float | None = None  # when its result was first seen, while its process still ran

    def result(self) -> dict[str, Any] | None:
        """The result that the stage has written; None until then."""
        return _read(self.folder / RESULT)

    def elapsed(self) -> float:
        """Seconds that the stage has run, under any worker, without the time the machine was asleep."""
        if self.process is not None or self.failure is not None:
            return time.monotonic() - self.began
        return clock.since(_read(self.folder / PROCESS)) or 0.0

    def ended(self) -> bool:
        """Whether the stage's process is gone; the rest of its process group is killed then."""
        if self.failure is not None:
            return True
        if self.process is None:
            pid = _pid(self.folder)
            # Its forks hold the lock too and may outlive it.
            if lives(self.folder) and (pid is None or not _gone(pid)):
                return False
            if pid is not None:
                _signal(pid, signal.SIGKILL)
        elif self.process.returncode is None:
            # Don't reap it yet: until then its process group's number is not reused.
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.killed_for_memory = processes.killed_since(self.oom_kills)
            _signal(self.process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.taken_bytes = usage.ru_maxrss * 1024
        return True

    def end(self) -> None:
        """Ask the stage's process group to end; kill it after a grace period."""
        if self.process is None:
            pid = _pid(self.folder) if lives(self.folder) else None
        else:
            pid = self.process.pid if self.process.returncode is None else None
        if pid is None:
            return
        if self.asked_to_end is None:
            self.asked_to_end = time.monotonic()
            _signal(pid, signal.SIGTERM)
        elif time.monotonic() - self.asked_to_end > GRACE_SECONDS:
            _signal(pid, signal.SIGKILL)

    def lingers(self, exit_seconds: float) -> bool:
        """Whether the process has not exited long after writing its result, because of a library's thread.

        The first time, this is noted in the stage's log.
        """
        if self.wrote is None:
            if self.result() is not None:
                self.wrote = time.monotonic()
            return False
        if time.monotonic() - self.wrote <= exit_seconds:
            return False
        if self.asked_to_end is None:
            with suppress(OSError), (self.folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"\n{sentences.lingers(self.stage, exit_seconds)}\n")
        return True

    def death(self) -> str:
        """What to say of the stage if it ended without a result."""
        code = self.process.returncode if self.process else None
        return sentences.death(self.stage, code, self.killed_for_memory, self.taken_bytes)

    def last_sign(self) -> float | None:
        """When the stage last wrote something, in seconds since the epoch."""
        times = [path.stat().st_mtime for name in SIGNS if (path := self.folder / name).exists()]
        return max(times, default=None)


def lives(folder: Path) -> bool:
    """Whether the stage of that folder has a living process: it holds a lock that dies with it."""
    return locks.held(folder / LOCK)


def _pid(folder: Path) -> int | None:
    facts = _read(folder / PROCESS)
    return facts["pid"] if facts else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not written, or damaged by a power cut
        return None
    return facts


def _gone(pid: int) -> bool:
    """Whether a process that is not our child has ended, even if nobody has reaped it."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        os.close(descriptor)


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # it has already ended
