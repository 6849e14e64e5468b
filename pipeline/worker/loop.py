"""The worker: claims queued runs, starts a process group for each stage, adopts, cancels, records.

There is one worker a home. It is started when needed and ends when it has had nothing to do for a while;
stages still running continue, and the next worker adopts them. What stages import is imported once, see
`warm`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import LabError, sentence
from pipeline.store import Store, device_locks
from pipeline.store.queue import AND
from pipeline.store.run import (
    CANCELED,
    DONE,
    ENDED,
    EVENTS,
    FAILED,
    INTERRUPTED,
    LOCK,
    PROCESS,
    QUEUED,
    RESULT,
)
from pipeline.system import files, hardware, locks, own_process
from pipeline.worker import processes, sentences, webhook
from pipeline.worker.ahead import graph
from pipeline.worker.ahead.warm import Request, Shelf, serves
from pipeline.worker.job import Job, Process, lives
from pipeline.worker.limits import Limits

POLL_SECONDS = 0.1
TROUBLE_SECONDS = 2.0
MOST_TROUBLES = 30  # looks at one run in turn
IDLE_SECONDS = 600.0
# Once a stage has run this long, a warm process for the next one is started; reused stages take less time.
AHEAD_SECONDS = 3.0
PUBLISH_SLOT = "publish"
# A stage that dies with its worker is restarted automatically, but not endlessly: it may be the cause.
MOST_ATTEMPTS = 3
CHILD = ("-m", "pipeline.worker.stage_process")
TEMPORARY = "tmp"  # in a publish's folder, for temporary files
WORKER_LOCK, WORKER_LOG = "worker.lock", "worker.log"


class Worker:
    """One run at a time on each device; publishing has its own slot.

    If there are GPUs, runs that asked for the CPU have a slot too. A stage that uses several GPUs has the
    slot of the first one, and nothing starts on the others.
    """

    def __init__(self, store: Store, child: Sequence[str] = CHILD) -> None:
        self.store = store
        self.child = child
        self.jobs: dict[str, Job] = {}
        self.warm = Shelf(child, store.home / WORKER_LOG)
        self.devices = hardware.devices()
        self.gpus = [device for device in self.devices if device != "cpu"]
        self.exit_seconds = settings.exit_seconds()
        self.stopping = False
        self.ahead = False
        self.troubles: list[Exception] = []  # with single runs, which may pass

    def serve(
        self, idle_seconds: float = IDLE_SECONDS, lock: int | None = None, *, ahead: bool = False
    ) -> None:
        """Work until there has been nothing to do for `idle_seconds`.

        With `ahead` even the first run on each device finds a warm process. `lock` is the worker's lock, if
        the process that started this one has taken it.
        Raises LabError if another worker serves this home.
        """
        self.ahead = ahead
        path = self.store.home / WORKER_LOCK
        lock = locks.take(path) if lock is None else lock
        if lock is None:
            raise LabError(f"A worker already serves {self.store.home}.")
        while lock is not None:
            try:
                self._work(idle_seconds)
            finally:
                self.warm.dismiss()
                os.close(lock)
            # Someone may have queued a run and seen the lock still held: look once more after giving it up.
            more = not self.stopping and self.store.waiting()
            lock = locks.take(path) if more else None

    def recover(self) -> bool:
        """Adopt stages that still run; record those that ended or died while there was no worker.

        A stage that cannot be looked at just now keeps its slot until it can. Returns whether each was found
        a slot: two have the same one only if something went wrong before.
        """
        known, whole = {(job.run, job.stage) for job in self.jobs.values()}, True
        for run, stage, device in self.store.running():
            if (run, stage) in known:
                continue
            devices = tuple((device or PUBLISH_SLOT).split(AND))
            if devices[0] in self.jobs:
                whole = False
                continue
            job = Job(run, stage, self.store.folder(run, stage), devices=devices, lost=True)
            self.jobs[devices[0]] = job
            with self._apart(devices[0], job):
                self._recover(devices[0], job)
        ours = {job.run for job in self.jobs.values()}  # the next stage of one is about to be taken
        for run in self.store.between_stages():
            if run not in ours:
                self.store.requeue(run)
        return whole

    def _recover(self, slot: str, job: Job) -> None:
        if lives(job.folder):
            job.lost = False
        elif job.result() is None and self._may_begin_again(job, slot):
            self._clean(job)
            self.store.requeue(job.run, job.stage)
            self.jobs.pop(slot)
        else:
            self._record(slot, job, INTERRUPTED, _interruption(slot))

    @contextmanager
    def _apart(self, slot: str, job: Job) -> Iterator[None]:
        """What goes wrong with one run keeps no other from its turn for long.

        Else the worker would end, and each that follows it, at the same run. What may pass, such as a full
        disk, is tried again for a minute, or for as long as nothing can be recorded.
        """
        try:
            yield
            job.troubles = 0
        except (LabError, OSError) as error:
            self.troubles.append(error)
            job.troubles += 1
            if job.troubles > MOST_TROUBLES:
                self._give_up(slot, job, error)
        except Exception as error:  # which nobody foresaw
            traceback.print_exc()
            self._give_up(slot, job, error)

    def _give_up(self, slot: str, job: Job, why: Exception) -> None:
        try:
            processes.end_all(job.folder)
            self.store.finish(job.run, job.stage, FAILED, error=sentence(why))
            if self.jobs.get(slot) is job:  # else its next stage has it, or none
                self.jobs.pop(slot)
            job.ended()  # else its process would stay as a zombie
            if slot == PUBLISH_SLOT:
                self._sweep(job)
            else:
                graph.forget(self.store.folder(job.run, graph.TRAINING))
                webhook.tell(self.store.get(job.run))
        except Exception as trouble:
            self.troubles.append(trouble)

    def step(self) -> None:
        """One look at everything: end what was canceled, record what ended, start what is queued."""
        cancels = self.store.cancels()
        if self.ahead:
            for device in self.devices:
                self._warm_up(device)
        for slot, job in list(self.jobs.items()):
            with self._apart(slot, job):
                self._look(slot, job, canceled=job.run in cancels)
        while not self.stopping and (claimed := self._claim_gpus()):
            run, stage, gpus = claimed
            self._start(gpus, run, stage)
        for slot in ("cpu", PUBLISH_SLOT):
            if slot not in self.jobs and not self.stopping and (found := self._claim(slot)):
                self._start([slot], *found)

    def _look(self, slot: str, job: Job, canceled: bool) -> None:
        """See to one that runs, or waits to."""
        if job.lost:
            self._recover(slot, job)
            return
        if job.waits:
            self._go_on(slot, job, canceled)
            return
        if job.over is None and slot != PUBLISH_SLOT:
            job.limits = job.limits or Limits(self.store, job.run, job.stage)
            job.over = job.limits.passed(job.elapsed())
        if canceled or job.over:
            job.end()
        if job.ended():
            self._record(slot, job, FAILED, None)
        elif job.lingers(self.exit_seconds):
            job.end()
        elif not job.looked_ahead and time.monotonic() - job.began > AHEAD_SECONDS:
            self._look_ahead(slot, job)

    def _claim_gpus(self) -> tuple[str, str, list[str]] | None:
        """The next stage for GPUs that are idle and that nobody holds, and those that it gets."""
        busy = {device for job in self.jobs.values() for device in job.devices}
        if busy.issuperset(self.gpus):
            return None
        with ExitStack() as held:
            ours = [gpu for gpu in self.gpus if held.enter_context(device_locks.unheld(self.store.home, gpu))]
            idle = [gpu for gpu in ours if gpu not in busy]
            return self.store.claim_gpus(idle, len(ours), len(self.gpus))

    def _claim(self, slot: str) -> tuple[str, str] | None:
        if slot == PUBLISH_SLOT:
            return self.store.claim_publish()
        return self.store.claim(slot, ("cpu",)) if self.gpus else self.store.claim(slot)

    def _may_begin_again(self, job: Job, slot: str) -> bool:
        """Whether to restart a stage that died without a worker; not a publish, whose version may exist."""
        return slot != PUBLISH_SLOT and self.store.attempts(job.run, job.stage) < MOST_ATTEMPTS

    def _work(self, idle_seconds: float) -> None:
        recovered = False
        idle_since = time.monotonic()
        while not self.stopping:
            try:
                recovered = recovered or self.recover()
                self.step()
                self.store.back_up()
            except (LabError, OSError) as error:  # for example a full disk; nothing is lost, and it may pass
                self.troubles.append(error)
            if self.troubles:
                with suppress(OSError, ValueError):  # a full disk, or a log that takes no such letters
                    print(sentence(self.troubles[0]), flush=True)
                self.troubles.clear()
                time.sleep(TROUBLE_SECONDS)
            if self.jobs:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= idle_seconds:
                return
            time.sleep(POLL_SECONDS)

    def _start(self, devices: Sequence[str], run: str, stage: str) -> None:
        """Start the stage; if that cannot be done, the next step records why."""
        slot = devices[0]
        folder = self.store.folder(run, stage)
        job = self.jobs[slot] = Job(run, stage, folder, devices=tuple(devices), waits=True)
        with self._apart(slot, job):
            # To wait for what is being imported already is faster than to import it again.
            job.waits = self._wants_warm(slot, run, stage) and self.warm.importing(slot)
            if not job.waits:
                self._begin(slot, job)

    def _go_on(self, slot: str, job: Job, canceled: bool) -> None:
        """Start a stage that waits once there is a warm process, or there will be none; not if canceled."""
        job.waits = not canceled and self.warm.importing(slot)
        if canceled:
            job.failure = "The run was canceled."  # a result that is there is an earlier attempt's
            self._record(slot, job, CANCELED, None)
        elif not job.waits:
            job.began = time.monotonic()
            self._begin(slot, job)

    def _begin(self, slot: str, job: Job) -> None:
        job.waits = True  # what goes wrong before it begins is tried again
        wanted = self.store.get(job.run).stage(job.stage).options.get("gpus", 1)
        job.waits = False
        try:
            if wanted > len(job.devices):
                raise LabError(sentences.too_few_gpus(wanted, len(self.gpus)))
            job.oom_kills = processes.oom_kills(os.getpid())  # the stage begins in the same cgroup
            job.process = self._spawn(slot, job)
        except (LabError, OSError) as error:
            job.failure = sentence(error)

    def _look_ahead(self, slot: str, job: Job) -> None:
        """See that there is a warm process if the next stage of the run can use one."""
        job.looked_ahead = True
        if slot == PUBLISH_SLOT:
            return
        names = [stage.name for stage in self.store.get(job.run).stages]
        following = names[names.index(job.stage) + 1 :][:1]
        if following and self._wants_warm(slot, job.run, following[0], status=QUEUED):
            self._warm_up(slot)

    def _wants_warm(self, slot: str, run: str, name: str, status: str | None = None) -> bool:
        """Whether a stage, of that status, can be a fork of a warm process: a publish imports little."""
        stage = self.store.get(run).stage(name)
        fits = stage.kind != PUBLISH_SLOT and serves(stage.options)
        return slot != PUBLISH_SLOT and fits and status in (None, stage.status)

    def _warm_up(self, slot: str) -> None:
        self.warm.start(slot, self._environment(slot))

    def _environment(self, slot: str, **extra: str) -> dict[str, str]:
        if slot.startswith("cuda:"):
            extra["CUDA_VISIBLE_DEVICES"] = slot.removeprefix("cuda:")
        elif slot == "cpu":
            extra["CUDA_VISIBLE_DEVICES"] = ""
        on_gpu = slot.startswith("cuda:")
        return settings.stage_environment(on_gpu, OLIVE_LAB_HOME=str(self.store.home), **extra)

    def _spawn(self, slot: str, job: Job) -> Process:
        """The stage's process in a session, and so a process group, of its own: forked or started."""
        folder = job.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        processes.end_all(folder)  # left by an earlier attempt
        lock = locks.take(folder / LOCK)
        if lock is None:
            raise LabError(f"A process of an earlier attempt still runs in {folder}; end it and retry.")
        try:
            (folder / RESULT).unlink(missing_ok=True)
            (folder / PROCESS).unlink(missing_ok=True)
            environment = self._environment(slot, **_own(slot, job))
            if slot == PUBLISH_SLOT:
                (folder / TEMPORARY).mkdir(mode=0o700, exist_ok=True)
            with (folder / "log.txt").open("ab") as log:
                if self._wants_warm(slot, job.run, job.stage):
                    request = Request(job.run, job.stage, environment)
                    forked = self.warm.fork(slot, request, lock, log.fileno())
                    if forked is not None:
                        return forked
                    processes.end_all(folder)  # one that was forked too late
                return own_process.start(
                    [*self.child, job.run, job.stage],
                    environment,
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
        if slot == PUBLISH_SLOT:
            self._sweep(job)
        result = job.result() if job.failure is None else None
        if result is None:
            result = {"status": without_result, "error": job.failure or reason or job.death()}
            if without_result == INTERRUPTED:
                result["finished"] = job.last_sign()
            else:
                result["seconds"] = job.elapsed()
        if result["status"] != DONE and job.run in self.store.cancels():
            result = {"status": CANCELED}  # whatever it reported while being ended does not matter
        elif result["status"] != DONE and job.over:
            result = {"status": FAILED, "error": job.over, "seconds": job.elapsed()}
        if result["status"] != DONE:
            self._clean(job)
        if result["status"] == FAILED:
            result.setdefault("seconds", job.elapsed())
        status = result.pop("status")
        self.store.finish(job.run, job.stage, status, **result)
        goes_on = status == DONE and slot != PUBLISH_SLOT
        following = self.store.claim_next(job.run, slot) if goes_on else None
        if not following and slot != PUBLISH_SLOT:
            graph.forget(self.store.folder(job.run, graph.TRAINING))
        self.jobs.pop(slot, None)
        if following:
            self._start([slot], job.run, following)
        elif slot != PUBLISH_SLOT and (run := self.store.get(job.run)).status in ENDED:
            webhook.tell(run)

    def _clean(self, job: Job) -> None:
        """Delete the partial result of a stage that died; its checkpoints stay."""
        from pipeline.stages import artifacts

        artifacts.sweep(self.store.home)
        for made in ("work", "small"):
            shutil.rmtree(job.folder / made, ignore_errors=True)
        graph.forget(job.folder)

    def _sweep(self, job: Job) -> None:
        """Delete what a publish that was killed had no time to: it may be as large as a model."""
        from pipeline.publish import checks, local
        from pipeline.publish.foundry import publisher as foundry

        local.sweep(self.store.home)
        foundry.sweep(self.store.home)
        for left in (job.folder / TEMPORARY, self.store.home / checks.CHECKED):
            shutil.rmtree(left, ignore_errors=True)

    def stop(self, *_: Any) -> None:
        """Stop after this step; running stages continue."""
        self.stopping = True


def _own(slot: str, job: Job) -> dict[str, str]:
    """The variables of a stage that others on its device don't have."""
    if slot == PUBLISH_SLOT:  # what it is fetching when it is killed would stay, and it may be gigabytes
        return {settings.EVENTS: str(job.folder / EVENTS), "TMPDIR": str(job.folder / TEMPORARY)}
    several = (
        {settings.TRAINING_GPUS: ",".join(device.removeprefix("cuda:") for device in job.devices)}
        if len(job.devices) > 1
        else {}
    )
    return {settings.EVENTS: str(job.folder / EVENTS), **several}


def _interruption(slot: str) -> str:
    """The error of a stage in that slot that is not restarted automatically."""
    if slot == PUBLISH_SLOT:
        return sentences.interrupted_publish()
    return sentences.interrupted(MOST_ATTEMPTS)


# Workers that this process has started; polling them reaps those that have ended.
_workers: list[subprocess.Popen[bytes]] = []


def ensure(home: Path, *, ahead: bool = False) -> None:
    """Start a worker for this home unless one serves it. It outlives the process that starts it.

    With `ahead` it imports what stages need before there is a run.
    """
    _workers[:] = [process for process in _workers if process.poll() is None]
    lock = locks.take(home / WORKER_LOCK)
    if lock is None:
        return
    try:
        with files.log(home / WORKER_LOG) as log:
            process = own_process.start(
                ["-m", "pipeline", "worker", "--lock", str(lock), *(["--ahead"] if ahead else [])],
                settings.child_environment(OLIVE_LAB_HOME=str(home)),
                stdout=log,
                stderr=subprocess.STDOUT,
                keep=[lock],  # it holds the lock from the start, so nobody starts a second one
                apart=True,
            )
    finally:
        os.close(lock)
    _workers.append(process)


def serve(home: Path, lock: int | None = None, *, ahead: bool = False) -> int:
    """`python -m pipeline worker`: serve until idle or told to stop."""
    if lock is not None:
        os.set_inheritable(lock, False)
    worker = Worker(Store(home, check=True))
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    worker.serve(lock=lock, ahead=ahead)
    return 0
