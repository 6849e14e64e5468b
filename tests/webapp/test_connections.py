"""Connections that wait for nothing end, and there are only so many."""

from __future__ import annotations

import asyncio
import logging
import resource

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from webapp import connections

HEADERS = b"Host: localhost\r\n"
POST = b"POST / HTTP/1.1\r\n" + HEADERS + b"Content-Length: 3\r\n\r\n"


LONG, SHORT = 60.0, 0.05  # seconds


async def answer(scope, receive, send):
    """The length of the body; from then on, headers have little time."""
    body = await Request(scope, receive).body()
    connections.Patient.wait_seconds = SHORT
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def ask(monkeypatch, sent, headers=LONG, bodies=LONG, most=10):
    """What the server sends to one connection for each list of pieces, until it closes them; b"" for none."""
    monkeypatch.setattr(connections.Patient, "wait_seconds", headers)
    monkeypatch.setattr(connections.Patient, "most", most)

    async def one(port, pieces):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        try:
            return await asyncio.wait_for(reader.read(), 60)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def all_of_them():
        app = connections.Bodies(answer, bodies)
        config = uvicorn.Config(
            app, port=0, http=connections.Patient, log_config=None, lifespan="off", timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        served = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        found = await asyncio.gather(*(one(port, pieces) for pieces in sent))
        server.should_exit = True
        await served
        return found

    return asyncio.run(all_of_them())


def test_headers_that_do_not_come_end_the_connection(monkeypatch):
    assert ask(monkeypatch, [[], [b"GET / HTTP/1.1\r\nHo"]], headers=SHORT) == [b"", b""]


def test_nor_do_those_of_a_second_request(monkeypatch):
    (found,) = ask(monkeypatch, [[POST + b"abc", b"GET /"]])
    assert found.endswith(b"\r\n\r\n3")
    assert found.count(b"HTTP/1.1 200") == 1


def test_a_body_that_does_not_come_is_one_line(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        (found,) = ask(monkeypatch, [[POST + b"ab"]], bodies=SHORT)
    assert found.startswith(b"HTTP/1.1 408")
    assert [record.getMessage() for record in caplog.records] == ["A request for '/' broke off."]


def test_there_are_only_so_many(monkeypatch):
    found = ask(monkeypatch, [[b"GET / HTTP/1.1\r\n" + HEADERS + b"\r\n"]] * 4, most=0)
    assert found == [b""] * 4


@pytest.mark.parametrize(("soft", "expected"), [(1024, 512), (1 << 15, connections.MOST)])
def test_there_are_fewer_than_files_may_be_open(monkeypatch, soft, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert connections.most() == expected


def test_the_system_is_asked_for_more_files(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1 << 20))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    assert connections.most() == connections.MOST
    assert asked == [(connections.FILES, 1 << 20)]
