"""Every handler of the running page, called as an attacker calls it: with files, paths and values of his."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio import processing_utils
from starlette.routing import Mount
from starlette.testclient import TestClient

from pipeline.errors import InputError
from tests.helpers import planted
from tests.helpers.lab import until
from webapp import app, gradio_requests, guard, handler_values, uploads
from webapp.app import create
from webapp.tabs import data

SECRET = "the-secret-of-another"
ROWS = "".join(json.dumps({"prompt": f"{SECRET} {n}", "response": "y"}) + "\n" for n in range(4))
WATCHED = {
    "open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link",
    "os.symlink", "os.chmod", "os.truncate", "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move",
    "glob.glob", "subprocess.Popen",
}  # fmt: skip
FILES = {"file", "uploadbutton"}
TEXTS = {"textbox", "dropdown", "code"}
GOOD, REFUSED = 200, 422
FILE = "gradio.FileData"
JSON = {"Content-Type": "application/json"}


class Touched:
    """The paths that this process does something with while it looks, and what it starts."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.on = False
        sys.addaudithook(self._note)  # for good: such a hook cannot be taken away

    def _note(self, event: str, given: tuple[Any, ...]) -> None:
        if self.on and event in WATCHED:
            words: tuple[Any, ...] = given
            if event == "subprocess.Popen":  # but for what renders templates: its words are always the same
                words = () if "pipeline.inputs.prompts.sandbox" in given[1] else (event,)
            self.found += [os.fsdecode(word) for word in words if isinstance(word, (str, bytes, os.PathLike))]

    @contextmanager
    def looking(self) -> Iterator[list[str]]:
        self.found, self.on = [], True
        try:
            yield self.found
        finally:
            self.on = False


@pytest.fixture(scope="module")
def touched() -> Touched:
    return Touched()


@pytest.fixture(scope="module")
def home(lasting_home: Path) -> Path:
    return lasting_home


@pytest.fixture(scope="module")
def client(lasting_client: TestClient) -> TestClient:
    return lasting_client


def gradio(client: TestClient) -> Any:
    """Gradio's own app behind our door."""
    mounts = [route.app for route in client.app.routes if isinstance(route, Mount)]
    return next(mounted.app for mounted in mounts if isinstance(mounted, gradio_requests.Door))


class Handler:
    """One dependency of the page, as `/config` tells it to everybody."""

    def __init__(self, client: TestClient, facts: dict[str, Any], components: dict[int, dict[str, Any]]):
        self.client = client
        self.id = facts["id"]
        self.inputs = gradio(client).get_blocks().fns[self.id].inputs
        self.queued = facts["queue"] is not False
        self.kinds = [components[number]["type"] for number in facts["inputs"]]
        self.values = [components[number]["props"].get("value") for number in facts["inputs"]]

    def given(self, kinds: set[str], value: Any) -> list[Any]:
        """Its values as they are on the page, with another one wherever there is one of these kinds."""
        pairs = zip(self.kinds, self.values, strict=True)
        return [value if kind in kinds else now for kind, now in pairs]

    def fits(self, values: list[Any]) -> bool:
        """Whether these get as far as the handler: what the page refuses is the same sentence everywhere."""
        try:
            handler_values.fitting(self.inputs, values)
        except InputError:
            return False
        return True

    def call(self, values: Any, event: Any = None) -> tuple[int, str]:
        """The status and the answer, of the queue too."""
        body = json.dumps({"data": values, "event_data": event, "fn_index": self.id, "session_hash": "s"})
        if not self.queued:
            reply = self.client.post("/gradio_api/run/predict", content=body, headers=JSON)
            return reply.status_code, reply.text
        joined = self.client.post("/gradio_api/queue/join", content=body, headers=JSON)
        if joined.status_code != GOOD:
            return joined.status_code, joined.text
        told = self.client.get("/gradio_api/queue/data", params={"session_hash": "s"}).text
        messages = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
        done = [message for message in messages if message["msg"] == "process_completed"]
        return (GOOD if done and done[-1]["success"] else REFUSED), told


def handlers(client: TestClient) -> list[Handler]:
    config = client.get("/config").json()
    components = {component["id"]: component for component in config["components"]}
    return [Handler(client, facts, components) for facts in config["dependencies"]]


def taking(client: TestClient) -> list[Handler]:
    """Those that take a file."""
    found = [handler for handler in handlers(client) if FILES & set(handler.kinds)]
    assert len(found) >= 4, "those that take files are not found"
    return found


def file(path: object, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "rows.jsonl", **more}


def tree(folder: Path) -> dict[str, str]:
    """What lies in a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in found}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside the home with files that would make a fine dataset."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("rows.jsonl", "config.json", "icon.svg"):
        (folder / name).write_text(ROWS)
    return folder


@pytest.fixture
def crafted(home: Path, victim: Path, client: TestClient) -> Iterator[list[dict[str, Any]]]:
    """Files as attackers name them, and what they may have in the folder of uploads."""
    place, outside = home / ".gradio-uploads", str(victim / "config.json")
    digest, linked = (hashlib.sha256(word).hexdigest() for word in (b"mine", b"linked"))
    (place / digest / "folder.json").mkdir(parents=True)
    (place / digest / "link.json").symlink_to(outside)
    os.link(outside, place / digest / "hard.json")
    os.mkfifo(place / digest / "pipe.json")
    (place / linked).symlink_to(victim)
    (place / uploads.COPIES / "ours").mkdir(parents=True)
    for path in (place / uploads.COPIES / "ours" / "config.json", place / "loose.json"):
        path.write_text(ROWS)
    paths: list[object] = [
        outside, str(victim / "rows.jsonl"), str(victim / "icon.svg"), str(victim), f"file://{outside}",
        f"{place}/{digest}/../../../victim/config.json", f"{place}/../../victim/config.json",
        *(f"{place}/{digest}/{name}.json" for name in ("link", "hard", "pipe", "folder", "none", "\ud800")),
        f"{place}/{linked}/config.json", f"{place}/{uploads.COPIES}/ours/config.json", f"{place}/loose.json",
        f"{place}/{digest}/", f"{place}//{digest}/link.json", f"{place}/{digest}/{'x' * 5000}.json",
        str(home / "runs.db"), "http://127.0.0.1:1/config.json", "https://127.0.0.1:1/x.svg", "config.json",
        "../victim/config.json", "~/x.json", "", "\0", None, 7, ["x"], {"path": outside},
    ]  # fmt: skip
    made = [*map(file, paths), *(file(path, is_stream=True) for path in paths[:4])]
    made += [file(outside, url=f"http://127.0.0.1:1{outside}"), file(outside, url=outside, is_stream=True)]
    yield made
    uploads.empty()


def test_no_handler_reads_copies_or_removes_a_file_that_is_no_upload(home, client, victim, crafted, touched):
    before, there = tree(victim), {path for path in home.rglob("*") if "artifacts" in path.parts}
    for handler in taking(client):
        for value in crafted:
            with touched.looking() as found:
                status, answer = handler.call(handler.given(FILES, value))
            assert (status, SECRET in answer) == (REFUSED, False), (value, answer)
            assert not [path for path in found if str(victim) in path], value
    assert tree(victim) == before
    assert {path for path in home.rglob("*") if "artifacts" in path.parts} == there
    assert not (home / "datasets").exists()
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == [
        home / ".gradio-uploads" / uploads.COPIES / "ours"
    ]


def test_no_other_value_may_be_a_file(client, victim, touched):
    value, seen = file(str(victim / "config.json")), set()
    for handler in handlers(client):
        kinds = handler.kinds
        positions = [n for n, kind in enumerate(kinds) if kind not in FILES | seen | set(kinds[:n])]
        seen |= set(handler.kinds)
        asked = [handler.given(set(handler.kinds) - FILES, value)] if set(handler.kinds) - FILES else []
        for hostile in (value, [value], {"deep": [value]}):
            asked += [[*handler.values[:n], hostile, *handler.values[n + 1 :]] for n in positions]
        for values in asked:
            with touched.looking() as found:
                status, answer = handler.call(values)
            assert (status, SECRET in answer) == (REFUSED, False), (handler.id, answer)
            assert not [path for path in found if str(victim) in path]
    assert len(seen) > 5


def test_gradio_itself_refuses_what_was_not_uploaded(home, client, victim, monkeypatch):
    """With our own look out of the way: this fails where Gradio looks only if something else is set."""
    monkeypatch.setattr(handler_values, "fitting", lambda components, values: values)
    monkeypatch.setattr(uploads, "taken", None)
    for handler in taking(client):
        for name, stream in (("rows.jsonl", False), ("config.json", True), ("icon.svg", True)):
            given = handler.given(FILES, file(str(victim / name), is_stream=stream))
            status, answer = handler.call(given)
            assert (status, uploads.NOT_HERE in answer) == (REFUSED, True), answer
    assert len(tree(victim)) == 3
    assert not [path for path in (home / ".gradio-uploads").rglob("*") if SECRET in path.read_text()]


def test_an_upload_of_equal_bytes_is_there_for_both(home, client):
    """Each is checked twice: the first check takes nothing away from the second."""
    good = ROWS.replace("prompt", "question")
    handler = next(found for found in taking(client) if "textbox" in found.kinds)
    named = [
        client.post("/gradio_api/upload", files={"files": ("mine.jsonl", good)}).json()[0] for _ in range(2)
    ]
    for path in named * 2:
        status, answer = handler.call(handler.given(FILES, file(path)))
        assert (status, "do not fit this template" in answer) == (GOOD, True), answer
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []
    assert not [path for path in (home / ".gradio-uploads").iterdir() if path.is_file()]


def test_what_an_event_says_of_itself_is_flat(client, monkeypatch):
    """Gradio would resolve each path in it: minutes for a long one, in which nobody is served."""
    resolved = []
    monkeypatch.setattr(processing_utils, "check_all_files_in_cache", resolved.append)
    found = handlers(client)
    long = {"path": "/" + "a/" * 1000, "meta": {"_type": "gradio.FileData"}}
    for event in ({"id": "x", "f": long}, [long], {"ids": [long]}, {"ids": [["x"]]}):
        for handler in found:
            if handler.kinds or handler.queued:
                continue
            status, answer = handler.call([], event)
            assert status in (GOOD, REFUSED), answer
    assert not any(FILE in str(data) for data in resolved)


def test_made_up_sessions_take_no_more_memory_than_pages(client, monkeypatch):
    """Anybody can name new ones; Gradio keeps what each has chosen."""
    holder = gradio(client).state_holder
    assert holder.capacity == app.SESSIONS
    monkeypatch.setattr(holder, "capacity", 3)
    handler = next(found for found in handlers(client) if not found.queued and not found.kinds)
    for number in range(6):
        body = {"data": [], "fn_index": handler.id, "session_hash": f"made-up-{number}"}
        assert client.post("/gradio_api/run/predict", json=body).status_code == GOOD
    assert len(holder.session_data) <= 3


def test_the_name_of_an_upload_cannot_be_worked_out_from_its_bytes(client, monkeypatch):
    monkeypatch.setattr(app, "page", gr.Blocks)
    named = []
    for _ in range(2):
        create()
        named += client.post("/gradio_api/upload", files={"files": ("a.jsonl", ROWS)}).json()
    assert named[0] != named[1]


HOSTILE = ["../..", "\0", "--help", "x" * 20_000]
TYPES = [None, ["/root"], {"a": "/root"}, 10**400, float("nan"), -1, True, 1.5]


def test_no_text_becomes_a_path_or_a_process(home, store, client, victim, touched, tmp_path):
    planted.finished(store)
    hostile = [*HOSTILE, str(victim), str(victim / "rows.jsonl")]
    for handler in handlers(client):
        if not TEXTS & set(handler.kinds):
            continue
        for value in hostile:
            values = handler.given(TEXTS, value)
            if value == "\0" and not handler.fits(values):
                continue
            with touched.looking() as found:
                status, answer = handler.call(values, {"id": value, "value": value})
            assert status in (GOOD, REFUSED), (handler.id, value, answer)
            assert handler_values.BROKEN not in answer, (handler.id, value)
            assert "subprocess.Popen" not in found, (handler.id, value)
            outside = [path for path in found if path.startswith("/") and not known(path, home, tmp_path)]
            assert not outside, (handler.id, value, outside)
    assert len(tree(victim)) == 3


def known(path: str, home: Path, tmp_path: Path) -> bool:
    """Whether a path may be touched by any request: the home, and what Python and the project read."""
    places = [
        str(home),
        sys.prefix,
        sys.base_prefix,
        "/dev/null",
        "/proc",
        "/sys",
        str(Path(data.__file__).parents[2]),
    ]
    return any(os.path.realpath(path).startswith(place) for place in places)


def test_values_of_another_type_are_a_sentence(store, client, capfd):
    planted.finished(store)
    for handler in handlers(client):
        if handler.queued and not handler.kinds:
            continue  # it is asked with nothing, and may take a while
        wanted = [value for value in TYPES if handler.fits([value] * len(handler.kinds))]
        refused = [value for value in TYPES if value not in wanted]
        for value in [*wanted, *refused[:1]]:
            named = dict.fromkeys(("id", "ids", "value", "ticks", "index"), value)
            for event in (value, named) if not handler.kinds else (named,):
                status, answer = handler.call([value] * len(handler.kinds), event)
                assert status in (GOOD, REFUSED), (handler.id, value, answer)
                assert handler_values.BROKEN not in answer, (handler.id, value)
        for value in TYPES if {"dropdown", "radio"} & set(handler.kinds) else ():
            status, answer = handler.call(handler.given({"dropdown", "radio"}, value))
            assert status in (GOOD, REFUSED), (handler.id, value, answer)
            assert handler_values.BROKEN not in answer, (handler.id, value)
    assert "Traceback" not in capfd.readouterr().err


def test_slow_handlers_leave_threads_for_the_page(client):
    """Gradio has 40 threads for all; a handler without a group could take each of them."""
    named = [handler for handler in gradio(client).get_blocks().fns.values() if handler.fn and handler.queue]
    limits = {handler.concurrency_id: handler.concurrency_limit for handler in named}
    assert {"checks", "home"} <= limits.keys()
    assert sum(limits.values()) <= 30, limits


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
    queue = gradio(client).get_blocks()._queue
    assert queue.max_size * guard.LARGEST_BODY * 2 <= 512 << 20


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


def at_the_door(client: TestClient) -> tuple[gradio_requests.Door, Callable[[str], int]]:
    """The door, with no session there, and how a session has an event carried out: the status of its call."""
    found = next(
        route.app for route in client.app.routes if isinstance(getattr(route, "app", 0), gradio_requests.Door)
    )
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
