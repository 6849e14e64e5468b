"""While the app is imported, a page says so; who connects afterwards gets the app."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from pipeline.serving import loading
from pipeline.serving.listening import listen


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen("127.0.0.1", 0) as found:
        yield found


def ask(listener: socket.socket, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(*listener.getsockname(), timeout=30)
    connection.request(method, "/")
    reply = connection.getresponse()
    found = reply.status, reply.read().decode(), dict(reply.getheaders())
    connection.close()
    return found


def test_a_page_says_that_it_is_starting_and_asks_again(listener: socket.socket) -> None:
    with loading.answered(listener):
        status, text, headers = ask(listener)
        assert status == 503
        assert 'http-equiv="refresh"' in text
        assert "is starting" in text
        assert (headers["Retry-After"], headers["Cache-Control"]) == ("1", "no-store")
        assert ask(listener, "HEAD")[:2] == (503, "")
        assert ask(listener, "POST")[0] == 503


def test_slow_and_greedy_clients_hold_up_nobody(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(loading, "MOST", 4)
    with loading.answered(listener):
        silent = [socket.create_connection(listener.getsockname(), timeout=30) for _ in range(6)]
        endless = socket.create_connection(listener.getsockname(), timeout=30)
        endless.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * loading.LARGEST)
        gone = socket.create_connection(listener.getsockname(), timeout=30)
        gone.close()
        assert ask(listener)[0] == 503
        assert silent[0].recv(12) == b"HTTP/1.1 503"
        for client in (*silent, endless):
            client.close()


def test_afterwards_the_socket_is_as_it_was_and_nobody_is_lost(listener: socket.socket) -> None:
    with loading.answered(listener):
        early = socket.create_connection(listener.getsockname(), timeout=30)
        assert ask(listener)[0] == 503  # so the one before was accepted
    assert early.recv(12) == b"HTTP/1.1 503"
    early.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "loading"]
    assert listener.gettimeout() is None
    with socket.create_connection(listener.getsockname(), timeout=30) as later:
        later.sendall(b"hello")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(5) == b"hello"


def test_a_block_that_fails_ends_it_too(listener: socket.socket) -> None:
    with pytest.raises(RuntimeError), loading.answered(listener):
        raise RuntimeError
    assert not [thread for thread in threading.enumerate() if thread.name == "loading"]
