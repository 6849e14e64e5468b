"""What of Gradio is open to requests, and how much of it anybody may take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio import routes
from gradio.server_messages import ProcessCompletedMessage
from starlette.testclient import TestClient

from tests.helpers.handlers import GOOD, JSON, gradio, handlers
from tests.helpers.lab import until
from webapp import guard, handler_values
from webapp.gradio_routes import gradio_requests

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


def test_events_that_wait_are_few(client):
    """Each keeps its body in memory."""
    blocks = gradio(client).get_blocks()
    assert blocks._queue.max_size * guard.LARGEST_BODY * 2 <= 512 << 20
    kinds = {*gradio_requests.groups(blocks).values()}
    assert {"checks", "home", "azure", "hub"} < kinds
    assert blocks._queue.max_size == len(kinds) * gradio_requests.MOST_WAITING, "one takes no other's places"


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
            assert (reply.status_code, reply.text.strip()) == (422, handler_values.UNFIT), wrong
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
    assert (reply.status_code, reply.text.strip()) == (422, handler_values.UNFIT)
    assert capfd.readouterr().err == ""


def test_paths_that_no_file_can_have_are_not_there(client, capfd):
    for path in ("assets", "static", "svelte"):
        for name in ("x" * 300, "%00", "a/" * 20 + "b", "a%0ab"):
            assert client.get(f"/{path}/{name}").status_code == 404, (path, name)
    assert capfd.readouterr().err == ""


def test_answers_that_nobody_reads_are_few(client):
    """Each may be of megabytes, and Gradio keeps as many as anybody asks for."""
    handler = next(found for found in handlers(client) if found.queued and not found.kinds)
    body = {"data": [], "fn_index": handler.id, "session_hash": "never-read"}
    statuses = [client.post("/gradio_api/queue/join", json=body).status_code for _ in range(20)]
    assert statuses == [GOOD] * gradio_requests.MOST_UNREAD + [503] * (20 - gradio_requests.MOST_UNREAD)
    assert client.post("/gradio_api/queue/join", json=body | {"session_hash": "other"}).status_code == GOOD


def door(client: TestClient) -> gradio_requests.Door:
    return next(
        route.app for route in client.app.routes if isinstance(getattr(route, "app", 0), gradio_requests.Door)
    )


def at_the_door(client: TestClient) -> tuple[gradio_requests.Door, Callable[[str], int]]:
    """The door, with no session there, and how a session has an event carried out: the status of its call."""
    found = door(client)
    queue = found.queue
    queue.pending_messages_per_session.clear()
    queue.pending_event_ids_session.clear()
    handler = next(each for each in handlers(client) if each.queued and not each.kinds)

    def join(session: str) -> int:
        body = {"data": [], "fn_index": handler.id, "session_hash": session}
        status = client.post("/gradio_api/queue/join", json=body).status_code
        until(lambda: not queue.event_ids_to_events, "the end of the event", 60)
        return status

    return found, join


def test_sessions_that_nobody_reads_make_room_and_others_stay(client, monkeypatch):
    at_door, join = at_the_door(client)
    monkeypatch.setattr(gradio_requests, "SESSIONS", 3)
    monkeypatch.setattr(at_door, "streams", {"read"})
    assert [join(name) for name in ("read", "one", "two", "three", "four")] == [GOOD] * 5
    assert list(at_door.queue.pending_messages_per_session) == ["read", "three", "four"]
    at_door.streams |= {"three", "four"}
    assert [join("five"), join("four")] == [503, GOOD]


@pytest.fixture
def join(client, monkeypatch) -> Iterator[Callable[..., int]]:
    """Have a session call a handler of a group, when no handler is begun: all that may be carried out are."""
    queue = gradio(client).get_blocks()._queue
    until(lambda: not queue.event_ids_to_events, "the end of other events", 60)
    queue.pending_messages_per_session.clear()
    queue.pending_event_ids_session.clear()
    monkeypatch.setattr(queue, "active_jobs", [])
    kinds = gradio_requests.groups(gradio(client).get_blocks())

    def send(session: str, group: str = "checks") -> int:
        number = next(number for number, kind in kinds.items() if kind == group)
        body = {"data": [], "fn_index": number, "session_hash": session}
        return client.post("/gradio_api/queue/join", json=body).status_code

    yield send
    for waits in queue.event_queue_per_concurrency_id.values():
        waits.queue.clear()
    queue.event_ids_to_events.clear()


def waiting(client: TestClient, group: str = "checks") -> list[str]:
    """The sessions whose events wait."""
    return [
        event.session_hash
        for event in gradio(client).get_blocks()._queue.event_queue_per_concurrency_id[group].queue
    ]


def test_a_full_kind_of_event_takes_no_place_of_another(client, monkeypatch, join):
    at_door = door(client)
    crowd = [f"s{n}" for n in range(gradio_requests.MOST_WAITING)]
    monkeypatch.setattr(at_door, "streams", {*crowd, "late"})
    kinds = sorted({*at_door.groups.values()})
    monkeypatch.setattr(gradio_requests, "MOST_UNREAD", len(kinds))
    for kind in kinds:
        assert [join(name, kind) for name in [*crowd, "late"]] == [GOOD] * len(crowd) + [503], kind
        assert waiting(client, kind) == crowd


def test_events_whose_answers_nobody_reads_make_room(client, monkeypatch, join):
    at_door = door(client)
    monkeypatch.setattr(at_door, "streams", {"reads", "reads-too"})
    crowd = [f"s{n}" for n in range(gradio_requests.MOST_WAITING - 1)]
    assert {join(name) for name in [*crowd, "reads", "reads-too", "new"]} == {GOOD}
    assert waiting(client) == [*crowd[2:], "reads", "reads-too", "new"], "the oldest of them"
    monkeypatch.setattr(at_door, "streams", set())
    told = client.get("/gradio_api/queue/data", params={"session_hash": "s0"}).text
    assert gradio_requests.BUSY in told, "a page that was late to ask"


def test_who_sends_many_events_makes_room_for_others(client, monkeypatch, join):
    half = gradio_requests.MOST_WAITING // 2
    monkeypatch.setattr(door(client), "streams", {"many", "more", "new"})
    assert {join(name) for name in ["many", "more"] * half} == {GOOD}
    assert [join("new") for _ in range(half + 1)].count(GOOD) == gradio_requests.MOST_WAITING // 3
    assert waiting(client)[0] == "many", "its oldest stays"


def test_sessions_whose_events_nobody_waits_for_make_room(client, monkeypatch, join):
    monkeypatch.setattr(gradio_requests, "SESSIONS", 2)
    monkeypatch.setattr(door(client), "streams", {"reads"})
    assert [join(name) for name in ("left", "reads", "new")] == [GOOD] * 3
    assert waiting(client) == ["reads", "new"]


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


def test_streams_that_have_nothing_to_send_make_room(client, monkeypatch, capfd):
    at_door, join = at_the_door(client)
    monkeypatch.setattr(gradio_requests, "SESSIONS", 2)

    def read(session: str) -> str:
        return client.get("/gradio_api/queue/data", params={"session_hash": session}).text

    with ThreadPoolExecutor() as threads:
        idle = {}
        for name in ("one", "two"):
            assert join(name) == GOOD
            assert "process_completed" in read(name)
            idle[name] = threads.submit(read, name)
            until(lambda name=name: name in at_door.streams, "the stream", 60)
        assert read("one").strip() == gradio_requests.BUSY
        assert join("three") == GOOD
        assert '"close_stream"' in idle["one"].result(60)
        assert "process_completed" in read("three")
        assert [join("one"), join("four")] == [GOOD, GOOD], "a page whose stream has ended"
        assert '"close_stream"' in idle["two"].result(60)
        assert all("process_completed" in read(name) for name in ("one", "four"))
    assert (at_door.streams, at_door.ending) == (set(), set())
    assert "Traceback" not in capfd.readouterr().err


def test_a_session_that_is_gone_while_its_events_wait_ends_nothing(client, join):
    """Gradio tells all that wait how long it may take: where one has no session, all events were over."""
    queue = gradio(client).get_blocks()._queue
    assert join("gone") == GOOD
    until(lambda: waiting(client) == ["gone"], "its event", 60)
    queue.pending_messages_per_session.pop("gone")
    queue.broadcast_estimations("checks")
    assert join("here") == GOOD
    assert not queue.stopped


def test_a_stream_that_makes_room_leaves_a_session_whose_event_has_come_meanwhile(client, join):
    at_door, queue = door(client), gradio(client).get_blocks()._queue
    assert join("late") == GOOD
    at_door.ending.add("late")  # chosen while its next call was on its way
    queue.pending_event_ids_session["late"].clear()
    queue.pending_messages_per_session["late"].put_nowait(
        ProcessCompletedMessage(output={}, success=True, event_id="none")
    )
    assert '"close_stream"' in client.get("/gradio_api/queue/data?session_hash=late").text
    assert waiting(client) == ["late"]
    assert "late" in queue.pending_messages_per_session
    assert at_door.ending == set()


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


def test_calls_that_come_all_at_once_get_no_more_places(client, join):
    """They are counted before Gradio has them: it takes one only after a turn of its threads."""
    with ThreadPoolExecutor(60) as others:
        statuses = list(others.map(join, (f"burst{number}" for number in range(60))))
    found = len(waiting(client))
    assert found <= gradio_requests.MOST_WAITING
    assert GOOD in statuses
    assert {*statuses} <= {GOOD, 503}
    assert len(gradio(client).get_blocks()._queue.pending_messages_per_session) <= gradio_requests.SESSIONS
    assert door(client).joins == []
