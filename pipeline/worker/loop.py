"""The worker: claims queued runs, starts a process group for each stage, adopts, cancels, records.

There is one worker a home. It is started when needed and ends when it has had nothing to do for a while;
stages still running continue, and the next worker adopts them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import LabError, sentence
from pipeline.store import Store, device_locks
from pipeline.store.run import CANCELED, DONE, EVENTS, FAILED, INTERRUPTED, LOCK, PROCESS, QUEUED, RESULT
from pipeline.system import hardware, locks, own_process
from pipeline.worker import processes, sentences, webhook
from pipeline.worker.job import Job, lives
from pipeline.worker.limits import Limits
from pipeline.worker.spare import Spare, affordable, serves

POLL_SECONDS = 0.1
TROUBLE_SECONDS = 2.0
IDLE_SECONDS = 600.0
# Once a stage has run this long, a spare for the next one is prepared; reused stages take less time.
SPARE_SECONDS = 3.0
PUBLISH_SLOT = "publish"
# A stage that dies with its worker is restarted automatically, but not endlessly: it may be the cause.
MOST_ATTEMPTS = 3
CHILD = ("-m", "pipeline.worker.stage_process")
WORKER_LOCK = "worker.lock"


class Worker:
    """One run at a time on each device; publishing has its own slot.

    If there are GPUs, runs that asked for the CPU have a slot too.
    """

    def __init__(self, store: Store, child: Sequence[str] = CHILD) -> None:
        self.store = store
        self.child = child
        self.jobs: dict[str, Job] = {}
        self.spares: dict[str, Spare] = {}
        self.slots = list(dict.fromkeys([*hardware.devices(), "cpu", PUBLISH_SLOT]))
        self.exit_seconds = settings.exit_seconds()
        self.stopping = False

    def serve(self, idle_seconds: float = IDLE_SECONDS, lock: int | None = None) -> None:
        """Work until there has been nothing to do for `idle_seconds`.

        `lock` is the worker's lock, if the process that started this one has taken it.
        Raises LabError if another worker serves this home.
        """
        path = self.store.home / WORKER_LOCK
        lock = locks.take(path) if lock is None else lock
        if lock is None:
            raise LabError(f"A worker already serves {self.store.home}.")
        while lock is not None:
            try:
                self._work(idle_seconds)
            finally:
                for slot in list(self.spares):
                    self.spares.pop(slot).dismiss()
                os.close(lock)
            # Someone may have queued a run and seen the lock still held: look once more after giving it up.
            more = not self.stopping and self.store.waiting()
            lock = locks.take(path) if more else None

    def recover(self) -> None:
        """Adopt stages that still run; record those that ended or died while there was no worker."""
        known = {(job.run, job.stage) for job in self.jobs.values()}
        for run, stage, device in self.store.running():
            if (run, stage) in known:
                continue
            job = Job(run, stage, self.store.folder(run, stage))
            slot = device or PUBLISH_SLOT
            if lives(job.folder):
                self.jobs[slot] = job
            elif job.result() is None and self._may_begin_again(job, slot):
                self._clean(job)
                self.store.requeue(run, stage)
            else:
                self._record(slot, job, INTERRUPTED, _interruption(slot))
        for run in self.store.between_stages():
            self.store.requeue(run)

    def step(self) -> None:
        """One look at everything: end what was canceled, record what ended, start what is queued."""
        cancels = self.store.cancels()
        for slot, job in list(self.jobs.items()):
            if job.over is None and slot != PUBLISH_SLOT:
                job.limits = job.limits or Limits(self.store, job.run, job.stage)
                job.over = job.limits.passed(job.elapsed())
            if job.run in cancels or job.over:
                job.end()
            if job.ended():
                self._record(slot, job, FAILED, None)
            elif job.lingers(self.exit_seconds):
                job.end()
            elif slot != PUBLISH_SLOT and not job.has_spare and time.monotonic() - job.began > SPARE_SECONDS:
                self._make_ready(slot, job)
        for slot in self.slots:
            if slot not in self.jobs and not self.stopping:
                claimed = self._claim(slot)
                if claimed:
                    self._start(slot, *claimed)
                elif slot in self.spares:
                    self.spares.pop(slot).dismiss()

    def _claim(self, slot: str) -> tuple[str, str] | None:
        if slot == PUBLISH_SLOT:
            return self.store.claim_publish()
        if slot.startswith("cuda:"):
            with device_locks.unheld(self.store.home, slot) as free:
                return self._claim_run(slot) if free else None
        return self._claim_run(slot)

    def _claim_run(self, slot: str) -> tuple[str, str] | None:
        if hardware.devices() == ["cpu"]:
            return self.store.claim(slot)
        return self.store.claim(slot, ("cpu",) if slot == "cpu" else ("any",))

    def _may_begin_again(self, job: Job, slot: str) -> bool:
        """Whether to restart a stage that died without a worker; not a publish, whose version may exist."""
        return slot != PUBLISH_SLOT and self.store.attempts(job.run, job.stage) < MOST_ATTEMPTS

    def _work(self, idle_seconds: float) -> None:
        recovered = False
        idle_since = time.monotonic()
        while not self.stopping:
            try:
                if not recovered:
                    self.recover()
                    recovered = True
                self.step()
                self.store.back_up()
            except (LabError, OSError) as error:  # for example a full disk; nothing is lost, and it may pass
                with suppress(OSError):
                    print(sentence(error), flush=True)
                time.sleep(TROUBLE_SECONDS)
            if self.jobs:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= idle_seconds:
                return
            time.sleep(POLL_SECONDS)

    def _start(self, slot: str, run: str, stage: str) -> None:
        """Start the stage; if that cannot be done, the next step records why."""
        job = self.jobs[slot] = Job(run, stage, self.store.folder(run, stage))
        try:
            job.oom_kills = processes.oom_kills(os.getpid())  # the stage begins in the same cgroup
            job.process = self._spawn(slot, job)
        except (LabError, OSError) as error:
            job.failure = sentence(error)

    def _make_ready(self, slot: str, job: Job) -> None:
        """Prepare a spare for the next stage, once per stage."""
        job.has_spare = True
        run = self.store.get(job.run)
        names = [stage.name for stage in run.stages]
        following = run.stages[names.index(job.stage) + 1 :][:1]
        wanted = following and following[0].status == QUEUED and following[0].kind != PUBLISH_SLOT
        if wanted and serves(following[0].options) and affordable():
            name = following[0].name
            events = str(self.store.folder(job.run, name) / EVENTS)
            environment = self._environment(slot, OLIVE_LAB_EVENTS=events)
            self.spares[slot] = Spare(job.run, name, self.child, environment)

    def _spare(self, slot: str, job: Job) -> Spare | None:
        """The slot's spare if it is ready for this stage; otherwise it is ended.

        A spare serves only its own run: its environment has the mark of that run's stage.
        """
        spare = self.spares.pop(slot, None)
        if spare is None:
            return None
        options = self.store.get(job.run).stage(job.stage).options
        if (spare.run, spare.stage) == (job.run, job.stage) and serves(options) and spare.ready():
            return spare
        spare.dismiss()
        return None

    def _environment(self, slot: str, **extra: str) -> dict[str, str]:
        if slot.startswith("cuda:"):
            extra["CUDA_VISIBLE_DEVICES"] = slot.removeprefix("cuda:")
        elif slot == "cpu":
            extra["CUDA_VISIBLE_DEVICES"] = ""
        on_gpu = slot.startswith("cuda:")
        return settings.stage_environment(on_gpu, OLIVE_LAB_HOME=str(self.store.home), **extra)

    def _spawn(self, slot: str, job: Job) -> subprocess.Popen[bytes]:
        """Start the stage's process in a session, and so a process group, of its own; or take the spare."""
        folder = job.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        spare = self._spare(slot, job)
        # Processes left by an earlier attempt.
        processes.end_all(folder, spare.process.pid if spare else None)
        lock = locks.take(folder / LOCK)
        if lock is None:
            if spare is not None:
                spare.dismiss()
            raise LabError(f"A process of an earlier attempt still runs in {folder}; end it and retry.")
        try:
            (folder / RESULT).unlink(missing_ok=True)
            (folder / PROCESS).unlink(missing_ok=True)
            events = folder / EVENTS
            with (folder / "log.txt").open("ab") as log:
                if spare is not None:
                    try:
                        return spare.give(lock, log.fileno())
                    except OSError:  # it has just died
                        spare.dismiss()
                return own_process.start(
                    [*self.child, job.run, job.stage],
                    self._environment(slot, OLIVE_LAB_EVENTS=str(events)),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    keep=[lock],  # the child holds the lock from the start, and afterwards alone
                    apart=True,
                )
        finally:
            os.close(lock)

    def _record(self, slot: str, job: Job, without_result: str, reason: str | None) -> None:
        """Record how the stage ended and continue with its run."""
        processes.end_all(job.folder)
        result = job.result() if job.failure is None else None
        if result is None:
            result = {"status": without_result, "error": job.failure or reason or job.death()}
            if without_result == INTERRUPTED:
                result["finished"] = job.last_sign()
            else:
                result["seconds"] = job.elapsed()
            self._clean(job)
        if result["status"] != DONE and job.run in self.store.cancels():
            result = {"status": CANCELED}  # whatever it reported while being ended does not matter
        elif result["status"] != DONE and job.over:
            result = {"status": FAILED, "error": job.over, "seconds": job.elapsed()}
        status = result.pop("status")
        self.store.finish(job.run, job.stage, status, **result)
        goes_on = status == DONE and slot != PUBLISH_SLOT
        following = self.store.claim_next(job.run, slot) if goes_on else None
        self.jobs.pop(slot, None)
        if following:
            self._start(slot, job.run, following)
        elif slot != PUBLISH_SLOT:
            webhook.tell(self.store.get(job.run))

    def _clean(self, job: Job) -> None:
        """Delete the partial result of a stage that died; its checkpoints stay."""
        from pipeline.stages import artifacts

        artifacts.sweep(self.store.home)
        shutil.rmtree(job.folder / "work", ignore_errors=True)

    def stop(self, *_: Any) -> None:
        """Stop after this step; running stages continue."""
        self.stopping = True


def _interruption(slot: str) -> str:
    """The error of a stage in that slot that is not restarted automatically."""
    if slot == PUBLISH_SLOT:
        return sentences.interrupted_publish()
    return sentences.interrupted(MOST_ATTEMPTS)


# Workers that this process has started; polling them reaps those that have ended.
_workers: list[subprocess.Popen[bytes]] = []


def ensure(home: Path) -> None:
    """Start a worker for this home unless one serves it. It outlives the process that starts it."""
    _workers[:] = [process for process in _workers if process.poll() is None]
    lock = locks.take(home / WORKER_LOCK)
    if lock is None:
        return
    try:
        with (home / "worker.log").open("ab") as log:
            process = own_process.start(
                ["-m", "pipeline", "worker", "--lock", str(lock)],
                settings.child_environment(OLIVE_LAB_HOME=str(home)),
                stdout=log,
                stderr=subprocess.STDOUT,
                keep=[lock],  # it holds the lock from the start, so nobody starts a second one
                apart=True,
            )
    finally:
        os.close(lock)
    _workers.append(process)


def serve(home: Path, lock: int | None = None) -> int:
    """`python -m pipeline worker`: serve until idle or told to stop."""
    if lock is not None:
        os.set_inheritable(lock, False)
    worker = Worker(Store(home, check=True))
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    worker.serve(lock=lock)
    return 0
