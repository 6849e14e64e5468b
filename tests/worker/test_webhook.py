"""The message at a run's end, sent to a real server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from pipeline.store import Store
from pipeline.store.run import FAILED
from pipeline.worker import webhook
from pipeline.worker.loop import Worker
from tests.helpers.lab import until
from tests.helpers.planted import one_stage, plant


class Server(HTTPServer):
    """Keeps what it is told; answers with the codes in `answers`, then with 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: list[dict[str, Any]] = []
        self.answers: list[int] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = self.server.answers.pop(0) if self.server.answers else 204
        if code < 300:
            self.server.told.append(json.loads(body))
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OLIVE_LAB_WEBHOOK", f"http://127.0.0.1:{made.server_port}/hook?token=secret")
    monkeypatch.setattr(webhook, "PAUSES", (0.0, 0.0))
    yield made
    made.shutdown()
    made.server_close()


def test_a_run_that_ends_is_told_once_with_its_reason(
    store: Store, server: Server, stepper: Callable[[str], Worker]
) -> None:
    run = plant(store, stages=["quantize", "finetune"], owner="ann")
    served = stepper("fails")
    until(lambda: served.step() or store.get(run).status == FAILED, "the end of the run")
    until(lambda: server.told, "the message")
    (told,) = server.told
    assert (told["run"], told["owner"], told["status"]) == (run, "ann", "failed")
    assert told["text"] == f"Run trip ({run}) is failed. The template has no response."


def test_a_name_is_no_link_and_no_mention(store: Store) -> None:
    """Chat services take `<…>` for one."""
    run = store.get(plant(store, name="<!channel> <http://evil.example|done> & more"))
    sent = webhook.message(run)
    assert sent["text"].startswith("Run &lt;!channel&gt; &lt;http://evil.example|done&gt; &amp; more (")
    assert sent["name"] == run.name


def test_it_is_tried_again(store: Store, server: Server) -> None:
    run = store.get(one_stage(store, "trip"))
    server.answers = [500, 503]
    thread = webhook.tell(run)
    assert thread is not None
    thread.join(60)
    assert [told["name"] for told in server.told] == ["trip"]


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/token-secret",
        "file:///token-secret",
        "http://127.0.0.1:1/a token-secret",
        "http://127.0.0.1:port/token-secret",
        "http://127.0.0.1:99999999999/token-secret",
        "http://127.0.0.1:1/token-secret\u00e9",
        "http://[::1/token-secret",
        "http:///token-secret",
    ],
)
def test_what_fails_is_said_without_the_address(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setenv("OLIVE_LAB_WEBHOOK", address)
    monkeypatch.setattr(webhook, "PAUSES", (0.0,))
    run = store.get(one_stage(store, "trip"))
    thread = webhook.tell(run)
    assert thread is not None
    thread.join(60)
    said = capfd.readouterr()
    assert f"was not notified of the end of run {run.id}" in said.out
    assert "secret" not in said.out + said.err


def test_what_does_not_speak_http_is_said_without_the_address(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("OLIVE_LAB_WEBHOOK", f"http://127.0.0.1:{listener.getsockname()[1]}/token-secret")
        monkeypatch.setattr(webhook, "PAUSES", ())
        thread = webhook.tell(store.get(one_stage(store, "trip")))
        assert thread is not None
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"220 mail.example ESMTP\r\n")
            thread.join(60)
    said = capfd.readouterr()
    assert said.out.rstrip().endswith("ConnectionError")
    assert "secret" not in said.out + said.err


def test_nobody_is_told_unless_asked_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLIVE_LAB_WEBHOOK", raising=False)
    run = store.get(one_stage(store, "trip"))
    assert webhook.tell(run) is None
