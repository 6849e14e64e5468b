"""What our routes ask of a process (`check_pool`): in threads of their own, and only for who still waits.

A route's own thread is one of those that every page needs for its scripts and its status, and a report may
take minutes. So a route never waits for a process itself. Each kind of question has a few threads, for which
a few more may wait; of those that are answered the oldest makes room for who waits, after a while. Together
with the checks of the page they are no more than the processes that there may be (`check_pool.MOST`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from starlette.requests import Request

from pipeline.errors import LabError
from pipeline.inputs.data import telling
from pipeline.runs import check_pool
from webapp.threads import Threads

WAITING = 12  # questions of a kind that may wait for a thread
OLD_SECONDS = 15.0  # after which the oldest makes room for one that waits
THREAD = "asking"  # how the names of these threads begin
MANY = "Many others ask for the like just now; try again in a moment."
MADE_ROOM = "Others wait for the like, so this was ended after {seconds:.0f} seconds; try again later."
LEFT = "Nobody waits for this any more."
CLOSING = "Olive Lab is being stopped; try again when it is back."


class Places:
    """So many questions of a kind are answered at a time, and `WAITING` more wait for it, in turn."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._threads = Threads(most, thread_name_prefix=THREAD)
        self._asked: list[Question] = []  # those without an answer yet, the oldest first
        self._changing = threading.Lock()

    def ask(self, function: str, given: dict[str, Any]) -> Question:
        """Have a thread ask a process, as `check_pool.ask` does. Raises LabError if too many do."""
        question = Question(function, given, self)
        with self._changing:
            if len(self._asked) >= self.most + WAITING:
                raise LabError(MANY)
            question.answer = self._threads.submit(question.carry_out)
            self._asked.append(question)
        question.answer.add_done_callback(lambda _: self._forget(question))
        return question

    def is_to_go(self, question: Question) -> bool:
        """Whether this one is the oldest, and another waits for its thread."""
        with self._changing:
            return len(self._asked) > self.most and self._asked[0] is question

    def _forget(self, question: Question) -> None:
        with self._changing:
            self._asked.remove(question)


class Question:
    """One question; `answer` comes from a thread."""

    answer: Future[Any]

    def __init__(self, function: str, given: dict[str, Any], places: Places) -> None:
        self._function, self._given, self._places = function, given, places
        self._left = threading.Event()
        self._began = 0.0

    def leave(self) -> None:
        """Nobody waits for it any more: its process ends, or it never gets one."""
        self._left.set()
        self.answer.cancel()

    def carry_out(self) -> Any:
        """The answer of a process. Raises what `check_pool.ask` does, and LabError where it has to end."""
        self._began = time.monotonic()
        with closing(check_pool.ask(self._function, self._given)) as steps:
            return telling.ended(steps, lambda _: self._see_to())

    def _see_to(self) -> None:
        if self._left.is_set():
            raise LabError(LEFT)
        seconds = time.monotonic() - self._began
        if seconds > OLD_SECONDS and self._places.is_to_go(self):
            raise LabError(MADE_ROOM.format(seconds=seconds))


# By what is read for an answer, so that a kind that takes long keeps no other waiting.
ROWS = Places(12)  # all rows of a dataset: reports and ZIPs with rows, downloads of rows
PAGES = Places(8)  # a page of a table, a vote
TEXTS = Places(4)  # reports and ZIPs without rows
MODELS = Places(2)  # what a hub says of a model


async def answered(
    request: Request, places: Places, function: str, given: dict[str, Any], *, to_its_end: bool = False
) -> Any:
    """What `module:function` returns for `given`, asked of a process, which ends when the client leaves.

    With `to_its_end` it does not: what it writes is wanted all the same. Raises what `check_pool.ask` does,
    and LabError if too many ask, if it takes long and others wait, or if the app is being stopped.
    """
    question = places.ask(function, given)
    answer = asyncio.wrap_future(question.answer)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait([answer] if to_its_end else [answer, gone], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise LabError(LEFT)
    except asyncio.CancelledError:  # by the server, which would log it as an error of ours
        raise LabError(CLOSING) from None
    finally:
        gone.cancel()
        answer.cancel()  # else asyncio complains of an error that nobody takes
        question.leave()


async def _gone(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
