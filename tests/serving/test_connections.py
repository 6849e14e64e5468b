"""Connections that wait for nothing end, and there are only so many."""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse

from pipeline.serving import connections

HEADERS = b"Host: localhost\r\n"
POST = b"POST / HTTP/1.1\r\n" + HEADERS + b"Content-Length: 3\r\n\r\n"


LONG, SHORT = 60.0, 0.05  # seconds


async def dropped(scope, receive, send):
    """An answer to a request whose body is not read."""
    await PlainTextResponse("too large")(scope, receive, send)


async def large(scope, receive, send):
    await PlainTextResponse(bytes(1 << 26))(scope, receive, send)


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
        async with serving(connections.Bodies(answer, bodies)) as (port, _):
            return await asyncio.gather(*(one(port, pieces) for pieces in sent))

    return asyncio.run(all_of_them())


@asynccontextmanager
async def serving(app):
    """The port of a server, and the connections that it has."""
    config = uvicorn.Config(
        app, port=0, http=connections.Patient, log_config=None, lifespan="off", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    served = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    yield server.servers[0].sockets[0].getsockname()[1], server.server_state.connections
    server.should_exit = True
    await served


async def until(condition):
    """Let others run until it is true; raises TimeoutError when that takes too long."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


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
    assert [record.getMessage() for record in caplog.records] == [
        "The connection ended before a request for '/' was complete."
    ]


def test_there_are_only_so_many(monkeypatch):
    found = ask(monkeypatch, [[b"GET / HTTP/1.1\r\n" + HEADERS + b"\r\n"]] * 4, most=0)
    assert found == [b""] * 4


def test_one_that_waits_for_a_request_makes_room_for_another(monkeypatch):
    monkeypatch.setattr(connections.Patient, "wait_seconds", LONG)
    monkeypatch.setattr(connections.Patient, "most", 2)

    async def run():
        async with serving(answer) as (port, there):
            idle = []
            for number in (1, 2):
                idle.append(await asyncio.open_connection("127.0.0.1", port))
                await until(lambda number=number: len(there) == number)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\n" + HEADERS + b"\r\n")
            async with asyncio.timeout(60):
                found = await reader.read()
                with suppress(ConnectionResetError):
                    assert not await idle[0][0].read()
            left = len(there)
            for _, one in [*idle, (reader, writer)]:
                one.close()
            return found, left

    found, left = asyncio.run(run())
    assert found.startswith(b"HTTP/1.1 200")
    assert left == 1, "the second one, which has waited less"


UPLOAD = b"POST / HTTP/1.1\r\n" + HEADERS + b"Content-Length: 1000000000\r\n\r\n"


async def a_newcomer_beside(bodies):
    """What a new request gets where all connections there may be send these parts of a body, and which of
    these are ended for it."""
    arrived = []

    async def reading(scope, receive, send):
        if scope["method"] == "GET":
            await PlainTextResponse("welcome")(scope, receive, send)
            return
        while (message := await receive())["type"] == "http.request":
            arrived.append(len(message["body"]))

    async with serving(connections.Bodies(reading, LONG)) as (port, _):
        slow = []
        for number, body in enumerate(bodies):
            slow.append(await asyncio.open_connection("127.0.0.1", port))
            slow[-1][1].write(UPLOAD + body)
            await until(lambda number=number: sum(arrived) == sum(map(len, bodies[: number + 1])))
        ends = [asyncio.create_task(reader.read()) for reader, _ in slow]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.0\r\n" + HEADERS + b"\r\n")
        async with asyncio.timeout(60):
            found = await reader.read()
            if found:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        ended = [number for number, end in enumerate(ends) if end.done()]
        for _, one in [*slow, (reader, writer)]:
            one.close()
        await asyncio.gather(*ends, return_exceptions=True)
        return found, ended


@pytest.mark.parametrize(
    ("bodies", "ended"),
    [
        ([b"x", b"x"], [0]),
        ([bytes(connections.LEAST_SPEED * 100), b"x"], [1]),
        ([b"x", bytes(connections.LEAST_SPEED * 100)], [0]),
    ],
    ids=["the oldest", "what has sent much stays", "what has sent little goes"],
)
def test_a_body_that_trickles_in_makes_room_for_a_newcomer(monkeypatch, bodies, ended):
    """Else as many as there may be connections close the page to everybody."""
    monkeypatch.setattr(connections.Patient, "wait_seconds", LONG)
    monkeypatch.setattr(connections.Patient, "most", len(bodies))
    found, gone = asyncio.run(a_newcomer_beside(bodies))
    assert found.endswith(b"welcome")
    assert gone == ended


def test_a_request_that_is_there_is_answered_however_many_come(monkeypatch):
    monkeypatch.setattr(connections.Patient, "wait_seconds", LONG)
    monkeypatch.setattr(connections.Patient, "most", 1)

    async def run():
        asked, goes = asyncio.Event(), asyncio.Event()

        async def slow(scope, receive, send):
            await Request(scope, receive).body()
            asked.set()
            await goes.wait()
            await PlainTextResponse("at last")(scope, receive, send)

        async with serving(slow) as (port, _), asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(POST.replace(b"1.1", b"1.0") + b"abc")
            await asked.wait()
            for _ in range(3):
                other, closed = await asyncio.open_connection("127.0.0.1", port)
                with suppress(ConnectionResetError):
                    assert not await other.read()
                closed.close()
            goes.set()
            found = await reader.read()
            writer.close()
            return found

    assert asyncio.run(run()).endswith(b"at last")


def test_a_client_that_takes_nothing_of_an_answer_ends(monkeypatch):
    monkeypatch.setattr(connections.Patient, "wait_seconds", SHORT)

    async def run():
        async with serving(large) as (port, there):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(b"GET / HTTP/1.1\r\n" + HEADERS + b"\r\n")
            await until(lambda: there)
            await until(lambda: not there)
            writer.close()

    asyncio.run(run())


def test_one_that_takes_its_time_gets_all_of_it(monkeypatch):
    monkeypatch.setattr(connections.Patient, "wait_seconds", LONG)

    async def run():
        async with serving(large) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\n" + HEADERS + b"\r\n")
            found = 0
            while piece := await reader.read(1 << 20):
                found += len(piece)
            writer.close()
            return found

    assert asyncio.run(run()) > 1 << 26


def test_the_rest_of_a_body_that_was_answered_early_has_little_time(monkeypatch):
    monkeypatch.setattr(connections.Patient, "wait_seconds", SHORT)

    async def run():
        async with serving(dropped) as (port, there):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\n" + HEADERS + b"Content-Length: 1000000000\r\n\r\n")
            found = await reader.readuntil(b"too large")

            def end():
                with suppress(ConnectionResetError):
                    writer.write(b"x")
                return not there

            await until(end)
            writer.close()
            return found

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200")


def test_a_body_that_drips_ends(caplog):
    sent = []

    async def receive():
        await asyncio.sleep(SHORT / 100)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    async def run():
        app = ServerErrorMiddleware(answer)  # as in Gradio's app, which would answer 500
        bodies = connections.Bodies(app, LONG, patience_seconds=SHORT)
        await asyncio.wait_for(bodies({"type": "http", "path": "/"}, receive, send), 60)

    asyncio.run(run())
    assert sent[0]["status"] == 408


async def forgiving(scope, receive, send):
    """An app that answers a request that does not arrive, as FastAPI does where it expects JSON."""
    try:
        await Request(scope, receive).body()
    except ClientDisconnect:
        await PlainTextResponse("no JSON", 400)(scope, receive, send)


async def never():
    await asyncio.Event().wait()


def test_a_body_that_an_app_does_without_ends_too(caplog):
    """uvicorn would log an error of the app for each, and answer 500."""
    found = ask_bodies(connections.Bodies(forgiving, SHORT))
    assert found == [408]
    assert len(caplog.records) == 1


def test_many_that_do_not_arrive_are_a_line_now_and_then(monkeypatch, caplog):
    bodies = connections.Bodies(answer, SHORT)
    monkeypatch.setattr(connections, "LOG_SECONDS", 1e9)
    assert ask_bodies(bodies, 3) == [408] * 3
    monkeypatch.setattr(connections, "LOG_SECONDS", -1.0)
    ask_bodies(bodies)
    line = "The connection ended before a request for '/' was complete"
    assert [record.getMessage() for record in caplog.records] == [
        f"{line}.",
        f"{line}; so did 2 others since the last such line.",
    ]


def test_what_is_no_http_is_a_line_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [connections.Seldom()])
    monkeypatch.setattr(connections, "LOG_SECONDS", 1e9)
    assert all(b"400" in found for found in ask(monkeypatch, [[b"x\r\n\r\n"]] * 3))
    monkeypatch.setattr(connections, "LOG_SECONDS", -1.0)
    ask(monkeypatch, [[b"x\r\n\r\n"]])
    assert [record.getMessage() for record in caplog.records] == [
        "A request that is not HTTP came.",
        "A request that is not HTTP came; so did 2 others since the last such line.",
    ]


def test_uvicorn_s_own_log_has_that_filter():
    assert any(isinstance(one, connections.Seldom) for one in logging.getLogger("uvicorn.error").filters)


def test_a_wish_for_another_protocol_is_no_line(monkeypatch, caplog):
    wish = b"POST / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + HEADERS + b"\r\n"
    (found,) = ask(monkeypatch, [[wish]])
    assert found.endswith(b"\r\n\r\n0")
    assert not caplog.records


def ask_bodies(bodies, number=1):
    """The status of each answer to so many requests whose bodies do not arrive."""
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        for _ in range(number):
            await asyncio.wait_for(bodies({"type": "http", "path": "/"}, never, send), 60)

    asyncio.run(run())
    return [message["status"] for message in sent if "status" in message]


def test_the_time_that_the_lab_takes_for_a_body_does_not_count():
    """Nor does a fast start buy time."""
    patience = []
    pieces = [bytes(connections.LEAST_SPEED * 1000)] * 3

    async def slow(scope, receive, send):
        while (await receive())["more_body"]:
            patience.append(loop_time())
            until_later(patience[-1])

    def loop_time():
        return asyncio.get_running_loop().time()

    def until_later(since):
        while loop_time() - since < SHORT:
            pass

    async def receive():
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    async def run():
        bodies = connections.Bodies(slow, LONG, patience_seconds=SHORT)
        await bodies({"type": "http", "path": "/"}, receive, None)

    asyncio.run(run())
    assert not pieces


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
