"""Connections that keep nobody else from the lab: few enough for the system, and none that waits for ever.

uvicorn waits without end for the rest of a request's headers or body. A tunnel that was dropped leaves such
connections behind, and whoever wants to can open thousands.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import suppress
from typing import Any

import h11
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

WAIT_SECONDS = 30.0  # for a request's headers, and for the next piece of its body
MOST = 1000  # connections; a page holds up to six
FILES = 1 << 16  # that this process may hold open
log = logging.getLogger(__name__)


def most() -> int:
    """How many connections there may be, after asking the system for as many open files as it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < allowed:
        with suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    return min(MOST, soft // 2)  # the rest is for the files and processes that answer


class Patient(H11Protocol):
    """uvicorn's protocol for one connection, which ends where no whole headers come in time."""

    most = MOST
    wait_seconds = WAIT_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take up a connection, unless there are too many."""
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            transport.close()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()  # the headers are there
        elif self._late is None:
            self._late = self.loop.call_later(self.wait_seconds, self._end)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.conn.their_state is h11.IDLE and not answering:
            self.transport.close()


class Bodies:
    """ASGI middleware: a body that stops coming ends its request, with one line in the log."""

    def __init__(self, app: ASGIApp, wait_seconds: float = WAIT_SECONDS) -> None:
        self.app = app
        self.wait_seconds = wait_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        whole = started = False

        async def in_time() -> Message:
            nonlocal whole
            if whole:  # what comes now is the end of the connection, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.wait_seconds)
            except TimeoutError:
                return {"type": "http.disconnect"}
            whole = not message.get("more_body")
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, in_time, noted)
        except ClientDisconnect:
            log.warning("A request for %s broke off.", ascii(scope["path"]))
            if not started:
                reply: Any = PlainTextResponse("The request broke off.\n", status_code=408)
                await reply(scope, receive, send)
