"""Checks every request: other sites and methods that no route has are refused, and every answer gets
security headers.

Headers that a proxy may add (`X-Forwarded-Host` and similar) are dropped: anybody can send them, and Gradio
would build the page's addresses from them.

Which requests pages of other sites send: see `pipeline.serving.origins`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving import origins

UPLOAD = re.compile(r"/gradio_api/upload/?")
LARGEST_BODY = 1 << 20  # bytes: a form's texts, some of them long
SAFE_METHODS = ("GET", "HEAD")
METHODS = (*SAFE_METHODS, "POST")  # of the routes here and Gradio's; a body after CONNECT fails in the server
# With these a client could claim another address or user. Gradio trusts them.
FORWARDED = (b"forwarded", b"x-forwarded-", b"x-gradio-", b"x-original-", b"x-real-ip")

# Gradio compiles templates in the page, hence 'unsafe-eval'. The rest keeps the page from calling out,
# whatever a log or a dataset contains.
CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware. `names` are accepted as `Host`, besides localhost and IP addresses."""

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": [pair for pair in scope["headers"] if not _is_forwarded(pair[0])]}
        method = scope.get("method", "GET")
        if method not in METHODS:
            refused = PlainTextResponse("There is no such method here.\n", 405, {"Allow": ", ".join(METHODS)})
            await refused(scope, receive, _with_headers(send))
            return
        reason = refusal(Headers(scope=scope), method, scope["path"], self.names)
        if reason is None and scope["type"] == "http" and not UPLOAD.fullmatch(scope["path"]):
            await self._bounded(scope, receive, _with_headers(send))
        elif reason is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(reason + "\n", status_code=403)(scope, receive, _with_headers(send))

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request whose body is no larger than the page's; uploads have a limit of their own."""
        left = LARGEST_BODY

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            # For a body that is too large, the app sees a disconnected client and reads no more of it.
            return message if left >= 0 else {"type": "http.disconnect"}

        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) <= LARGEST_BODY:
            await self.app(scope, counted, send)
        else:
            await PlainTextResponse("This request is too large.\n", status_code=413)(scope, receive, send)


def refusal(headers: Headers, method: str, path: str, names: Collection[str] = ()) -> str | None:
    """Why a request is refused, or None."""
    reason = origins.rebound(headers, names)
    if reason is None and origins.is_foreign(headers):
        reason = origins.FOREIGN
    if reason is None and origins.crosses(headers) and not _is_navigation(headers, method, path):
        reason = origins.FOREIGN
    return reason


def _is_forwarded(name: bytes) -> bool:
    return name.lower().startswith(FORWARDED)


def _is_navigation(headers: Headers, method: str, path: str) -> bool:
    """A click on a link to the page: it shows the page and does nothing else."""
    to_document = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return to_document and method in SAFE_METHODS and path == "/"


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
