"""A way to the storage emulator that counts what passes, and holds up or spoils what a test says."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.helpers.azure import authority
from tests.helpers.due import due

HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Spoil:
    """What to do to `times` matching requests, after `skip` good ones.

    how   "status", "drop" before an answer, "cut" in the middle of one, "deaf": reads nothing more,
          "silent": reads all and answers nothing, "call": `then` is called, and the request goes on
    """

    match: str
    how: str
    times: int = 1_000_000
    skip: int = 0
    status: int = 503
    code: str = "ServerBusy"
    message: str = "a test"
    headers: dict[str, str] = field(default_factory=dict)
    then: Callable[[], None] | None = None


class Proxy:
    """The proxy's port, what passed through it, and how to spoil it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.to = port
        self.context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.server = authority.serve(type("Handler", (_Handler,), {"proxy": self}), folder)
        self.port = self.server.server_address[1]
        self.forget()

    def forget(self) -> None:
        """No faults, nothing passed. Whatever was held up is let go."""
        self.over.set()
        self.over = threading.Event()
        self.passed: list[tuple[str, int, int]] = []
        self.spoils: list[Spoil] = []

    def count(self, match: str, status: int = 0) -> int:
        """How many requests, as `METHOD path?query`, matched and were answered, with that status if given."""
        with self.lock:
            return sum(bool(re.search(match, line)) and status in (0, was) for line, was, _ in self.passed)

    def sent(self, match: str) -> int:
        """Bytes of the bodies of matching requests that were carried out."""
        with self.lock:
            return sum(size for line, status, size in self.passed if re.search(match, line) and status < 300)


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    upstream: http.client.HTTPSConnection | None = None

    def handle_any(self) -> None:
        proxy, line = self.proxy, f"{self.command} {self.path}"
        spoil = due(proxy.spoils, line, proxy.lock)
        over = proxy.over
        if spoil and spoil.how == "deaf":
            over.wait(120)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if spoil and spoil.how == "call" and spoil.then:
            spoil.then()
        if spoil and spoil.how in ("drop", "silent"):
            if spoil.how == "silent":
                over.wait(120)
            self.close_connection = True
            return
        if spoil and spoil.how == "status":
            said = f"<Code>{spoil.code}</Code><Message>{escape(spoil.message)}</Message>"
            text = f"<?xml version='1.0'?><Error>{said}</Error>"
            headers = {"x-ms-error-code": spoil.code, "Content-Type": "application/xml", **spoil.headers}
            self.note(spoil.status, body)
            self.give(spoil.status, headers, b"" if self.command == "HEAD" else text.encode(), None)
        else:
            self.pass_on(body, cut=bool(spoil and spoil.how == "cut"))

    def note(self, status: int, body: bytes) -> None:
        """Before the answer is given: who has it may count at once."""
        with self.proxy.lock:
            self.proxy.passed.append((f"{self.command} {self.path}", status, len(body)))

    def pass_on(self, body: bytes, cut: bool) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        headers["Content-Length"] = str(len(body))
        # The emulator signs what it is asked at its own port; the account is the first part of the name.
        connection = http.client.HTTPSConnection(
            "localhost", self.proxy.to, context=self.proxy.context, timeout=60
        )
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        connection.close()
        self.note(answer.status, body)
        self.give(answer.status, kept, data, length, cut)

    def give(
        self, status: int, headers: dict[str, str], data: bytes, length: str | None, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Kept in `passed`."""
