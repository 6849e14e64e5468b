"""Caches answers of Gradio that are the same for everybody: its page, which it would make for each request.

Making it takes 40 ms while holding Python's lock; with pages that poll, and on a busy machine, seconds. A
script of Gradio's is also patched here.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPT = re.compile(r"/assets/index-[A-Za-z0-9_-]+\.js")
MOST = 16  # answers; a page for each address that the lab is opened by, and few scripts
# Gradio's client fails to close the stream of an upload's progress and logs an error for each upload. The
# server ends the stream with the upload; the client only has to stop listening.
OPEN = re.compile(rb"close:\(\)=>\{console\.warn\([`'\"]Method not implemented\.[`'\"]\)\}")
CLOSED = rb"close(){this.onmessage=this.onerror=null;this.readyState=2}"


@dataclass(frozen=True)
class Answer:
    """An answer that is the same for all, also compressed, and with an ETag."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)
    packed: bytes = field(repr=False)

    def to(self, given: Headers) -> Response:
        """As a response to a request with these headers."""
        tag = f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'
        headers = {**self.headers, "ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self.status != 200:
            return Response(self.body, self.status, self.headers)
        if tag in given.get("if-none-match", ""):
            return Response(None, 304, headers)
        if "gzip" in given.get("accept-encoding", ""):
            return Response(self.packed, headers={**headers, "Content-Encoding": "gzip"})
        return Response(self.body, headers=headers)


class Kept:
    """ASGI app in front of Gradio's, for requests that `holds` says yes to."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._answers: dict[tuple[str, ...], Answer] = {}  # least recently used first
        self._making = asyncio.Lock()  # made once for simultaneous requests

    @staticmethod
    def holds(scope: Scope) -> bool:
        """Whether the answer to a request depends on nothing but the address that the lab is opened by."""
        asked = scope["path"] == "/" or SCRIPT.fullmatch(scope["path"]) is not None
        return asked and scope["method"] in ("GET", "HEAD")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope)
        known = (scope["path"], scope["scheme"], given.get("host", ""), scope.get("root_path", ""))
        async with self._making:
            answer = self._answers.pop(known, None) or await _made(self.app, scope, given.get("host", ""))
            if answer.status == 200:
                self._answers[known] = answer
                while len(self._answers) > MOST:
                    del self._answers[next(iter(self._answers))]
        await answer.to(given)(scope, receive, send)


async def _made(app: ASGIApp, scope: Scope, host: str) -> Answer:
    """Gradio's answer to a plain request: no query, and no header but the host's name."""
    messages: list[Message] = []
    given = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return given.pop() if given else await asyncio.Future()  # further reads are canceled

    async def send(message: Message) -> None:
        messages.append(message)

    plain: dict[str, Any] = {
        "method": "GET",
        "query_string": b"",
        "headers": [(b"host", host.encode("latin-1"))],
    }
    await app({**scope, **plain}, receive, send)
    body = b"".join(message.get("body", b"") for message in messages)
    if scope["path"] != "/":
        body = OPEN.sub(CLOSED, body)
    start = next(message for message in messages if message["type"] == "http.response.start")
    kind = Headers(raw=start["headers"]).get("content-type", "text/plain")
    return Answer(start["status"], {"Content-Type": kind}, body, gzip.compress(body, 6))
