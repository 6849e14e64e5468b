"""Every handler of the running page, called as an attacker calls it: with files, paths and values of his."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import sqlite3
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio import processing_utils
from starlette.testclient import TestClient

from docs import make_reference
from pipeline.inputs.data import datasets
from pipeline.runs import check_pool, kept_datasets
from pipeline.store import Store
from tests.helpers import examples, planted
from tests.helpers.handlers import GOOD, REFUSED, Handler, file, gradio, handlers
from webapp import app, handler_values, uploads
from webapp.app import create
from webapp.routes import asking, runs
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
FILE = "gradio.FileData"


class Touched:
    """The paths that this process does something with while it looks, and what it starts."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.timed: list[str] = []  # of these, those whose times were set
        self.on = False
        sys.addaudithook(self._note)  # for good: such a hook cannot be taken away

    def _note(self, event: str, given: tuple[Any, ...]) -> None:
        if self.on and event in WATCHED:
            words: tuple[Any, ...] = given
            if event == "subprocess.Popen":  # but for what renders templates: its words are always the same
                words = () if "pipeline.inputs.prompts.sandbox" in given[1] else (event,)
            paths = [os.fsdecode(word) for word in words if isinstance(word, (str, bytes, os.PathLike))]
            self.found += paths
            if event == "os.utime":
                self.timed += paths

    @contextmanager
    def looking(self) -> Iterator[list[str]]:
        self.found, self.timed, self.on = [], [], True
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


def taking(client: TestClient) -> list[Handler]:
    """Those that take a file."""
    found = [handler for handler in handlers(client) if FILES & set(handler.kinds)]
    assert len(found) == 3, "those that take files are not found"
    return found


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
    good = ROWS.replace('"y"', '""')
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


def test_no_text_becomes_a_path_or_a_process(home, store, client, victim, touched, tmp_path, monkeypatch):
    monkeypatch.setattr(check_pool, "BRIEF_SECONDS", 600.0)  # else another process stands in for a slow one
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
        os.path.realpath(sys.prefix),
        os.path.realpath(sys.base_prefix),
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
    queued = [handler for handler in gradio(client).get_blocks().fns.values() if handler.fn and handler.queue]
    named = [handler for handler in queued if not inspect.isasyncgenfunction(handler.fn)]
    assert [handler.fn.__name__ for handler in queued if handler not in named] == [
        "run_both",
        "run_again",
        "probe",
        "start",
    ]
    limits = {handler.concurrency_id: handler.concurrency_limit for handler in named}
    assert {"checks", "home"} <= limits.keys()
    assert sum(limits.values()) <= 30, limits


def with_data(store: Store, folder: Path) -> tuple[str, Path]:
    """A finished run whose dataset is kept in the home, and where that is."""
    rows = folder / "towns.jsonl"
    rows.write_text(ROWS)
    kept = kept_datasets.keep(store.home, rows, "of another")  # its folder does not tell its hash
    (kept.parent / datasets.SOURCE).write_text("ann/towns")
    run = planted.finished(store)
    planted.event(store, run, "evaluate", attempt=True)
    with sqlite3.connect(store.home / "runs.db") as database:
        database.execute("UPDATE runs SET data = ? WHERE id = ?", (str(kept), run))
    return run, kept


def test_a_download_for_which_there_are_no_open_files_left_is_a_sentence(store, client, monkeypatch):
    run = planted.finished(store)

    def none_left(*given: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(runs.zip_file, "Takeaway", none_left)
    reply = client.get(f"/runs/{run}/model.zip")
    assert (reply.status_code, "try again in a minute" in reply.json()["detail"]) == (503, True)


def test_no_handler_reads_the_data_of_a_finished_run(home, client, touched, tmp_path):
    run, kept = with_data(Store(home), tmp_path)
    asked = 0
    for handler in handlers(client):
        for kinds in ({"dropdown", "radio"}, TEXTS | {"radio"}):
            values = handler.given(kinds, run)
            if (handler.queued and not handler.kinds) or not handler.fits(values):
                continue
            with touched.looking() as found:
                status, answer = handler.call(values, {"id": run, "value": run, "ids": [run]})
            assert status in (GOOD, REFUSED), (handler.id, answer)
            assert not [name for name in found if str(kept) in name], handler.id
            asked += status == GOOD
    assert asked > 20


def publishing(client: TestClient) -> Iterator[tuple[Handler, list[Any]]]:
    """What plans a publishing, with rows of the data, and its values for a run; None stands for the run."""
    named = {"Name": "towns", "Run": None, "Subscription": "s", "Resource group": "g", "Workspace": "w"}
    for handler in handlers(client):
        labels = [str(getattr(each, "label", "")) for each in handler.inputs]
        if labels[:1] == ["Run"] and "Name" in labels and "Where" not in labels:
            yield (
                handler,
                [
                    True if kind == "checkbox" else named.get(label, value)
                    for kind, label, value in zip(handler.kinds, labels, handler.values, strict=True)
                ],
            )


def test_a_publishing_is_planned_without_reading_data_or_export_here(home, client, touched, tmp_path):
    """An export of 36 MB of brackets held the page for 19 s, a dataset of 268 MB for 15 s a plan."""
    store = Store(home)
    run, kept = with_data(store, tmp_path)
    export = store.get(run).artifact("export")
    with_report = []
    for handler, values in (found := list(publishing(client))):
        with touched.looking() as names:
            status, answer = handler.call([run if value is None else value for value in values])
        assert status == GOOD, answer
        assert not [name for name in names if str(kept) in name or str(export) in name], handler.id
        with_report += ["report.html" in answer]
    assert (len(found), any(with_report)) == (8, True)


def test_runs_are_compared_without_reading_their_events_here(home, client, touched):
    """Twice 300,000 steps took 10 s of the page's process, and an address that names them asked for it."""
    store = Store(home)
    runs = ",".join([planted.finished(store), planted.finished(store)])
    compared = 0
    for handler in handlers(client):
        if handler_name(client, handler) in ("compare", "arrived") and len(handler.kinds) == 1:
            with touched.looking() as found:
                status, answer = handler.call([runs])
            compared += (status, "1.42" in answer) == (GOOD, True)
            assert not [name for name in found if "events" in name]
    assert compared == 2


def test_two_runs_are_judged_without_reading_rows_here(home, client, touched):
    store = Store(home)
    one, other = examples.two(store)
    rows = {store.get(other).artifact("row_losses"), store.get(other).data}
    judge = next(found for found in handlers(client) if handler_name(client, found) == "judge")
    with touched.looking() as found:
        status, answer = judge.call([other, one])
    assert (status, "this run is" in answer, "What is 20?" in answer) == (GOOD, True, True), answer
    assert not [name for name in found if name in rows]
    for hostile in (store.get(one).data, "../..", str(home), "nope"):
        status, answer = judge.call([other, hostile])
        assert (status, "refused" in answer, "What is 20?" in answer) == (GOOD, True, False), answer


def handler_name(client: TestClient, handler: Handler) -> str:
    return str(gradio(client).get_blocks().fns[handler.id].name)


def test_no_route_reads_the_data_of_a_finished_run(home, client, touched, tmp_path):
    """One line of a file may have 300 MB: whatever needs rows or their number is done by another process."""
    run, kept = with_data(Store(home), tmp_path)
    answer = check_pool.answer("pipeline.runs.data.data_card:shown", {
        "path": str(kept), "template": "{prompt} {response}", "model": "", "max_length": 512,
    })  # fmt: skip
    given = {"run": run, "stage": "evaluate", "key": answer["key"], "finding": "duplicates", "number": "0"}
    asked = set()
    for route in make_reference.our_routes():
        if "GET" not in route.methods or not {"run", "key"} & set(route.param_convertors):
            continue
        for kind in ("csv", "json", "jsonl", "html", "md") if "{kind}" in route.path else ("",):
            path = route.path.format(**{"group": "none", **given}, kind=kind)
            for query in ("", "?rows=true"):
                with touched.looking() as found:
                    status = client.get(path + query, params={"before": 1} if path.endswith("/log") else {})
                # Whose rows are shown is in use, and makes no room for others: only the time of that is set.
                read = [name for name in found if str(kept) in name or "lines.bin" in name]
                assert len(read) == touched.timed.count(str(kept)), path
                if status.status_code == GOOD:
                    asked.add(route.path)
    assert {"/runs/{run}/model.zip", "/runs/{run}/report.{kind}", "/cards/{key}/{finding}.{kind}"} <= asked
    with zipfile.ZipFile(io.BytesIO(client.get(f"/runs/{run}/model.zip").content)) as archive:
        card = archive.read("README.md").decode()
    assert f"4 rows, SHA-256 {hashlib.sha256(ROWS.encode()).hexdigest()}" in card


def test_no_more_downloads_are_prepared_at_a_time_than_there_are_places(store, client, monkeypatch):
    run = planted.finished(store)
    full = asking.Places(1)
    full.most = -asking.WAITING
    open_, path = asking.TEXTS, f"/runs/{run}/model.zip"
    monkeypatch.setattr(asking, "TEXTS", full)
    reply = client.get(path)
    assert (reply.status_code, asking.MANY in reply.text) == (503, True)
    assert client.get(f"{path}?rows=true").status_code == GOOD, "these have others"
    monkeypatch.setattr(asking, "TEXTS", open_)
    assert client.get(path).status_code == GOOD
    assert client.get("/runs/none/model.zip").status_code == 404
    monkeypatch.setattr(asking, "TEXTS", full)
    assert client.get(path).status_code == GOOD, "its texts are kept"
    store.annotate(run, notes="Another note.")
    assert client.get(path).status_code == 503, "until something of the run changes"
