"""Answers while a server is still being imported: a page that says so and asks again."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator

MOST = 64  # connections at once; if there are more, the first is answered whatever it has sent
PATIENCE_SECONDS = 2.0  # for a request
LARGEST = 1 << 16  # bytes of a request that are read
PAGE = b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="1">\
<meta name="viewport" content="width=device-width"><title>Olive Lab</title></head>\
<body style="font-family: sans-serif; margin: 4em; color-scheme: light dark"><p>Olive Lab is starting. \
This page opens by itself in a few seconds.</p></body></html>
"""
# Whoever asks for something else than the page sees a server that is away for a moment.
HEAD = (
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Content-Type: text/html; charset=utf-8\r\n"
    f"Content-Length: {len(PAGE)}\r\n"
    "Retry-After: 1\r\n"
    "Cache-Control: no-store\r\n"
    "Connection: close\r\n"
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Referrer-Policy: same-origin\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "\r\n"
).encode()


@contextlib.contextmanager
def answered(listener: socket.socket) -> Iterator[None]:
    """Answer every request to a listening socket with the page, until the block ends.

    Who connects later waits in the socket's queue for whoever accepts next.
    """
    ours, theirs = socket.socketpair()
    before = listener.gettimeout()
    listener.setblocking(False)
    thread = threading.Thread(target=_answer, args=(listener, theirs), name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ours.close()
        thread.join()
        theirs.close()
        listener.settimeout(before)


def _answer(listener: socket.socket, ended: socket.socket) -> None:
    """The loop of the thread; `ended` can be read when it is over."""
    clients: dict[socket.socket, tuple[float, bytes]] = {}  # until when, and what has come
    with selectors.DefaultSelector() as chosen:
        chosen.register(ended, selectors.EVENT_READ)
        chosen.register(listener, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in chosen.select(PATIENCE_SECONDS if clients else None)}
            if ended in ready:
                break
            now = time.monotonic()
            for client in [client for client in clients if client in ready]:
                until, come = clients[client]
                clients[client] = (until, _read(client, come))
            if listener in ready:
                with contextlib.suppress(OSError):  # whoever asked has gone again
                    client, _ = listener.accept()
                    client.setblocking(False)
                    chosen.register(client, selectors.EVENT_READ)
                    clients[client] = (now + PATIENCE_SECONDS, b"")
            done = [client for client, (until, come) in clients.items() if now >= until or _whole(come)]
            for client in done or list(clients)[: max(len(clients) - MOST, 0)]:
                chosen.unregister(client)
                _reply(client, clients.pop(client)[1])
    for client, (_, come) in clients.items():
        _reply(client, come)


def _whole(come: bytes) -> bool:
    """Whether this is all of a request that is read."""
    return len(come) >= LARGEST or b"\r\n\r\n" in come


def _read(client: socket.socket, come: bytes) -> bytes:
    """What has come of a request; an end without one if the client has gone."""
    try:
        more = client.recv(LARGEST)
    except BlockingIOError:
        return come
    except OSError:
        more = b""
    return come + (more or b"\r\n\r\n")


def _reply(client: socket.socket, come: bytes) -> None:
    """Send the page, which fits into the socket's buffer, and close."""
    with client, contextlib.suppress(OSError):
        client.send(HEAD if come.startswith(b"HEAD ") else HEAD + PAGE)
        client.shutdown(socket.SHUT_WR)
