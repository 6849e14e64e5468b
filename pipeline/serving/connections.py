"""Limits on connections, so that nobody is locked out: few enough for the system, and none waits forever.

uvicorn waits endlessly for the rest of a request's headers or body. Dropped tunnels leave such connections
behind, and an attacker can open thousands.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import time
from contextlib import suppress
from typing import Any

import h11
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

WAIT_SECONDS = 30.0  # for headers, for the next piece of a body, and for the client to read some of an answer
# A body may be slower than this for PATIENCE_SECONDS in all: else a client that sends a byte now and then
# could hold an upload's disk space forever. The slowest tunnels are several times faster. Where there are too
# many connections, those that are this fast end last.
LEAST_SPEED = 16 << 10  # bytes a second
PATIENCE_SECONDS = 60.0
MOST = 1000  # connections; a page holds up to six
FILES = 1 << 16  # that this process may hold open
LOG_SECONDS = 60.0  # between two lines about requests that did not arrive; there may be hundreds a second
INVALID = "Invalid HTTP request received."  # uvicorn's line for each
log = logging.getLogger(__name__)


class Seldom:
    """Lines that any client can cause as often as it likes: one in LOG_SECONDS is logged."""

    def __init__(self) -> None:
        self._logged = -math.inf
        self._unlogged = 0

    def others(self) -> str | None:
        """What a line that is logged now adds on those that were not; None if it is too soon for one."""
        if time.monotonic() - self._logged < LOG_SECONDS:
            self._unlogged += 1
            return None
        others = f"; so did {self._unlogged:,} others since the last such line" if self._unlogged else ""
        self._logged, self._unlogged = time.monotonic(), 0
        return others

    def __call__(self, record: logging.LogRecord) -> bool:
        """As a filter of uvicorn's log: whether a line is logged."""
        if record.msg != INVALID:
            return True
        others = self.others()
        if others is None:
            return False
        record.msg = f"A request that is not HTTP came{others}."
        return True


logging.getLogger("uvicorn.error").addFilter(Seldom())


def most() -> int:
    """How many connections there may be, after asking the system for as many open files as it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < allowed:
        with suppress(OSError, ValueError):  # then the limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    return min(MOST, soft // 2)  # the rest is for the files and processes that answer


class Patient(H11Protocol):
    """uvicorn's protocol for a connection, which ends if headers don't arrive, or nothing is read, in time.

    If there are too many connections, one ends that the lab waits for, because it is idle or its request has
    not arrived, and not the new one.
    """

    most = MOST
    wait_seconds = WAIT_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless too many are busy."""
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None
        self._ended = False
        self._wait()
        if len(self.connections) > self.most and not self._make_room():
            self._ended = True
            transport.close()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read received data."""
        super().data_received(data)
        self._watch()
        self._received += len(data)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of one that was answered early."""
        super().on_response_complete()
        self._wait()
        self._watch()
        if self.transport.is_closing():  # once everything is sent, which depends on the client
            self._expect_taken()

    def pause_writing(self) -> None:
        """Wait until the client has read some of the answer."""
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        """It has."""
        super().resume_writing()
        self._taken()
        if self.transport.is_closing():
            self._expect_taken()

    def _unsupported_upgrade_warning(self) -> None:
        """No line: such a request is answered as one that asks for no upgrade. uvicorn would log two."""

    def _make_room(self) -> bool:
        """End the connection that the lab has waited for longest, if there is one besides this.

        A body that trickles in is waited for like a request that doesn't come: else a thousand of them, which
        cost a client next to nothing, would close the lab to all others. But what has been received counts as
        time, as much as it takes at LEAST_SPEED. So an upload that gets along goes after all that does not,
        however long it has been here; and with room for all, none of this matters.
        """
        others = (one for one in self.connections if isinstance(one, Patient) and one is not self)
        longest = min(
            (one for one in others if one._is_waited_for()),
            key=lambda one: one._since + one._received / LEAST_SPEED,
            default=None,
        )
        if longest is None:
            return False
        longest._ended = True
        longest.transport.abort()
        return True

    def _is_waited_for(self) -> bool:
        """Whether the lab waits for a request of this client, or for the rest of one."""
        return not self._ended and (not self._is_answering() or self.cycle.more_body)

    def _wait(self) -> None:
        """From now on the lab waits for the client, which has sent nothing yet."""
        self._since = self.loop.time()
        self._received = 0

    def _expect_taken(self) -> None:
        if self._untaken is None:
            left = self.transport.get_write_buffer_size()
            self._untaken = self.loop.call_later(self.wait_seconds, self._look_taken, left)

    def _look_taken(self, before: int) -> None:
        self._untaken = None
        if self.transport.get_write_buffer_size() < before:
            self._expect_taken()
        else:
            self.transport.abort()

    def _taken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE and self._is_answering():
            if self._late is not None:  # the headers are there, and the body may not be
                self._forget()
                self._wait()
        elif self._late is None:
            self._late = self.loop.call_later(self.wait_seconds, self._end)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._forget()
        if not self._is_answering():
            self.transport.close()
            self._expect_taken()


class Bodies:
    """ASGI middleware: a body that stops arriving, or is too slow for too long, ends its request. A line is
    logged, at most one in LOG_SECONDS."""

    def __init__(
        self, app: ASGIApp, wait_seconds: float = WAIT_SECONDS, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self.app = app
        self.wait_seconds = wait_seconds
        self.patience_seconds = patience_seconds
        self._seldom = Seldom()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        whole = started = late = False
        patience = self.patience_seconds
        clock = asyncio.get_running_loop().time

        async def in_time() -> Message:
            nonlocal whole, late, patience
            if whole:  # the next message is the end of the connection
                return await receive()
            asked = clock()
            try:
                message = await asyncio.wait_for(receive(), min(self.wait_seconds, patience))
            except TimeoutError:
                late = True
                return {"type": "http.disconnect"}
            patience += len(message.get("body", b"")) / LEAST_SPEED - (clock() - asked)
            patience = min(patience, self.patience_seconds)
            whole = not message.get("more_body")
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if late and not started:  # Gradio's app would answer 500, FastAPI 400
                return
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, in_time, noted)
            incomplete = late and not started
        except ClientDisconnect:
            incomplete = True
        if incomplete:
            self._log(scope["path"])
            if not started:
                reply: Any = PlainTextResponse(
                    "The connection ended before the request was complete.\n", status_code=408
                )
                await reply(scope, receive, send)

    def _log(self, path: str) -> None:
        if (others := self._seldom.others()) is not None:
            log.warning("The connection ended before a request for %s was complete%s.", ascii(path), others)
