"""Turns: work that reads datasets is done in a thread, and its check by a process, which both can be left."""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline import settings
from pipeline.errors import LabError
from pipeline.exports import row_view
from pipeline.inputs.data import datasets, one_row, paging, row_lines
from pipeline.inputs.data.card import making
from pipeline.inputs.data.formats import convert
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import rendering
from pipeline.runs import check_pool, kept_datasets, submit
from pipeline.runs import sweep as sweeps
from pipeline.runs.data import data_card, prepare_data
from pipeline.store import Store
from pipeline.system import locks, own_process
from tests.helpers.handlers import door
from tests.helpers.lab import until
from webapp import local_models
from webapp.app import page
from webapp.tabs import azure, data, hub, lab, learned, models, publish
from webapp.tabs.devices import foundry_local
from webapp.tabs.tuning import scorecard, sweep
from webapp.ui import card_view, check_turns, parts

SAMPLE = str(settings.SAMPLES / "travel.jsonl")
GETTING = "Getting the tokenizer of starter"


@pytest.fixture
def pool(home: Path) -> Iterator[check_pool._State]:
    """Processes that check, as the running app has them."""
    check_pool.open_up()
    yield check_pool._state
    until(lambda: not check_pool._state.busy, "the end of all checks")
    check_pool.close()
    row_view.close()


@pytest.fixture
def always_long(pool: check_pool._State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_pool, "BRIEF_SECONDS", -1.0)


@pytest.fixture
def endless(home: Path, tmp_path: Path, always_long: None) -> Iterator[str]:
    """A dataset of the home whose check waits: for a tokenizer, which another process seems to fetch."""
    rows = tmp_path / "endless.jsonl"
    rows.write_text(json.dumps({"prompt": "a" * 3000, "response": "b"}) + "\n")
    kept = home / "models" / ".tokenizers" / base_models.resolve("starter").folder(home).name
    kept.parent.mkdir(parents=True)
    with locks.locked(kept.with_name(f".{kept.name}.lock")):
        yield str(kept_datasets.keep(home, rows))


@pytest.fixture
def taken(endless: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All places of long checks are taken by others."""
    monkeypatch.setattr(check_pool, "LONG", 1)
    monkeypatch.setattr(check_pool, "OLD_SECONDS", 600.0)
    steps = begun(endless)
    yield
    steps.close()


def begun(path: str) -> Generator[tuple[Any, ...], None, None]:
    """A look at a dataset that waits."""
    steps: Any = data.look(None, path, "chat", "starter")
    until(lambda: GETTING in next(steps)[0]["text"], "the step")
    return steps


def check_event() -> int:
    """The number of the event that checks a dataset."""
    return next(index for index, fn in page().fns.items() if fn.fn is data.look)


def asked(path: str) -> list[Any]:
    """What it is given for a dataset that was picked: upload, dataset, template, model, three lists."""
    return [None, path, "chat", "starter", [], [], []]


def checked() -> tuple[Any, ...]:
    return data.found(None, SAMPLE, "{prompt} {response}", "starter")


def test_a_short_check_needs_no_place_of_the_long_ones(
    home: Path, taken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_pool, "BRIEF_SECONDS", 600.0)
    assert checked()[1] is None


def test_a_check_is_done_by_a_process(home: Path, pool: check_pool._State) -> None:
    *_, last = data.look(None, SAMPLE, "{prompt} {response}", "starter")
    assert last[0]["text"].startswith("travel.jsonl: 144 rows")


def test_a_long_check_ends_where_many_are_in_progress(home: Path, taken: None) -> None:
    _, problems, *_, use = checked()
    assert "such checks have just started; try again in a minute" in json.dumps(problems)
    assert not use["interactive"]


def test_a_check_that_is_left_ends_its_process(endless: str, pool: check_pool._State) -> None:
    steps = begun(endless)
    assert len(pool.busy) == 1
    steps.close()
    until(lambda: not pool.busy, "the end of the process")


def test_an_event_that_is_stopped_ends_its_check(
    client: TestClient, endless: str, pool: check_pool._State
) -> None:
    given = {"session_hash": "left", "fn_index": check_event()}
    values = {**given, "data": asked(endless)}
    event = client.post("/gradio_api/queue/join", json=values).json()["event_id"]
    until(lambda: pool.busy, "the process")
    reply = client.post("/gradio_api/cancel", json={**given, "event_id": event})
    assert reply.status_code == 200
    until(lambda: not pool.busy, "the end of the process")


def is_free(client: TestClient) -> bool:
    """Whether no event has a place."""
    return not any(group.running or group.waiting for group in door(client).events.groups.values())


def test_an_event_that_is_stopped_again_and_again_ends_as_well(
    client: TestClient, endless: str, pool: check_pool._State
) -> None:
    given = {"session_hash": "again", "fn_index": check_event()}
    joined = client.post("/gradio_api/queue/join", json={**given, "data": asked(endless)})
    until(lambda: pool.busy, "the process")
    event = joined.json()["event_id"]
    with ThreadPoolExecutor(4) as others:
        for name in (event, "none") * 8:
            others.submit(client.post, "/gradio_api/cancel", json={**given, "event_id": name})
    until(lambda: is_free(client) and not pool.busy, "the end of the event and of its process")


def test_events_that_are_stopped_at_any_moment_give_their_places_back(client: TestClient) -> None:
    """Also before their first step, which is where Gradio's queue lost one in five for good."""
    number, ended = check_event(), threading.Event()
    sessions = door(client).events.sessions

    def stop_all() -> None:
        while not ended.is_set():
            for session in list(sessions.values()):
                for event in [*session.events, "none"]:
                    given = {"session_hash": session.name, "fn_index": number, "event_id": event}
                    client.post("/gradio_api/cancel", json=given)

    with ThreadPoolExecutor(2) as others:
        for _ in range(2):
            others.submit(stop_all)
        for turn in range(80):  # ten of a session, whose unread answers are few
            given = {"session_hash": f"crowd{turn // 10}", "fn_index": number, "data": asked("x")}
            assert client.post("/gradio_api/queue/join", json=given).status_code == 200
        ended.set()
    until(lambda: is_free(client), "the end of all events")


def test_no_check_takes_longer_than_allowed(pool: check_pool._State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_pool, "MOST_SECONDS", -1.0)
    assert "longer than 10 minutes; use the command line" in json.dumps(checked()[1])


def test_rows_that_do_not_fit_are_read_once(
    home: Path, uploaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    scan = row_lines.scan
    monkeypatch.setattr(row_lines, "scan", lambda path: read.append(1) or scan(path))
    data.found(uploaded(b'{"prompt": "a", "response": ""}\n' * 3), None, "{prompt} {response}", "starter")
    assert read == [1]


def test_launching_has_the_same_share_and_starts_nothing_beyond_it(
    home: Path, store: Store, taken: None
) -> None:
    problems, *_ = lab.launch_sample("Ann")
    assert "such checks have just started" in json.dumps(problems)
    assert store.list() == []


def test_a_launch_whose_check_takes_long_queues_one_run(
    home: Path, store: Store, inputs: Any, model_folder: Path, always_long: None
) -> None:
    local_models.offer([model_folder])
    chosen = {"data": SAMPLE, "model": str(model_folder)}
    keys = zip(inputs.keys, inputs.inputs, strict=True)
    values = [chosen.get(name, component.value) for (_, name), component in keys]
    *_, last = lab.launch(inputs, *values, "Ann")
    assert [run.id for run in store.list()] == [last[2]], last[1]


def test_the_page_itself_reads_no_dataset_no_model_and_no_sweep(
    home: Path, store: Store, inputs: Any, model_folder: Path, bytes_as_tokens: Any, client: TestClient,
    pool: check_pool._State, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A single call on hostile text would hold it: all of this is done by the processes."""

    def here(*_: object, **__: object) -> None:
        raise AssertionError("read by the page's own process")

    for module, name in (
        (base_models, "resolve"), (base_models, "read_config"), (datasets, "checking"), (row_lines, "scan"),
        (convert, "preparing"), (prepare_data, "record"), (paging, "page"), (data_card, "shown"),
        (making, "making"),
        (submit, "check"), (sweeps, "variants"), (rendering.Program, "texts"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, here)
    local_models.offer([model_folder])
    *_, looked = data.look(None, SAMPLE, "chat", str(model_folder))
    assert looked[1] is None
    chosen = {"data": SAMPLE, "model": str(model_folder)}
    keys = zip(inputs.keys, inputs.inputs, strict=True)
    values = [chosen.get(name, component.value) for (_, name), component in keys]
    *_, launched = lab.launch(inputs, *values, "Ann")
    assert launched[1] is None
    *_, swept = sweep.launch(inputs, lab.filled, *values, "finetune.r", "4, 8", None, "", "Ann")
    assert swept[1] is None
    *_, measured = scorecard.measure(inputs, lab.to_score, *values, ["rtn", "awq"], "Ann")
    assert measured[1] is None
    *_, preset = lab.choose_preset(inputs, *values, "quick")
    assert "33 training steps" in preset[0]["note"]
    *_, row = learned.look(one_row.LINE, SAMPLE, "{prompt} {response}", str(model_folder), 1)
    assert row[1] == 1, row[0]
    *_, about = models.look(str(model_folder))
    assert about[1] is None
    *_, fetched = models.fetch(str(model_folder))
    assert "is on this machine already" in json.dumps(fetched[0])
    *_, (card, boxes, rows) = card_view.show(SAMPLE, "chat", str(model_folder))
    assert (card["rows"], boxes["choices"]) == (144, []), card
    assert len(client.get(f"/cards/{rows['key']}/rows").json()["rows"]) == 20
    assert len(store.list()) == 1 + 2 + 2


def test_the_page_answers_others_while_a_dataset_is_checked(
    client: TestClient, endless: str, pool: check_pool._State
) -> None:
    """The check waits for the whole test, so what is answered is answered beside it."""
    given = {"session_hash": "many", "fn_index": check_event()}
    joined = client.post("/gradio_api/queue/join", json={**given, "data": asked(endless)})
    until(lambda: pool.busy, "the process")
    with ThreadPoolExecutor(1) as others:
        for _ in range(20):
            assert others.submit(client.get, "/queue.json").result(60).status_code == 200
    assert pool.busy
    event = joined.json()["event_id"]
    assert client.post("/gradio_api/cancel", json={**given, "event_id": event}).status_code == 200


def test_every_event_of_these_places_takes_a_turn() -> None:
    """A handler that reads datasets asks for a turn, in its own module."""
    limited = [fn for fn in page().fns.values() if fn.concurrency_id == parts.CHECKS["concurrency_id"]]
    names = {getattr(fn.fn, "func", fn.fn).__module__ for fn in limited}
    assert len(limited) >= 7
    for name in names:
        text = Path(settings.ROOT, *name.split(".")).with_suffix(".py").read_text()
        assert "check_turns.steps(" in text, name


# Those that ask a process and wait for it in a thread that nothing else needs, a few at a time.
IN_THEIR_OWN = {"routes/asking.py", "routes/best_ways.py", "tabs/comparing/held_out.py"}
WAITS = re.compile(r"check_pool\.answer\(|submit\.one_prompt\(")
ASKS = re.compile(r"(\w+\()?check_pool\.ask\(")


def test_nothing_of_the_page_waits_for_a_process_where_it_cannot_be_left() -> None:
    """Neither an event's own thread nor one that goes on when nobody waits any more."""
    root = Path(settings.ROOT, "webapp")
    found = set()
    for file in root.rglob("*.py"):
        text = file.read_text()
        alone = [match for match in ASKS.finditer(text) if match[1] not in ("ended(", "closing(")]
        if WAITS.search(text) or alone:
            found.add(file.relative_to(root).as_posix())
    assert found - {"ui/card_view.py"} == IN_THEIR_OWN - {"routes/asking.py"}
    assert "ended(steps, tell)" in (root / "ui/card_view.py").read_text()


def reaching_steps(module: str) -> set[str]:
    """The functions of a module that take turns, or call one of it that does."""
    tree = ast.parse(Path(settings.ROOT, *module.split(".")).with_suffix(".py").read_text())
    called = {
        function.name: {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        for function in tree.body if isinstance(function, ast.FunctionDef)
    }  # fmt: skip
    found = {"check_turns.steps"}
    while more := {name for name, names in called.items() if names & found} - found:
        found |= more
    return found


# Groups of events that ask one service or process each, beside those that read.
OWN = (parts.CHECKS, publish.PLANS, azure.ASKS, hub.ASKS, foundry_local.ASKS)
ASKING = {group["concurrency_id"] for group in OWN}
SERVICES = re.compile(r"ask\.(?!click)\w+\(|check_process\.\w+\(|version_tables\.ask_azure\(|submit\.plan\(")


def test_whoever_asks_a_service_takes_a_turn() -> None:
    """Gradio holds everybody's Stop while an event that was left does not yield."""
    found, elsewhere = 0, []
    for file in Path(settings.ROOT, "webapp", "tabs").rglob("*.py"):
        tree = ast.parse(file.read_text())
        inside = {
            id(below) for node in ast.walk(tree) if isinstance(node, ast.Lambda) for below in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and SERVICES.match(f"{ast.unparse(node.func)}("):
                found += 1
                if id(node) not in inside:
                    elsewhere.append(f"{file.name}: {ast.unparse(node)}")
    assert found >= 8
    assert sorted(elsewhere) == [  # what nobody can leave, and what `publishing.check` asks in a turn
        "azure.py: submit.plan(store(), found, TO, options)",
        "foundry_local.py: check_process.preflight(store().home, NAME, of, TO, given)",
        "hub.py: ask.preflight(store().home, of, given)",
    ]


def test_a_process_that_an_event_waits_for_ends_when_the_event_is_left(tmp_path: Path) -> None:
    began = tmp_path / "began"
    words = ["-c", f"import pathlib, signal; pathlib.Path({str(began)!r}).touch(); signal.pause()"]
    ended = threading.Event()

    def work(tell: Any) -> None:
        with pytest.raises(LabError, match="Nobody waits"):
            own_process.run(words, None, settings.local_environment())
        ended.set()

    steps = check_turns.steps(work, str)
    until(lambda: next(steps) == "" and began.exists(), "the process")
    steps.close()
    assert ended.wait(60)


def test_who_takes_turns_has_a_place_of_those_that_read() -> None:
    """Not one of the few that quick and unrelated events need, nor one outside the queue."""
    handlers = [(getattr(fn.fn, "func", fn.fn), fn.concurrency_id) for fn in page().fns.values()]
    wrong = [
        f"{handler.__module__}.{handler.__name__}" for handler, place in handlers
        if place not in ASKING
        and getattr(handler, "__module__", "").startswith("webapp.")
        and handler.__name__ in reaching_steps(handler.__module__)
    ]  # fmt: skip
    assert wrong == ["webapp.tabs.data.arrive"]  # two at a time, and once for a dataset


def test_work_may_be_left_while_it_is_silent_and_ends_where_it_goes_on(home: Path) -> None:
    go, ended = threading.Event(), threading.Event()

    def work(tell: Any) -> None:
        tell("first")
        go.wait(60)
        with pytest.raises(LabError, match="Nobody waits"):
            tell("second")
        ended.set()

    steps = check_turns.steps(work, str.upper)
    assert [next(steps), next(steps)] == ["FIRST", "FIRST"]
    steps.close()
    go.set()
    assert ended.wait(60)


def test_work_that_somebody_has_asked_for_for_good_goes_to_its_end(home: Path) -> None:
    go, ended = threading.Event(), threading.Event()

    def work(tell: Any) -> None:
        go.wait(60)
        tell("last")
        ended.set()

    steps = check_turns.steps(work, str, to_its_end=True)
    next(steps)
    steps.close()
    go.set()
    assert ended.wait(60)


def test_threads_are_few(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_turns, "_threads", threading.BoundedSemaphore(1))
    assert checked()[1] is None
    assert checked()[1] is None
    check_turns._threads.acquire()
    assert check_turns.BUSY in json.dumps(checked()[1])
