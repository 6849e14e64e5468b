"""Cached views of runs, looked up once for all pages: many may ask several times a second."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from pipeline import settings
from pipeline.publish import zip_file
from pipeline.runs import estimate
from pipeline.runs.comparing import scorecard
from pipeline.runs.comparing.scorecard import Row
from pipeline.stages import events
from pipeline.store import Store, device_locks
from pipeline.store.run import EVENTS, PROCESS, QUEUED, RUNNING, Run, StageRun
from pipeline.store.turns import Waiting
from pipeline.system import clock
from pipeline.system.files import to_json
from webapp.home import known_run, store
from webapp.threads import LOOKUPS, Threads

RUN_SECONDS = 0.15  # maximum age of a cached view: of one run,
LIST_SECONDS = 1.0  # of all runs,
QUEUE_SECONDS = 0.5  # of the queue,
EXPECTED_SECONDS = 10.0  # of how long a run's stages may take
MOST_RUNS = 200
MOST_WAITING = 100
THREADS = 2  # for these look-ups, so that handlers and the page keep their threads
FORGET_SECONDS = 60.0

T = TypeVar("T")
# What the page is told of a stage.
TOLD = ("name", "kind", "status", "started", "finished", "seconds", "reused", "error", "verdict",
        "asked", "worse")  # fmt: skip


@dataclass(frozen=True)
class Look:
    """A recent state of a run, the facts for the page, and these as JSON."""

    run: Run
    status: dict[str, Any]
    text: bytes = field(repr=False)


class Watch:
    """Cached views of the runs in a store, renewed on request when too old."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._looks: Remembered[Look] = Remembered(RUN_SECONDS)
        self._lists: Remembered[list[Run]] = Remembered(LIST_SECONDS)
        self._expected: Remembered[dict[str, float]] = Remembered(EXPECTED_SECONDS)
        self._queues: Remembered[bytes] = Remembered(QUEUE_SECONDS)
        self._positions: Remembered[dict[str, tuple[int, Waiting]]] = Remembered(QUEUE_SECONDS)
        self._histories: Remembered[list[Run]] = Remembered(0.0)
        self._scorecards: Remembered[dict[str, list[Row]]] = Remembered(LIST_SECONDS)
        self._facts: dict[Path, events.Newest] = {}
        self._threads = Threads(THREADS, "watch")

    async def look(self, run: str) -> Look:
        """The run of that id. Raises InputError."""
        return await self._looks.shared(run, lambda: self._look(run), self._threads)

    def look_now(self, run: str, *, refresh: bool = False) -> Look:
        """The same, for threads; `refresh` after the run was changed."""
        return self._looks.get(run, lambda: self._look(run), refresh=refresh)

    async def runs(self) -> list[Run]:
        """The newest runs, newest first."""
        return await self._lists.shared("", lambda: self.store.list(MOST_RUNS), self._threads)

    async def queue(self) -> bytes:
        """Whether the queue is paused, the running jobs, and the first waiting runs in order, as JSON."""
        return await self._queues.shared("", self._queue, self._threads)

    async def scorecard(self, group: str) -> list[Row]:
        """The rows of a scorecard, none if there is no such one.

        All are read together, apart from what else is polled: a name that somebody made up costs no look of
        its own. One that nobody knows may just have been queued, so it is looked for once more, which all
        who wait for theirs share.
        """
        for refresh in (False, True):
            known = await self._scorecards.shared(
                "", lambda: scorecard.every(self.store), LOOKUPS, refresh=refresh
            )
            if group in known:
                return known[group]
        return []

    def history(self, deleted: bool) -> list[Run]:
        """The newest runs as they are now, or the deleted ones; read once for all who ask meanwhile."""
        return self._histories.get(str(deleted), lambda: self.store.list(deleted=deleted), refresh=True)

    def queue_now(self) -> bytes:
        """The current queue, for a thread that has changed it."""
        self._positions.get("", self._line, refresh=True)
        return self._queues.get("", self._queue, refresh=True)

    def _queue(self) -> bytes:
        waiting = self.store.queue()
        on = [
            (self.store.get(run), stage) for run, stage, device in self.store.running() if device is not None
        ]
        told = {
            "paused": self.store.paused,
            "running": [
                {"id": run.id, "name": run.name, "owner": run.owner, "stage": stage} for run, stage in on
            ],
            "waiting": [
                {"id": run.id, "name": run.name, "owner": run.owner, "urgent": run.urgent}
                for run in waiting[:MOST_WAITING]
            ],
            "more": max(len(waiting) - MOST_WAITING, 0),
        }
        return to_json(told).encode()

    def _runs(self) -> list[Run]:
        return self._lists.get("", lambda: self.store.list(MOST_RUNS))

    def _look(self, run_id: str) -> Look:
        run = known_run(run_id, self.store)
        status = self._status(run)
        return Look(run, status, to_json(status).encode())

    def _status(self, run: Run) -> dict[str, Any]:
        stages = [self._stage(run, stage) for stage in run.stages]
        running = next((told for told in stages if told["status"] == RUNNING), {})
        return {
            "id": run.id,
            "name": run.name,
            "status": run.status,
            "created": run.created,
            "now": time.time(),
            "cancel_requested": run.cancel_requested,
            "exported": zip_file.exported(run) is not None,
            "current": run.current.name if run.current else None,
            **(self._waits(run) if run.status == QUEUED else {"ahead": 0, "waits": ""}),
            "progress": self._progress(run, running) if run.status == RUNNING else None,
            "stages": stages,
        }

    def _stage(self, run: Run, stage: StageRun) -> dict[str, Any]:
        told = {key: getattr(stage, key) for key in TOLD}
        folder = self.store.folder(run.id, stage.name)
        if stage.status != RUNNING:
            self._facts.pop(folder, None)
            return {**told, "elapsed": None, "facts": {}}
        facts = self._facts.setdefault(folder, events.Newest(folder / EVENTS))
        return {**told, "elapsed": _elapsed(folder / PROCESS), "facts": facts.read()}

    def _progress(self, run: Run, running: dict[str, Any]) -> dict[str, float | None]:
        expected = self._expected.get(run.id, lambda: self._expect(run))
        return estimate.progress(run, running.get("facts", {}), running.get("elapsed"), expected)

    def _expect(self, run: Run) -> dict[str, float]:
        return estimate.expected(run, self._runs(), estimate.predicted(self.store.folder(run.id)))

    def _waits(self, run: Run) -> dict[str, Any]:
        """How many runs are ahead of a queued one, and what else it waits for, in words. Whoever looks at a
        waiting run asks for that.
        """
        ahead, waiting = self._positions.get("", self._line).get(run.id, (0, None))
        waits = device_locks.waits(self.store, waiting) if waiting else ""
        return {"ahead": ahead + len(self.store.running()), "waits": waits}

    def _line(self) -> dict[str, tuple[int, Waiting]]:
        """Each waiting run, and how many are before it."""
        return {waiting.id: (ahead, waiting) for ahead, waiting in enumerate(self.store.queue())}


class Remembered(Generic[T]):
    """Values by name, each made at most once in `seconds`, for all threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = Lock()
        self._values: dict[str, tuple[float, float, T]] = {}  # when making it started, and ended
        self._making: dict[str, asyncio.Future[T]] = {}

    def fresh(self, name: str) -> T | None:
        """The value if it is new enough."""
        _, made, value = self._values.get(name, (0.0, 0.0, None))
        return value if time.monotonic() - made < self.seconds else None

    async def shared(
        self, name: str, make: Callable[[], T], threads: ThreadPoolExecutor, *, refresh: bool = False
    ) -> T:
        """The value, made in one of the threads if needed: once, however many wait for it.

        With `refresh` it is made after this call started.
        """
        found = self.fresh(name)
        if found is not None and not refresh:
            return found
        making = self._current(name)
        if refresh and making is not None:
            await asyncio.wait([making])  # it may have started before; others may start the next
            making = self._current(name)
        if making is None:
            work = partial(self.get, name, make, refresh=refresh)
            making = self._making[name] = asyncio.get_running_loop().run_in_executor(threads, work)
            making.add_done_callback(lambda done: self._made(name, done))
        return await asyncio.shield(making)  # a canceled request must not cancel it for the others

    def _current(self, name: str) -> asyncio.Future[T] | None:
        """The value that is being made for this event loop."""
        making = self._making.get(name)
        return making if making is not None and making.get_loop() is asyncio.get_running_loop() else None

    def _made(self, name: str, done: asyncio.Future[T]) -> None:
        if self._making.get(name) is done:
            del self._making[name]
        if not done.cancelled():
            done.exception()  # marks it as seen; waiters still get it

    def get(self, name: str, make: Callable[[], T], *, refresh: bool = False) -> T:
        """The value, made if needed; values unused for a while are dropped.

        With `refresh` it is made after this call started: once for all who wait for it meanwhile.
        """
        asked = time.monotonic()
        with self._lock:
            started, _, value = self._values.get(name, (0.0, 0.0, None))
            if value is None or (started <= asked if refresh else self.fresh(name) is None):
                started, value = time.monotonic(), make()
                now = time.monotonic()
                self._values = {k: v for k, v in self._values.items() if now - v[1] < FORGET_SECONDS}
                self._values[name] = (started, now, value)
            return value


def _elapsed(path: Path) -> float | None:
    """Seconds that a running stage has run, from its process's mark; None if unknown."""
    try:
        return clock.since(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # it is only just starting
        return None


def watch() -> Watch:
    """The `Watch` of this process's home."""
    return _over(settings.home())


@lru_cache(maxsize=8)
def _over(home: Path) -> Watch:
    return Watch(store())
