"""Who is answered and who waits: so many at a time, by turns, and so many behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from pipeline.exports.chat import chat_client, chat_processes
from pipeline.serving.offer import Offer
from pipeline.serving.questions import Question
from pipeline.serving.replies import Fault

MOST_ANSWERED = 16  # at a time: their turns are fair, and each of them takes memory
MOST_WAITING = 48
STUCK_SECONDS = 600.0  # without a word, after which a model's process is ended
FULL = f"{MOST_ANSWERED + MOST_WAITING} requests are being answered or wait; try again in a moment."
STUCK = f"The model has said nothing for {STUCK_SECONDS / 60:.0f} minutes, so it was ended; ask again."
STOPPED = "The server is being stopped; start it again, then ask again."


class Desk:
    """Takes questions to the process of the model that is offered; a process that dies is started again.

    `count` is called with how many are here, whenever one comes or goes.
    """

    def __init__(self, home: Path, offer: Offer, count: Callable[[int], None] | None = None) -> None:
        self.home = home
        self.offer = offer
        self.count = count or (lambda here: None)
        self.closing = asyncio.Event()
        self._places = asyncio.Semaphore(MOST_ANSWERED)  # first come, first served
        self._here = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        """End all answers, from a signal's handler or another thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.closing.set)

    async def load(self) -> None:
        """Load the model. Raises LabError if that fails."""
        self._loop = asyncio.get_running_loop()
        await chat_processes.load(self.home, self.offer.source)

    async def answer(self, question: Question) -> AsyncGenerator[dict[str, Any], None]:
        """The pieces of an answer, as `chat_server` gives them; closing it ends the answer.

        Raises Fault if too many are here, LabError if the model fails, and its Refused.
        """
        if self._here >= MOST_ANSWERED + MOST_WAITING:
            raise Fault(FULL, 429, code="too_many_requests")
        self._come(1)
        try:
            async with self._places:
                asked = chat_client.exchange(
                    self.home, self.offer.source, question.request(), MOST_ANSWERED + 1
                )
                async with aclosing(asked) as pieces:
                    while (piece := await self._next(pieces)) is not None:
                        yield piece
        finally:
            self._come(-1)

    def _come(self, more: int) -> None:
        self._here += more
        self.count(self._here)

    async def _next(self, pieces: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
        """The next piece, None at the end. A model that hangs is ended, and with it all its answers."""
        try:
            async with asyncio.timeout(STUCK_SECONDS):  # `wait_for` loses a cancellation now and then
                return await anext(pieces, None)
        except TimeoutError:
            await chat_processes.unload(self.offer.source)
            raise Fault(STUCK, 503, code="model_failed") from None
