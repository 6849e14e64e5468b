"""Time for what reads datasets and models: it is done in a thread, with an answer on the way every second.

Such events share a few places (`parts.CHECKS`). An event that cannot be left, because its handler says
nothing for long, keeps everybody's Stop waiting: Gradio closes a handler under a lock, and only where that
has yielded. So the work is done by a thread, which has the datasets read by processes (`check_pool`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from pipeline.errors import LabError
from pipeline.system import own_process

T = TypeVar("T")
S = TypeVar("S")

PLACES = 14
THREADS = 40  # with those whose events were left, for as long as these last
TELL_SECONDS = 1.0
BUSY = "Many others check data or models just now; try again in a minute."
LEFT = "Nobody waits for this any more."


def steps(
    work: Callable[[Callable[[str], None]], T], shown: Callable[[str], S], *, to_its_end: bool = False
) -> Generator[S, None, T]:
    """Have a thread do `work`; returns what that returns, and raises what it does.

    Yields `shown(text)` of what the work tells, the last one again every TELL_SECONDS. When the generator is
    closed the work ends as soon as it tells something, and so does a process that it waits for
    (`own_process.run`, `check_pool`); `to_its_end` it does not.
    Raises LabError if too many do so at once, or no thread can be started.
    """
    left = threading.Event()
    told: SimpleQueue[str | None] = SimpleQueue()  # None at the end
    done: Future[T] = Future()

    def look() -> None:
        if left.is_set():
            raise LabError(LEFT)

    def tell(text: str) -> None:
        look()
        told.put(text)

    def do() -> None:
        try:
            with own_process.while_wanted(look):
                done.set_result(work(tell))
        except BaseException as error:  # whatever it is, whoever waits has to know
            done.set_exception(error)
        finally:
            _threads.release()
            told.put(None)

    if not _threads.acquire(blocking=False):
        raise LabError(BUSY)
    try:
        own_process.start_thread(threading.Thread(target=do, name="check", daemon=True))
    except BaseException:
        _threads.release()
        raise
    text: str | None = ""
    try:
        while True:
            with suppress(Empty):
                text = told.get(timeout=TELL_SECONDS)
            if text is None:
                return done.result()
            yield shown(text)
    finally:
        if not to_its_end:
            left.set()


_threads = threading.BoundedSemaphore(THREADS)
