"""What of Gradio is open to requests, and how much of it anybody may take."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio import routes
from starlette.testclient import TestClient

from tests.helpers.handlers import GOOD, JSON, door, gradio
from webapp import guard, handler_values
from webapp.app import page
from webapp.gradio_routes import event_queue, gradio_requests
from webapp.gradio_routes.event_queue import BUSY

SECRET = "the-secret-of-another"
ROWS = "".join(json.dumps({"prompt": f"{SECRET} {n}", "response": "y"}) + "\n" for n in range(4))


@pytest.fixture(scope="module")
def home(lasting_home: Path) -> Path:
    return lasting_home


@pytest.fixture(scope="module")
def client(lasting_client: TestClient) -> TestClient:
    return lasting_client


def test_what_the_page_does_not_need_of_gradio_is_closed(home, client):
    upload = client.post("/gradio_api/upload", files={"files": ("a.jsonl", ROWS)}).json()[0]
    for path in (
        "gradio_api/deep_link?session_hash=s", "gradio_api/file=UPLOAD", "gradio_api/file/UPLOAD",
        "gradio_api/file=http://127.0.0.1:1/x", "gradio_api/proxy=http://127.0.0.1:1/x",
        "gradio_api/run-history/records", "gradio_api/vibe-code/", "monitoring", "gradio_api/openapi.json",
        "gradio_api//file=UPLOAD", "gradio_api/run/../file=UPLOAD", "static/../gradio_api/file=UPLOAD",
    ):  # fmt: skip
        reply = client.get(f"/{path.replace('UPLOAD', upload)}")
        assert (reply.status_code, SECRET in reply.text) == (404, False), path
    assert not (home / ".gradio-uploads" / "deep_links").exists()


def test_a_handler_or_a_page_that_is_not_there_is_no_fault_of_the_lab(client, capfd):
    number = len(gradio(client).get_blocks().fns)
    for path in ("run/predict", "queue/join"):
        for wrong in (-1, number, 10**30, None):
            for session in ("s", None):
                body = {"data": [], "fn_index": wrong, "session_hash": session}
                reply = client.post(f"/gradio_api/{path}", json=body)
                assert 400 <= reply.status_code < 500, (path, wrong, session, reply.text)
    for query in ("page=x", "page=", "deep_link=..%2F..", "page=%ff&page=x", "%70age=x"):
        for path in ("", "config", "gradio_api/info"):
            assert client.get(f"/{path}?{query}").status_code == GOOD, (path, query)
    assert "Traceback" not in capfd.readouterr().err


def test_who_asks_for_a_session_that_is_not_there_gets_an_answer_and_no_log(client, capfd):
    reply = client.get("/gradio_api/queue/data", params={"session_hash": "nobody"})
    assert json.loads(reply.text.removeprefix("data: "))["session_not_found"]
    assert capfd.readouterr().err == ""


def test_a_call_holds_no_more_than_its_handler_takes(home, client):
    """Gradio keeps a call while it waits, and walks through all of it while nothing else runs."""
    number, handler = next(
        (n, fn) for n, fn in gradio(client).get_blocks().fns.items() if len(fn.inputs) == 3
    )
    plain = {"session_hash": "s", "fn_index": number, "data": [""] * len(handler.inputs)}
    nested = [[]] * gradio_requests.MOST_NESTED
    for wrong in (
        {"data": [*plain["data"], ""]}, {"data": [nested, "", ""]}, {"x": nested}, {"x": 1}, {"data": {}},
        {"event_data": nested},
    ):  # fmt: skip
        for path in ("queue/join", "run/predict"):
            reply = client.post(f"/gradio_api/{path}", json={**plain, **wrong})
            assert (reply.status_code, reply.json()) == (422, {"detail": handler_values.UNFIT}), wrong
    text = {"data": ["[" * (gradio_requests.MOST_NESTED - 10), "", ""]}
    assert client.post("/gradio_api/queue/join", json={**plain, **text}).status_code == GOOD


LARGE = b'{"data": [' + b"{}," * (1 << 20) + b"{}]}"


def test_no_route_takes_a_large_body_but_that_for_uploads(client):
    paths = [
        "run/upload", "run/predict", "queue/join", "queue/upload", "upload/x", "cancel", "reset", "x/upload",
        "upload_progress",
    ]  # fmt: skip
    for path in [*(f"gradio_api/{path}" for path in paths), "upload", "live/upload", "runs/x/upload"]:
        reply = client.post(f"/{path}", content=LARGE, headers=JSON)
        assert reply.status_code in (403, 404, 405, 413), path


SOUND = {"data": [], "fn_index": 0, "session_hash": "abc"}


@pytest.mark.parametrize(
    "text",
    [
        *(
            json.dumps(SOUND | changed)
            for changed in (
                {"fn_index": float("nan")}, {"fn_index": float("inf")}, {"fn_index": True}, {"fn_index": "0"},
                {"session_hash": "x" * 65}, {"session_hash": "a b"}, {"session_hash": "\ud800"},
                {"session_hash": 7}, {"session_hash": ""}, {"event_id": "y" * 100}, {"event_id": ["z"]},
                {"trigger_id": 1 << 40},
            )
        ),
        "1e999", "[]", "null", "{", "[" * 100_000, "\ud800",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["queue/join", "run/predict", "cancel", "reset"])
def test_a_call_that_no_page_sends_is_refused_and_not_logged(client, capfd, path, text):
    reply = client.post(f"/gradio_api/{path}", content=text.encode("utf-8", "surrogatepass"), headers=JSON)
    assert (reply.status_code, reply.json()) == (422, {"detail": handler_values.UNFIT})
    assert capfd.readouterr().err == ""


def test_paths_that_no_file_can_have_are_not_there(client, capfd):
    for path in ("assets", "static", "svelte"):
        for name in ("x" * 300, "%00", "a/" * 20 + "b", "a%0ab"):
            assert client.get(f"/{path}/{name}").status_code == 404, (path, name)
    assert capfd.readouterr().err == ""


def test_a_body_that_is_too_large_and_hides_its_size_is_refused(client, capfd):
    def pieces():
        yield from [b"x" * (1 << 20)] * 3

    for path in ("queue/join", "run/predict", "cancel", "reset"):
        reply = client.post(f"/gradio_api/{path}", content=pieces(), headers=JSON)
        assert reply.status_code == 408, path
    assert "Traceback" not in capfd.readouterr().err


def test_streams_leave_connections_for_requests(client, monkeypatch):
    monkeypatch.setattr(gradio_requests, "MOST_PROGRESS", 0)
    reply = client.get("/gradio_api/upload_progress?upload_id=abc")
    assert (reply.status_code, reply.text.strip()) == (503, gradio_requests.BUSY)
    assert client.get("/config").status_code == GOOD


def test_a_page_needs_no_heartbeat_and_nobody_gets_one(client):
    """Whoever adds a state or an `unload` to the page has to open that door, and to limit who waits there."""
    assert client.get("/config").json()["connect_heartbeat"] is False
    assert client.get("/gradio_api/heartbeat/abc").status_code == 404


def test_the_name_of_an_upload_under_way_is_short(client):
    """Gradio keeps each one that anybody asks for."""
    for method, path in (("GET", "upload_progress"), ("POST", "upload")):
        given = {"params": {"upload_id": "x" * 65}, "files": {"files": ("a.jsonl", ROWS)}}
        reply = client.request(method, f"/gradio_api/{path}", **given)
        assert (reply.status_code, reply.text.strip()) == (422, handler_values.UNFIT)


def test_few_uploads_that_have_ended_keep_their_progress(client, monkeypatch):
    """Nor does a name that is only asked for."""
    kept = [routes.file_upload_statuses._statuses, routes.file_upload_statuses._signals]
    for each in kept:
        each.clear()
    door(client).named.clear()
    monkeypatch.setattr(gradio_requests, "NAMED_UPLOADS", 3)
    for number in range(8):
        content = {"content": b"--x--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
        given = content if number % 2 else {"files": {"files": ("a.jsonl", ROWS)}}
        client.post(f"/gradio_api/upload?upload_id=u{number}", **given)
    assert client.get("/gradio_api/upload_progress?upload_id=u7").status_code == GOOD
    assert all(len(each) <= 3 for each in kept)


def test_what_waits_and_what_is_carried_out_fits_into_memory(client: TestClient) -> None:
    """Each keeps its arguments."""
    groups = door(client).events.groups
    assert {"checks", "home", "azure", "hub"} < groups.keys()
    most = sum(event_queue.MOST_WAITING + group.places for group in groups.values())
    assert most * guard.LARGEST_BODY * 2 <= 1 << 30
    assert most < event_queue.SESSIONS, "who makes room has only answers that nobody has read"


def test_gradio_queue_has_nothing_to_do(client: TestClient) -> None:
    """It would look for events all the time."""

    async def tasks() -> list[str]:
        return [str(task.get_coro()) for task in asyncio.all_tasks()]

    assert client.portal is not None
    assert gradio(client).get_blocks()._queue.active_jobs == []
    assert [name for name in client.portal.call(tasks) if " Queue." in name] == []


def test_no_handler_has_a_kind_that_the_queue_does_not_know() -> None:
    for fn in page().fns.values():
        known = (fn.batch, fn.validator, fn.connection, fn.renderable, hasattr(fn.fn, "cache"))
        assert known == (False, None, "sse", None, False), fn.fn


def test_calls_that_come_all_at_once_get_no_more_places(client: TestClient) -> None:
    events = door(client).events
    number = next(n for n, fn in events.handlers.items() if fn.concurrency_id == "plans")

    def join(session: str) -> int:
        body = {"data": [], "fn_index": number, "session_hash": session}
        return client.post("/gradio_api/queue/join", json=body).status_code

    with ThreadPoolExecutor(60) as others:
        statuses = list(others.map(join, (f"burst{number}" for number in range(500))))
    assert GOOD in statuses
    assert {*statuses} <= {GOOD, 503}
    assert len(events.sessions) <= event_queue.SESSIONS
    assert len(events.groups["plans"].waiting) <= event_queue.MOST_WAITING


def test_a_handler_outside_the_queue_is_not_joined(client: TestClient) -> None:
    quick = [n for n, fn in page().fns.items() if fn.queue is False or fn.fn is None]
    assert quick
    for number in quick[:20]:
        body = {"data": [], "fn_index": number, "session_hash": "s"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 404


def test_a_session_has_one_stream(client: TestClient) -> None:
    events = door(client).events
    number = next(n for n, fn in events.handlers.items() if fn.concurrency_id == "plans")
    body = {"data": [], "fn_index": number, "session_hash": "twice"}
    assert client.post("/gradio_api/queue/join", json=body).status_code == GOOD
    events.sessions["twice"].is_read = True
    reply = client.get("/gradio_api/queue/data?session_hash=twice")
    assert (reply.status_code, reply.text.strip()) == (503, BUSY)
    events.sessions["twice"].is_read = False
    assert "close_stream" in client.get("/gradio_api/queue/data?session_hash=twice").text
    assert "session_not_found" in client.get("/gradio_api/queue/data?session_hash=twice").text
