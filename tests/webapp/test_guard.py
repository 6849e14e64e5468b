from __future__ import annotations

import asyncio
import re

import pytest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from webapp.app import create
from webapp.guard import LARGEST_BODY, Guard, refusal

HOST = "localhost:7860"


def refused(method="GET", path="/runs", names=(), **headers):
    given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return refusal(Headers(given), method, path, names) is not None


def test_own_pages_and_programs_are_served():
    assert not refused()
    assert not refused(method="POST", origin=f"http://{HOST}", sec_fetch_site="same-origin")
    assert not refused(host="[::1]:9000", origin="http://[::1]:9000")
    assert not refused(host="127.0.0.1:80", origin="https://127.0.0.1:80")


def test_a_request_is_no_larger_than_the_page_s():
    """Said or not said beforehand: what is too much is not taken into memory."""
    taken = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            taken.append(len(message["body"]))
        await PlainTextResponse("read")(scope, receive, send)

    async def ask(path, headers=()):
        said = []
        pieces = iter(range(64))

        async def receive():
            return {"type": "http.request", "body": b"x" * (1 << 20), "more_body": next(pieces) < 63}

        async def send(message):
            said.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"",
                 "headers": [(b"host", HOST.encode()), *headers]}  # fmt: skip
        await Guard(app)(scope, receive, send)
        return said[0]

    assert asyncio.run(ask("/gradio_api/queue/join", [(b"content-length", b"%d" % (64 << 20))])) == 413
    assert taken == []
    asyncio.run(ask("/gradio_api/queue/join"))
    assert sum(taken) <= LARGEST_BODY
    asyncio.run(ask("/gradio_api/upload"))
    assert sum(taken) > 60 << 20, "uploads have their own limit"


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost:3000",
        f"http://{HOST}.evil.example",
        "garbage",
        f"chrome-extension://{HOST}",
        f"//{HOST}",
        f"http://{HOST}/evil",
        f"http://{HOST}?evil",
        f"http://evil.example@{HOST}",
        "",
    ],
)
def test_other_origins_are_refused(origin):
    assert refused(origin=origin)
    assert refused(host="lab.example", origin=origin, names=["lab.example"])


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_only_link_to_the_page(site):
    assert refused(sec_fetch_site=site)
    link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert not refused(path="/", **link)
    assert refused(path="/gradio_api/queue/data", **link)
    assert refused(path="/", method="POST", **link)
    assert refused(path="/", **{**link, "sec_fetch_dest": "iframe"})


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "localhost.evil.example",
        "10.0.0.1.evil.example",
        "lab.example.evil.example",
        "",
        "[::1",
        "127.0.0.1@evil.example",
        "evil.example@localhost",
        "localhost/evil",
        "localhost#evil",
        "localhost?evil",
        "localhost\\evil",
        "localhost:x",
        "localhost:",
        "localhost:80:80",
        "[localhost]",
        "[127.0.0.1]",
        "::1",
        "[fe80::1%evil.example]",
        "[::1]evil.example",
        "localhost evil",
        "localhost\n",
        "127.0.0.\xb2",
    ],
)
def test_a_rebound_name_is_refused(host):
    assert refused(host=host)
    assert refused(host=host, names=["0.0.0.0", "lab.example"])


@pytest.mark.parametrize("host", ["10.0.0.1:7860", "[fd00::7]:7860", "lab.example:7860", "LAB.example", HOST])
def test_addresses_and_given_names_are_served(host):
    assert not refused(host=host, origin=f"http://{host}", names=["0.0.0.0", "lab.example"])


def test_the_app_answers_to_the_names_it_is_given_and_says_how_to_give_them(home):
    with TestClient(create(["0.0.0.0", "Lab.example"]), base_url="http://lab.example:7860") as client:
        assert client.get("/lab/page.js").status_code == 200
        refusal = client.get("/lab/page.js", headers={"host": "evil.example"})
    assert refusal.status_code == 403
    assert "'evil.example'" in refusal.text
    assert "--allow-host" in refusal.text


@pytest.fixture(scope="module")
def client(lasting_client):
    return lasting_client


def test_answers_have_security_headers_and_refusals_too(client):
    for reply in (
        client.get("/"),
        client.get("/plotly.min.js"),
        client.get("/", headers={"origin": "http://evil.example"}),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'self'" in reply.headers["content-security-policy"]
    assert reply.status_code == 403
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/run/predict", "/runs/x/cancel"]
)
def test_other_sites_reach_no_action(client, path):
    assert client.post(path, headers={"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("method", ["CONNECT", "OPTIONS", "PUT", "DELETE", "TRACE", "x"])
@pytest.mark.parametrize("path", ["/", "/gradio_api/queue/data", "/queue.json"])
def test_methods_that_no_route_has_reach_no_route(client, method, path):
    """The server fails where CONNECT has an answer with a body, and logs a traceback for each."""
    reply = client.request(method, path, params={"session_hash": "x"})
    assert reply.status_code == 405
    assert reply.headers["allow"] == "GET, HEAD, POST"
    assert reply.headers["x-content-type-options"] == "nosniff"


FORWARDED = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "8.8.8.8",
    "X-Forwarded-Port": "99",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Server": "evil.example",
    "Forwarded": "host=evil.example;proto=https;for=8.8.8.8",
    "X-Gradio-Server": "http://evil.example",
    "X-Original-Host": "evil.example",
    "X-Real-IP": "8.8.8.8",
}


@pytest.mark.parametrize("path", ["/", "/config"])
def test_the_page_has_its_own_address_whatever_a_client_says_was_forwarded(client, path):
    def roots(**headers):
        text = client.get(path, headers=headers).text
        assert "evil" not in text
        return re.findall(r'"(?:root|api_url)":\s*"([^"]*)"', text)

    own = roots()
    assert own
    assert roots(**FORWARDED) == own
    for name, value in FORWARDED.items() if path == "/config" else ():
        assert roots(**{name: value}) == own, name


def test_nothing_that_is_said_to_be_forwarded_reaches_the_app():
    """Of both kinds of connection, as the server hands them over."""
    reached = []

    async def app(scope, receive, send):
        reached.append(dict(scope["headers"]))

    own = {b"host": HOST.encode(), b"cookie": b"a=b"}
    given = own | {
        written.encode(): value.encode()
        for name, value in FORWARDED.items()
        for written in (name, name.lower())
    }
    for kind in ("http", "websocket"):
        scope = {"type": kind, "path": "/", "headers": list(given.items())}
        asyncio.run(Guard(app)(scope, None, None))
    assert reached == [own, own]


def test_websockets_of_other_sites_are_refused(client):
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/x", headers={"origin": "http://evil.example"}),
    ):
        pass
