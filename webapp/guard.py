"""Checks every request: other sites are refused, and every answer gets security headers.

Headers that a proxy may add (`X-Forwarded-Host` and similar) are dropped: anybody can send them, and Gradio
would build the page's addresses from them.

Wherever the lab listens, any page that a user visits can send requests to it from their browser. The browser
says where a request comes from (`Origin`, `Sec-Fetch-Site`), so foreign ones are recognized. A page whose DNS
name was rebound to the lab's address is recognized by its `Host`: a name that the lab was not started with.
An IP address cannot be rebound.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD = re.compile(r"/gradio_api/upload/?")
LARGEST_BODY = 1 << 20  # bytes: a form's texts, some of them long
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SCHEMES = ("http", "https")
# All that a `Host` may be: a name or an IPv4 address, or an IPv6 address in brackets, and perhaps a port.
HOST = re.compile(r"(?:([a-z0-9._-]+)|\[([0-9a-f]*:[0-9a-f:.]*)\])(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
SAFE_METHODS = ("GET", "HEAD")
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
    host = headers.get("host", "")
    if not _is_ours(_hostname(host), names):
        return (
            f"Olive Lab does not answer to the name {host[:100]!r}. Open it as localhost or by its IP"
            " address; if the name is yours, start Olive Lab with --allow-host and that name."
        )
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in {f"{scheme}://{host.lower()}" for scheme in SCHEMES}:
        return "This request comes from another site, so it is refused."
    site = headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none") and not _is_navigation(headers, method, path):
        return "This request comes from another site, so it is refused."
    return None


def _is_forwarded(name: bytes) -> bool:
    return name.lower().startswith(FORWARDED)


def _is_navigation(headers: Headers, method: str, path: str) -> bool:
    """A click on a link to the page: it shows the page and does nothing else."""
    to_document = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return to_document and method in SAFE_METHODS and path == "/"


def _is_ours(name: str, names: Collection[str]) -> bool:
    if name in LOOPBACK or name in names:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _hostname(host: str) -> str:
    """The name or address in a `Host`, in small letters; "" for what is not one."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
