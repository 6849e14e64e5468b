"""Caches answers of Gradio that are the same for everybody: its page, which it would make for each request.

Making it takes 100 ms while holding Python's lock; with pages that poll, and on a busy machine, seconds. And
anybody may ask for it, under any IP address. So it is made once, without the address that it is opened by. A
script of Gradio's is mended here, too.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webapp.gradio_routes.script_mends import mended

SCRIPT = re.compile(r"/assets/index-[A-Za-z0-9_-]+\.js")
PAGES = ("/", "/config")
# Gradio writes the address that it was asked by into its page. The page resolves it against the address that
# the browser has open, so the root alone says as much, and is the same for everybody.
HOST = "page.invalid"
ROOT = re.compile(rb'(?<=")http://page\.invalid/?(?=")')


@dataclass(frozen=True)
class Answer:
    """An answer that is the same for all, also compressed, and with an ETag."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)
    packed: bytes = field(repr=False)

    @cached_property
    def tag(self) -> str:
        """Its ETag."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'

    def to(self, given: Headers) -> Response:
        """As a response to a request with these headers."""
        if self.status != 200:
            return Response(self.body, self.status, self.headers)
        headers = {**self.headers, "ETag": self.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self.tag in given.get("if-none-match", ""):
            return Response(None, 304, headers)
        if "gzip" in given.get("accept-encoding", ""):
            return Response(self.packed, headers={**headers, "Content-Encoding": "gzip"})
        return Response(self.body, headers=headers)


class Kept:
    """ASGI app in front of Gradio's, for requests that `holds` says yes to."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._answers: dict[str, Answer] = {}  # by path: few, as only those of what is there are kept
        self._making = asyncio.Lock()  # made once for simultaneous requests; what is kept doesn't wait for it

    @staticmethod
    def holds(scope: Scope) -> bool:
        """Whether the answer to a request depends on nothing but its path."""
        asked = scope["path"] in PAGES or SCRIPT.fullmatch(scope["path"]) is not None
        return asked and scope["method"] in ("GET", "HEAD")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answers.get(scope["path"]) or await self._make(scope)
        await answer.to(Headers(scope=scope))(scope, receive, send)

    async def _make(self, scope: Scope) -> Answer:
        async with self._making:
            answer = self._answers.get(scope["path"]) or await _made(self.app, scope)
            if answer.status == 200:
                self._answers[scope["path"]] = answer
            return answer


async def _made(app: ASGIApp, scope: Scope) -> Answer:
    """Gradio's answer to a plain request: no query, and no header but one and the same host's name."""
    messages: list[Message] = []
    given = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return given.pop() if given else await asyncio.Future()  # further reads are canceled

    async def send(message: Message) -> None:
        messages.append(message)

    plain: dict[str, Any] = {
        "method": "GET",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"host", HOST.encode())],
    }
    await app({**scope, **plain}, receive, send)
    body = b"".join(message.get("body", b"") for message in messages)
    body = ROOT.sub(b"/", body) if scope["path"] in PAGES else mended(body)
    start = next(message for message in messages if message["type"] == "http.response.start")
    kind = Headers(raw=start["headers"]).get("content-type", "text/plain")
    return Answer(start["status"], {"Content-Type": kind}, body, gzip.compress(body, 6))
