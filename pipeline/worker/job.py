"""One stage in progress, as the worker knows it: whether it has ended, and how to end it."""

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
from pipeline.worker.limits import Limits

# A stage that does not end by itself within this time of being asked is killed.
GRACE_SECONDS = 3.0
SIGNS = (PROCESS, EVENTS, "log.txt")


@dataclass
class Job:
    """A stage in progress. `process` is None if another worker started it; `failure` says why none could."""

    run: str
    stage: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    asked_to_end: float | None = None
    failure: str | None = None
    began: float = field(default_factory=time.monotonic)
    oom_kills: dict[Path, int] = field(default_factory=dict)  # what the kernel had counted when it began
    killed_for_memory: bool | None = None  # None: nobody knows
    taken_bytes: int = 0
    has_spare: bool = False
    limits: Limits | None = None
    over: str | None = None  # which limit it has passed, as a sentence
    wrote: float | None = None  # when its result was first seen, while its process still ran

    def result(self) -> dict[str, Any] | None:
        """What the stage says it has made; None until it has written that."""
        return _read(self.folder / RESULT)

    def elapsed(self) -> float:
        """Seconds the stage has been at work, under this worker or another; time asleep does not count."""
        if self.process is not None or self.failure is not None:
            return time.monotonic() - self.began
        return clock.since(_read(self.folder / PROCESS)) or 0.0

    def ended(self) -> bool:
        """Whether the stage's process is gone; whatever it left of its group is killed then."""
        if self.failure is not None:
            return True
        if self.process is None:
            pid = _pid(self.folder)
            # Processes it has forked hold its lock as well, and may outlive it.
            if lives(self.folder) and (pid is None or not _gone(pid)):
                return False
            if pid is not None:
                _signal(pid, signal.SIGKILL)
        elif self.process.returncode is None:
            # Without reaping it yet: until then nobody else can get its process group's number.
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
        """Whether the stage's result has been there for long, and a thread of a library keeps its process.

        The first time this is so, the stage's log gets a line about it.
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
    except (FileNotFoundError, ValueError):  # not written, or torn by a power cut
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
        return  # it has ended already, which is what was wanted
