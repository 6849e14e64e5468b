"""The worker: claims queued runs, starts a process group for each stage, adopts, cancels, records.

There is one worker a home. It is started when needed and ends when it has had nothing to do for a while;
stages it leaves behind go on, and the next worker adopts them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import locks, settings
from pipeline.child import LOCK, PROCESS, RESULT
from pipeline.errors import LabError
from pipeline.run import CANCELED, DONE, FAILED, INTERRUPTED
from pipeline.store import Store

POLL_SECONDS = 0.1
IDLE_SECONDS = 600.0
# A stage that does not end by itself within this time of being asked is killed.
GRACE_SECONDS = 3.0
PUBLISH_SLOT = "publish"
CHILD = ("-m", "pipeline.child")
WORKER_LOCK = "worker.lock"


@dataclass
class Job:
    """A stage in progress. `process` is None when an earlier worker started it."""

    run: str
    stage: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    asked_to_end: float | None = None
    pid: int | None = field(default=None)


class Worker:
    """One run at a time on each device; publishing has a slot of its own beside them."""

    def __init__(self, store: Store, child: Sequence[str] = CHILD) -> None:
        self.store = store
        self.child = child
        self.jobs: dict[str, Job] = {}
        self.slots = [*settings.devices(), PUBLISH_SLOT]
        self.stopping = False

    def serve(self, idle_seconds: float = IDLE_SECONDS) -> None:
        """Work until there has been nothing to do for `idle_seconds`. Raises LabError if one serves already."""
        path = self.store.home / WORKER_LOCK
        lock = locks.take(path)
        if lock is None:
            raise LabError(f"A worker already serves {self.store.home}.")
        while lock is not None:
            try:
                self.recover()
                self._work(idle_seconds)
            finally:
                os.close(lock)
            # Someone may have queued a run and seen the lock still held: look once more after giving it up.
            more = not self.stopping and self.store.waiting()
            lock = locks.take(path) if more else None

    def recover(self) -> None:
        """Adopt stages that still live, record those that ended or died while no worker was there."""
        for run, stage, device in self.store.running():
            job = Job(run, stage, self.store.folder(run, stage))
            slot = device or PUBLISH_SLOT
            if lives(job.folder):
                self.jobs[slot] = job
                if slot not in self.slots:
                    self.slots.append(slot)
            else:
                self._record(slot, job, INTERRUPTED, "The machine or the worker stopped while this ran; retry it.")
        for run in self.store.between_stages():
            if all(job.run != run for job in self.jobs.values()):
                self.store.requeue(run)

    def step(self) -> None:
        """One look at everything: end what was canceled, record what ended, start what is queued."""
        cancels = self.store.cancels()
        for slot, job in list(self.jobs.items()):
            if job.run in cancels:
                self._end(job)
            if self._ended(job):
                del self.jobs[slot]
                self._record(slot, job, FAILED, None)
        for slot in self.slots:
            if slot not in self.jobs and not self.stopping:
                claimed = self.store.claim_publish() if slot == PUBLISH_SLOT else self.store.claim(slot)
                if claimed:
                    self._start(slot, *claimed)

    def _work(self, idle_seconds: float) -> None:
        idle_since = time.monotonic()
        while not self.stopping:
            self.step()
            if self.jobs:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= idle_seconds:
                return
            time.sleep(POLL_SECONDS)

    def _start(self, slot: str, run: str, stage: str) -> None:
        """Start the stage in a session, and so a process group, of its own."""
        folder = self.store.folder(run, stage)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        (folder / PROCESS).unlink(missing_ok=True)
        extra = {"OLIVE_LAB_HOME": str(self.store.home), "OLIVE_LAB_EVENTS": str(folder / "events.jsonl")}
        if slot.startswith("cuda:"):
            extra["CUDA_VISIBLE_DEVICES"] = slot.removeprefix("cuda:")
        lock = locks.take(folder / LOCK)
        if lock is None:
            raise RuntimeError(f"{folder} is in use by a process that is not of this run")
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [settings.python(), *self.child, run, stage],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=settings.ROOT,
                env=settings.child_environment(**extra),
                pass_fds=[lock],  # from its first moment the child holds the lock, and then it alone
            )
        os.close(lock)
        self.jobs[slot] = Job(run, stage, folder, process, pid=process.pid)

    def _ended(self, job: Job) -> bool:
        """Whether the stage's process is gone; whatever it left of its group is killed then."""
        if job.process is None:
            return not lives(job.folder)
        # Without reaping it yet: until then nobody else can get its process group's number.
        if os.waitid(os.P_PID, job.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        _signal(job.process.pid, signal.SIGKILL)
        job.process.wait()
        return True

    def _end(self, job: Job) -> None:
        """Ask the stage's process group to end; kill it after a grace period."""
        pid = job.pid or _pid(job.folder)
        if pid is None:
            return
        if job.asked_to_end is None:
            job.asked_to_end = time.monotonic()
            _signal(pid, signal.SIGTERM)
        elif time.monotonic() - job.asked_to_end > GRACE_SECONDS:
            _signal(pid, signal.SIGKILL)

    def _record(self, slot: str, job: Job, without_result: str, reason: str | None) -> None:
        """Write down how the stage ended and go on with its run."""
        result = _read(job.folder / RESULT)
        if result is None:
            canceled = job.run in self.store.cancels()
            status = CANCELED if canceled else without_result
            result = {"status": status, "error": None if canceled else reason or _death(job.process)}
        status = result.pop("status")
        self.store.finish(job.run, job.stage, status, **result)
        if status == DONE and slot != PUBLISH_SLOT:
            following = self.store.claim_next(job.run, slot)
            if following:
                self._start(slot, job.run, following)

    def stop(self, *_: Any) -> None:
        """Leave after this step; stages that run go on."""
        self.stopping = True


def lives(folder: Path) -> bool:
    """Whether the stage of that folder has a living process: it holds a lock that dies with it."""
    return locks.held(folder / LOCK)


def ensure(home: Path) -> None:
    """Start a worker for this home unless one serves it. It outlives the process that starts it."""
    if locks.held(home / WORKER_LOCK):
        return
    with (home / "worker.log").open("ab") as log:
        subprocess.Popen(
            [settings.python(), "-m", "pipeline", "worker"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=settings.ROOT,
            env=settings.child_environment(OLIVE_LAB_HOME=str(home)),
        )


def _death(process: subprocess.Popen[bytes] | None) -> str:
    """What to say of a stage that ended without a result."""
    code = process.returncode if process else None
    if code == -signal.SIGKILL:
        return (
            "The system killed this stage, most likely because memory ran out; use a smaller batch_size or"
            " max_length, and retry."
        )
    if code is not None and code < 0:
        return f"This stage crashed ({signal.Signals(-code).name}); its log shows the last steps."
    return "This stage ended without saying why; its log shows the last steps."


def _pid(folder: Path) -> int | None:
    facts = _read(folder / PROCESS)
    return facts["pid"] if facts else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return facts


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # it has ended in the meantime, which is what was wanted


def serve(home: Path) -> int:
    """`python -m pipeline worker`: serve until idle or told to stop."""
    worker = Worker(Store(home))
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    worker.serve()
    return 0
