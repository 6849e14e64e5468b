"""Time for what reads a whole dataset: everybody gets a moment of the page's own, and answers on the way.

Such events share a few places (`parts.CHECKS`). If long ones took the time of this process, nobody else's
check, not even one of ten rows, would be answered until they end: what takes longer than a moment goes to
a process of its own (`data_check`), of which there are few.

An event that cannot be left, because its handler says nothing for long, keeps everybody's Stop waiting:
Gradio closes a handler under a lock, and only where that has yielded. So the work is done by a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from pipeline import settings
from pipeline.errors import LabError, TakesLong
from pipeline.inputs.data import datasets
from pipeline.runs import data_check

T = TypeVar("T")
S = TypeVar("S")

PLACES = 10
THREADS = 30  # with those whose events were left, for as long as these last
BRIEF_SECONDS = 2.0  # in this process
TELL_SECONDS = 1.0
LONG = (
    f"Reading this dataset takes longer than {BRIEF_SECONDS:.0f} seconds; use the command line"
    " ({} check, and run), or a part of the file."
)
BUSY = "Many others check data or models just now; try again in a minute."
LEFT = "Nobody waits for this any more."


class Turn:
    """The time of one event, from now on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.left = False

    def go_on(self) -> None:
        """Raises LabError if the event is to end; TakesLong if another process is to do what is done here."""
        spent = time.monotonic() - self._began
        if self.left:
            raise LabError(LEFT)
        if spent > data_check.MOST_SECONDS:
            raise LabError(data_check.TOO_LONG.format(command=settings.command()))
        if spent > BRIEF_SECONDS:
            raise TakesLong(LONG.format(settings.command()))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile what this thread reads of datasets takes time of this turn. A generator may not yield."""
        token = datasets.go_on.set(self.go_on)
        try:
            yield
        finally:
            datasets.go_on.reset(token)


@contextmanager
def turn() -> Iterator[None]:
    """A turn for all that this thread reads meanwhile; that raises what `Turn.go_on` does."""
    with Turn().held():
        yield


def steps(
    work: Callable[[Callable[[str], None]], T], shown: Callable[[str], S], *, to_its_end: bool = False
) -> Generator[S, None, T]:
    """Have a thread do `work` in a turn of its own; returns what that returns, and raises what it does.

    Yields `shown(text)` of what the work tells, the last one again every TELL_SECONDS. When the generator is
    closed the work ends as soon as it tells something or reads on, or `to_its_end` it does not.
    Raises LabError if too many do so at once.
    """
    if not _threads.acquire(blocking=False):
        raise LabError(BUSY)
    mine = Turn()
    told: SimpleQueue[str | None] = SimpleQueue()  # None at the end
    done: Future[T] = Future()

    def tell(text: str) -> None:
        if mine.left:
            raise LabError(LEFT)
        told.put(text)

    def do() -> None:
        try:
            with mine.held():
                done.set_result(work(tell))
        except BaseException as error:  # whatever it is, whoever waits has to know
            done.set_exception(error)
        finally:
            _threads.release()
            told.put(None)

    threading.Thread(target=do, name="check", daemon=True).start()
    text: str | None = ""
    try:
        while True:
            with suppress(Empty):
                text = told.get(timeout=TELL_SECONDS)
            if text is None:
                return done.result()
            yield shown(text)
    finally:
        mine.left = not to_its_end


_threads = threading.BoundedSemaphore(THREADS)
