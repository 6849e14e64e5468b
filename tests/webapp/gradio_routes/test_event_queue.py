"""Events that wait, are carried out, stopped and read, with a small page; the lab's: test_gradio_requests."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gradio as gr
import pytest
from gradio import utils
from gradio.data_classes import PredictBodyInternal
from gradio.routes import App
from starlette.requests import Request

from pipeline.errors import NO_MORE, InputError
from webapp.gradio_routes import event_queue
from webapp.gradio_routes.event_queue import BUSY, Event, EventQueue
from webapp.handler_values import BROKEN, Page

PATIENCE = 60.0  # seconds for what takes none
JOIN = {
    "type": "http", "method": "POST", "path": "/gradio_api/queue/join", "query_string": b"", "scheme": "http",
    "headers": [(b"host", b"localhost")], "server": ("localhost", 80), "root_path": "",
}  # fmt: skip


class Small:
    """A page with a handler of each kind, and what they have done."""

    def __init__(self) -> None:
        self.closed: list[str] = []  # generators that were
        self.go = threading.Event()
        self.large = "x" * 1000

    def count(self, text: str) -> Iterator[str]:
        for number in range(3):
            yield f"{text} {number}"

    def fail(self, text: str) -> Iterator[str]:
        try:
            yield "first"
            raise InputError(f"No: {text}")
        finally:
            self.closed.append(text)

    def crash(self, text: str) -> str:
        raise KeyError(text)

    def crowd(self, text: str) -> str:
        raise RuntimeError("can't start new thread")

    def note(self, text: str) -> str:
        gr.Info(f"About {text}")
        return "noted"

    def hold(self, text: str) -> Iterator[str]:
        """In its thread until it may go on, and then for as long as somebody wants its answers."""
        try:
            assert self.go.wait(PATIENCE)
            while True:
                yield text
        finally:
            self.closed.append(text)

    async def endless(self, text: str) -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # it takes a while to tidy up
            self.closed.append(text)

    def pour(self, text: str) -> Iterator[str]:
        while True:
            yield self.large

    def made(self) -> EventQueue:
        with Page() as blocks:
            box = gr.Textbox()
            for name in ("count", "fail", "crash", "crowd", "note", "hold", "endless", "pour"):
                gr.Button(name).click(
                    getattr(self, name), box, box, api_name=name, concurrency_id=name, concurrency_limit=2
                )
            gr.Button().click(self.crash, box, box, concurrency_id="crash", concurrency_limit=1)
            gr.Button().click(self.crash, box, box, concurrency_id="crash", concurrency_limit=3)
        blocks.queue()
        return EventQueue(App.create_app(blocks))


@pytest.fixture
def small() -> Iterator[Small]:
    made = Small()
    yield made
    made.go.set()


class Asked:
    """A queue of events, asked by sessions."""

    def __init__(self, small: Small) -> None:
        self.queue = small.made()
        self.numbers = {fn.api_name: number for number, fn in self.queue.handlers.items()}

    def join(self, session: str, handler: str, text: str = "a") -> str | None:
        number = self.numbers[handler]
        call = {"session_hash": session, "fn_index": number, "data": [text], "request": Request(dict(JOIN))}
        return self.queue.join(PredictBodyInternal(**call))

    def waiting(self, handler: str) -> list[str]:
        return [event.session.name for event in self.queue.groups[handler].waiting]

    def running(self, handler: str) -> list[Event]:
        return list(self.queue.groups[handler].running)

    async def read(self, session: str) -> list[dict[str, Any]]:
        """All messages to a session until its stream ends."""
        with self.queue.reading(session) as answers:
            return messages(b"".join([text async for text in answers]))

    async def all_ended(self) -> None:
        while any(group.running for group in self.queue.groups.values()):
            await asyncio.sleep(0)
        assert not any(group.waiting for group in self.queue.groups.values())
        assert not self.queue.blocks.pending_diff_streams
        events = [event for session in self.queue.sessions.values() for event in session.events.values()]
        assert [event.call for event in events] == [None] * len(events), "what is over keeps no arguments"


def messages(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.decode().splitlines() if line]


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [message["msg"] for message in told]


def within(work: Any) -> Any:
    """What a coroutine returns, if that does not take forever."""

    async def run() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work

    return asyncio.run(run())


def test_a_session_reads_its_answers_to_the_end_and_is_forgotten(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        name = asked.join("s", "count")
        told = await asked.read("s")
        assert kinds(told) == [
            "process_starts", *["process_generating"] * 3, "process_completed", "close_stream"
        ]  # fmt: skip
        assert {message["event_id"] for message in told[:-1]} == {name}
        assert told[1]["output"]["data"] == ["a 0"], "whole, and then what differs"
        assert told[2]["output"]["data"] == [[["replace", [], "a 1"]]]
        assert (told[4]["success"], told[4]["output"]["data"]) == (True, ["a 2"])
        assert asked.queue.sessions == {}
        await asked.all_ended()

    within(run())


def test_what_a_handler_refuses_or_does_wrong_is_told_in_one_sentence(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        for handler, said in (("fail", "No: a"), ("crash", BROKEN), ("crowd", NO_MORE)):
            asked.join("s", handler)
            *_, last, closed = await asked.read("s")
            assert (last["success"], last["output"]["error"], last["title"]) == (False, said, "Error")
            assert closed["msg"] == "close_stream"
        await asked.all_ended()

    within(run())


def test_an_event_that_ends_in_an_unknown_way_tells_so_and_gives_its_place_back(
    small: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        asked = Asked(small)

        async def broken(*_: Any, **__: Any) -> None:
            raise MemoryError("none left")

        with monkeypatch.context() as patch:
            patch.setattr(asked.queue.blocks, "process_api", broken)
            asked.join("s", "count")
            *_, last, _ = await asked.read("s")
        assert (last["success"], last["output"]["error"]) == (False, BROKEN)
        await asked.all_ended()
        asked.join("s", "count")
        assert (await asked.read("s"))[-2]["success"]

    with caplog.at_level(logging.ERROR):
        within(run())
    assert "none left" in caplog.text


def test_a_notice_of_a_handler_reaches_its_page(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        asked.join("other", "hold")
        asked.join("s", "note")
        told = await asked.read("s")
        assert [message["log"] for message in told if message["msg"] == "log"] == ["About a"]
        small.go.set()

    within(run())


def test_handlers_of_a_group_have_as_few_places_as_one_of_them_asks_for(small: Small) -> None:
    groups = Asked(small).queue.groups
    assert (groups["crash"].places, groups["count"].places) == (1, 2)


def test_an_event_that_is_stopped_before_its_first_step_gives_its_place_back(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        for handler in ("endless", "hold", "count"):
            for turn in range(5):
                name = asked.join(f"s{turn}", handler)
                asked.queue.cancel(f"s{turn}", name or "")
                asked.queue.cancel(f"s{turn}", name or "")
                small.go.set()
                told = await asked.read(f"s{turn}")
                assert (kinds(told)[-2:], told[-2]["success"]) == (
                    ["process_completed", "close_stream"],
                    True,
                )
        await asked.all_ended()
        asked.join("after", "count")
        assert (await asked.read("after"))[-2]["output"]["data"] == ["a 2"]

    within(run())


def test_an_event_that_is_stopped_while_it_waits_never_begins(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        names = [asked.join("s", "hold", text) for text in "abcd"]
        assert len(asked.running("hold")) == 2
        asked.queue.cancel("s", names[2] or "")
        asked.queue.cancel("other", names[3] or "")
        assert asked.waiting("hold") == ["s"], "of another session nothing is stopped"
        small.go.set()
        for name in names:
            asked.queue.cancel("s", name or "")
        await asked.all_ended()
        assert sorted(small.closed) == ["a", "b"]

    within(run())


def test_an_event_that_is_left_keeps_its_place_while_its_thread_works(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        names = [asked.join("s", "hold", text) for text in "ab"]
        for name in names * 3:
            asked.queue.cancel("s", name or "")
        asked.join("later", "hold", "c")
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(asked.running("hold")), asked.waiting("hold")) == (2, ["later"])
        small.go.set()
        while "b" not in small.closed or "a" not in small.closed:
            await asyncio.sleep(0)
        assert asked.queue.sessions["later"].events
        for name in list(asked.queue.sessions["later"].events):
            asked.queue.cancel("later", name)
        await asked.all_ended()

    within(run())


def test_an_event_that_is_stopped_again_and_again_tidies_up(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        name = asked.join("s", "endless") or ""
        while asked.queue.sessions["s"].size == 0 or not asked.running("endless")[0].task:
            await asyncio.sleep(0)
        while len(asked.queue.sessions["s"].unread) < 2:
            await asyncio.sleep(0)
        while asked.running("endless"):
            asked.queue.cancel("s", name)
            await asyncio.sleep(0)
        assert small.closed == ["a"]
        assert kinds(await asked.read("s"))[-2:] == ["process_completed", "close_stream"]

    within(run())


@pytest.mark.parametrize("handler", ["endless", "hold"])
def test_a_page_that_goes_away_leaves_its_events(
    small: Small, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    close = utils.SyncToAsyncIterator.aclose

    async def noted(iterator: utils.SyncToAsyncIterator) -> None:
        closed.append(iterator)
        await close(iterator)

    monkeypatch.setattr(utils.SyncToAsyncIterator, "aclose", noted)

    async def run() -> None:
        asked = Asked(small)
        for text in "abc":
            asked.join("s", handler, text)
        with asked.queue.reading("s") as answers:
            assert kinds(messages(await anext(answers)))[0] == "process_starts"
        assert asked.queue.sessions == {}
        small.go.set()
        await asked.all_ended()

    within(run())
    assert len(closed) == (2 if handler == "hold" else 0)


def test_an_event_that_comes_while_others_are_read_is_read_too(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        asked.join("s", "count")
        told = b""
        with asked.queue.reading("s") as answers:
            async for text in answers:
                late = b"process_completed" not in told and asked.join("s", "note")
                told += text
        assert late or b"noted" in told
        assert Counter(kinds(messages(told)))["close_stream"] == 1
        assert asked.queue.sessions == {}

    within(run())


def test_a_stream_with_nothing_to_send_is_no_dead_one(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        asked = Asked(small)
        asked.join("s", "hold")
        with asked.queue.reading("s") as answers:
            await anext(answers)
            monkeypatch.setattr(event_queue, "HEARTBEAT_SECONDS", 0.0)
            assert kinds(messages(await anext(answers))) == ["heartbeat"]
        small.go.set()
        await asked.all_ended()

    within(run())


def test_answers_that_nobody_reads_are_of_a_size(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator may tell megabytes each second to nobody."""
    monkeypatch.setattr(event_queue, "LARGEST_UNREAD", 10_000)

    async def run() -> None:
        asked = Asked(small)
        asked.join("s", "pour")
        await asked.all_ended()
        assert asked.queue.sessions["s"].size < 20_000
        told = await asked.read("s")
        assert (told[-2]["success"], told[-2]["output"]["error"]) == (False, event_queue.SLOW)

    within(run())


def test_answers_that_nobody_reads_are_few(small: Small) -> None:
    async def run() -> None:
        asked = Asked(small)
        names = [asked.join("s", "count") for _ in range(20)]
        assert [name is not None for name in names] == [n < event_queue.MOST_UNREAD for n in range(20)]
        assert asked.join("other", "count")
        await asked.read("s")
        assert asked.join("s", "count")

    within(run())


def test_sessions_that_nobody_reads_make_room_and_others_stay(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "SESSIONS", 3)

    async def run() -> None:
        asked = Asked(small)
        for name in ("runs", "ended", "new"):
            assert asked.join(name, "hold" if name == "runs" else "note")
        while asked.running("note"):
            await asyncio.sleep(0)
        assert asked.join("newer", "hold")
        assert list(asked.queue.sessions) == ["runs", "new", "newer"], "the oldest whose events are over"
        assert asked.join("newest", "hold")
        assert list(asked.queue.sessions) == ["runs", "newer", "newest"]
        assert asked.join("last", "hold")
        assert list(asked.queue.sessions) == ["newer", "newest", "last"], "the oldest"
        with asked.queue.reading("newer"), asked.queue.reading("newest"), asked.queue.reading("last"):
            assert asked.join("one more", "note") is None
            assert asked.join("last", "note")
        small.go.set()
        await asked.all_ended()

    within(run())


def test_who_reads_goes_first_and_what_nobody_reads_is_left_soon(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "UNREAD_SECONDS", 0.0)

    async def run() -> None:
        asked = Asked(small)
        closed(asked, "hold")
        for name in ("left", "new", "reads"):
            asked.join(name, "hold", name)
        with asked.queue.reading("reads"):
            asked.queue.groups["hold"].places = 1
            asked.queue._fill(asked.queue.groups["hold"])
            assert [event.session.name for event in asked.running("hold")] == ["reads"]
            while asked.queue.sessions.keys() != {"reads"}:
                await asyncio.sleep(0)
            assert asked.waiting("hold") == []
            await asyncio.sleep(0)
        small.go.set()
        await asked.all_ended()
        assert small.closed == ["reads"]

    within(run())


@pytest.fixture
def crowd() -> list[str]:
    return [f"s{number}" for number in range(event_queue.MOST_WAITING)]


def closed(asked: Asked, *handlers: str) -> None:
    """These have no places: all their events wait."""
    for handler in handlers:
        asked.queue.groups[handler].places = 0


def test_a_full_group_takes_no_place_of_another(small: Small, crowd: list[str]) -> None:
    async def run() -> None:
        asked = Asked(small)
        closed(asked, "note", "count")
        for handler in ("note", "count"):
            assert all(asked.join(name, handler) for name in crowd)
            for name in crowd:
                asked.queue.sessions[name].is_read = True
            assert asked.join("late", handler) is None
            assert asked.waiting(handler) == crowd
        assert asked.queue.sessions.keys() == {*crowd}

    within(run())


def test_events_that_nobody_reads_make_room(small: Small, crowd: list[str]) -> None:
    async def run() -> None:
        asked = Asked(small)
        closed(asked, "note")
        assert all(asked.join(name, "note") for name in crowd)
        asked.queue.sessions["s0"].is_read = True
        assert asked.join("new", "note")
        assert asked.waiting("note") == ["s0", *crowd[2:], "new"], "the oldest of them"
        *_, last, _ = await asked.read("s1")
        assert (last["success"], last["output"]["error"]) == (False, BUSY), "a page that was late to ask"

    within(run())


def test_who_sends_many_events_makes_room_for_others(small: Small) -> None:
    half = event_queue.MOST_WAITING // 2

    async def run() -> None:
        asked = Asked(small)
        closed(asked, "note")
        assert all(asked.join(name, "note") for name in ["many", "more"] * half)
        for session in asked.queue.sessions.values():
            session.is_read = True
        got = [asked.join("new", "note") is not None]
        asked.queue.sessions["new"].is_read = True
        got += [asked.join("new", "note") is not None for _ in range(half)]
        assert got.count(True) == event_queue.MOST_WAITING // 3
        assert asked.waiting("note")[0] == "many", "its oldest stays"

    within(run())
