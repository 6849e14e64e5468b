from __future__ import annotations

import asyncio
import re
import threading

import anyio
import pytest
from starlette.responses import Response
from starlette.testclient import TestClient

from tests.helpers import planted
from tests.helpers.handlers import door
from tests.helpers.lab import until
from webapp.gradio_routes import gradio_page

POLLS = [
    "", "runs/{run}/live", "runs/{run}.json", "queue.json", "activity.json", "scorecards/{group}.json",
    "pulled/none.json",
]  # fmt: skip


@pytest.fixture
def made(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that Gradio is asked for, of those that are kept."""
    at_door = door(client)
    asked: list[str] = []
    gradio = at_door.kept.app

    async def noted(scope, receive, send):
        asked.append(scope["path"])
        await gradio(scope, receive, send)

    monkeypatch.setattr(at_door.kept, "app", noted)
    return asked


def test_the_page_is_made_once_for_all(client, made):
    pages = [client.get(f"/{query}") for query in ("", "?tab=data", "?run=x&tab=lab", "?all_endpoints=1")]
    assert {(page.status_code, page.text) for page in pages} == {(200, pages[0].text)}
    assert client.head("/").headers["ETag"] == pages[0].headers["ETag"]
    assert made == ["/"]


def test_who_asks_by_many_addresses_has_nothing_made(client, made):
    """Any IP address is taken as `Host`, and each page that is made holds up everybody."""
    hosts = ["localhost:7860", "[::1]:1", *(f"10.0.{n}.{n + 1}:{n + 1}" for n in range(100))]
    for path in ("/", "/config"):
        texts = {client.get(path, headers={"Host": host}).text for host in hosts}
        assert len(texts) == 1, path
        (text,) = texts
        assert re.findall(r'"root":"([^"]*)"', text) == ["/"], "the browser knows the address it has open"
        assert gradio_page.HOST not in text
    assert made == ["/", "/config"]


def test_what_is_kept_does_not_wait_for_what_is_made():
    """A stranger may ask for scripts that are not there, one after the other."""

    async def app(scope, receive, send):
        if scope["path"] != "/":
            await asyncio.Event().wait()
        await Response("page")(scope, receive, send)

    async def asked(kept, path):
        sent = []

        async def send(message):
            sent.append(message.get("body"))

        await kept({"type": "http", "path": path, "method": "GET", "headers": []}, None, send)
        return sent

    async def run():
        kept = gradio_page.Kept(app)
        await asked(kept, "/")
        stranger = asyncio.create_task(asked(kept, "/assets/index-none.js"))
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            assert b"page" in await asked(kept, "/")
        assert not stranger.done()
        stranger.cancel()

    asyncio.run(run())


def test_a_browser_that_has_the_page_is_not_sent_it_again(client):
    page = client.get("/", headers={"Accept-Encoding": "identity"})
    packed = client.get("/", headers={"Accept-Encoding": "gzip, br"})
    assert packed.text == page.text
    assert int(packed.headers["Content-Length"]) < int(page.headers["Content-Length"]) / 3
    again = client.get("/", headers={"If-None-Match": page.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_failed_is_asked_for_again():
    answers = [Response("busy", 503), Response("page")]

    async def app(scope, receive, send):
        await answers.pop(0)(scope, receive, send)

    client = TestClient(gradio_page.Kept(app))
    assert [client.get("/").status_code for _ in range(3)] == [503, 200, 200]


def test_who_asks_at_once_waits_for_one_page():
    asked = []

    async def app(scope, receive, send):
        asked.append(scope["path"])
        await asyncio.sleep(0)
        await Response("page")(scope, receive, send)

    async def all_of_them():
        made = gradio_page.Kept(app)
        scope = {"type": "http", "path": "/", "method": "GET", "scheme": "http", "headers": []}
        sent = []

        async def send(message):
            sent.append(message.get("body"))

        await asyncio.gather(*(made(scope, None, send) for _ in range(20)))
        return sent

    assert asyncio.run(all_of_them()).count(b"page") == 20
    assert asked == ["/"]


def test_page_and_polls_are_answered_while_every_thread_is_taken(client, store):
    """Handlers and downloads share forty threads: what a page asks for again and again needs none of them."""
    group, run = planted.scorecard(store), planted.running(store)
    client.get("/")
    holders = [object() for _ in range(100)]

    async def take() -> int:
        threads = anyio.to_thread.current_default_thread_limiter()
        free = int(threads.total_tokens - threads.borrowed_tokens)
        for holder in holders[:free]:
            await threads.acquire_on_behalf_of(holder)
        return free

    async def give(count: int) -> None:
        for holder in holders[:count]:
            anyio.to_thread.current_default_thread_limiter().release_on_behalf_of(holder)

    answers = []

    def ask() -> None:
        for path in POLLS:
            answers.append(client.get(f"/{path.format(run=run, group=group)}").status_code)

    taken = client.portal.call(take)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until(lambda: len(answers) == len(POLLS), "the answers")
    finally:
        client.portal.call(give, taken)
        asking.join()
    assert answers == [200] * (len(POLLS) - 1) + [404]
