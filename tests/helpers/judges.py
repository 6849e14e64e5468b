"""A small OpenAI-compatible server: a judge that a test gives a way to answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, str | bytes]  # status and body
MARKER = "of the adapter"


def said(text: str) -> Reply:
    """A good reply with this text."""
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def prefers_marker(question: dict[str, Any]) -> Reply:
    """Prefers the answer that has a marker."""
    return said("<think>A or B?</think>\n**A**" if MARKER in question["answer_a"] else "Verdict: B.")


def always_first(question: dict[str, Any]) -> Reply:
    """Prefers whatever comes first."""
    return said("A")


@dataclass
class Endpoint:
    """Where it is, and what it was asked: the questions, and the headers of each."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def served(answer: Callable[[dict[str, Any]], Reply | None]) -> Iterator[Endpoint]:
    """Serve it; None as the answer means that there never is one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            found.asked.append({**body, "path": self.path})
            reply = answer(json.loads(body["messages"][-1]["content"]))
            if reply is None:
                found.over.wait()
                return
            status, text = reply
            data = text if isinstance(text, bytes) else text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *given: Any) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield found
    finally:
        found.over.set()
        server.shutdown()
        server.server_close()
