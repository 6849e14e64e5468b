"""What routes ask of processes: in threads of their own, few at a time, and ended when nobody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from docs import make_reference
from pipeline.errors import LabError
from pipeline.runs import check_pool, kept_datasets
from pipeline.runs.data import data_card
from pipeline.store import Store
from tests.helpers import examples, planted
from tests.helpers.lab import until
from tests.helpers.votes import rows
from tests.runs.data.test_data_card import ended
from webapp.routes import asking
from webapp.routes.asking import Places

T = TypeVar("T")
ADDRESS = "http://localhost:7860"
LONG_SECONDS = 60.0  # after which a test has failed


class Slow:
    """Stands in for `check_pool.ask`: who asks is told something every moment, and an answer after `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []
        self.closed: list[str] = []

    def ask(self, function: str, given: dict[str, Any]) -> Iterator[str]:
        self.asked.append(function)
        try:
            while not self.go.wait(0.01):
                yield "Reading…"
            return f"answer to {function}"
        finally:
            self.closed.append(function)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    found = Slow()
    monkeypatch.setattr(check_pool, "ask", found.ask)
    yield found
    found.go.set()
    until(lambda: sorted(found.closed) == sorted(found.asked), "the end of all that was asked")


def ended_by(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns on a loop of its own."""

    async def bounded() -> T:
        return await asyncio.wait_for(work(), LONG_SECONDS)

    return asyncio.run(bounded())


def request(left: asyncio.Event | None = None) -> Request:
    """One whose client leaves when `left` is set."""

    async def receive() -> Message:
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


async def turned(condition: Callable[[], Any]) -> None:
    """Let others go on until this is so."""
    while not condition():
        await asyncio.sleep(0.005)


def test_a_further_one_is_refused_at_once(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WAITING", 1)
    places = Places(1)

    async def work() -> list[Any]:
        two = [asyncio.create_task(asking.answered(request(), places, name, {})) for name in "ab"]
        await turned(lambda: slow.asked)
        with pytest.raises(LabError, match="try again in a moment"):
            await asking.answered(request(), places, "c", {})
        assert slow.asked == ["a"], "the second waits for the only thread"
        slow.go.set()
        return await asyncio.gather(*two)

    assert ended_by(work) == ["answer to a", "answer to b"]
    assert slow.asked == ["a", "b"]
    until(lambda: not places._asked, "their places")


def test_who_leaves_ends_what_works_for_him_and_what_waits_is_never_asked(slow: Slow) -> None:
    places = Places(1)

    async def work() -> None:
        left = asyncio.Event()
        two = [asyncio.create_task(asking.answered(request(left), places, name, {})) for name in "ab"]
        await turned(lambda: slow.asked)
        left.set()
        for told in await asyncio.gather(*two, return_exceptions=True):
            assert str(told) == asking.LEFT
        await turned(lambda: slow.closed)
        await turned(lambda: not places._asked)

    ended_by(work)
    assert slow.asked == slow.closed == ["a"]


def test_what_is_written_to_its_end_does_not_mind(slow: Slow) -> None:
    async def work() -> Any:
        left = asyncio.Event()
        left.set()
        vote = asyncio.create_task(asking.answered(request(left), Places(1), "a", {}, to_its_end=True))
        await turned(lambda: slow.asked)
        await asyncio.sleep(0)  # here another would have been left
        slow.go.set()
        return await vote

    assert ended_by(work) == "answer to a"


def test_the_oldest_makes_room_for_one_that_waits(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "OLD_SECONDS", -1.0)
    places = Places(2)

    async def work() -> list[Any]:
        two = [asyncio.create_task(asking.answered(request(), places, name, {})) for name in "ab"]
        await turned(lambda: len(slow.asked) == 2)
        assert not slow.closed, "nobody waits yet"
        third = asyncio.create_task(asking.answered(request(), places, "c", {}))
        await turned(lambda: len(slow.asked) == 3)
        slow.go.set()
        return await asyncio.gather(*two, third, return_exceptions=True)

    oldest, *others = ended_by(work)
    assert ("Others wait" in str(oldest), others) == (True, ["answer to b", "answer to c"])


def test_the_end_of_the_server_is_a_sentence(slow: Slow) -> None:
    """It cancels what is asked for; what passes that on is logged as an error of ours."""

    async def work() -> None:
        task = asyncio.create_task(asking.answered(request(), Places(1), "a", {}))
        await turned(lambda: slow.asked)
        task.cancel()
        with pytest.raises(LabError, match="is being stopped"):
            await task

    ended_by(work)
    until(lambda: slow.closed, "the end of what worked for it")


def test_slow_reports_leave_the_threads_of_everybodys_page(
    lasting_client: TestClient, lasting_home: Path, slow: Slow
) -> None:
    run = planted.finished(Store(lasting_home))
    many = asking.ROWS.most + asking.WAITING

    async def work() -> None:
        transport = httpx.ASGITransport(lasting_client.app)
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client:
            path = f"/runs/{run}/report.md?rows=true"
            asked = [asyncio.create_task(client.get(path)) for _ in range(many + 40)]
            await turned(lambda: sum(task.done() for task in asked) == 40)
            refused = [task.result() for task in asked if task.done()]
            assert {reply.status_code for reply in refused} == {503}
            assert all(asking.MANY in reply.text for reply in refused)
            for other in ("/lab/style.css", f"/runs/{run}/recipe.yaml", f"/runs/{run}.json"):
                assert (await client.get(other)).status_code == 200
            slow.go.set()
            for task in asked:
                await task
            assert sum(task.result().status_code == 200 for task in asked) == many

    ended_by(work)


def test_downloads_with_rows_close_none_without(
    lasting_client: TestClient, lasting_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planted.finished(Store(lasting_home))
    slow = Slow()
    ask = check_pool.ask
    rows_only = lambda function, given: (slow.ask if given.get("rows") else ask)(function, given)  # noqa: E731
    monkeypatch.setattr(check_pool, "ask", rows_only)
    monkeypatch.setattr(asking, "OLD_SECONDS", 600.0)
    path = f"/runs/{run}/model.zip"
    replies: list[int] = []
    many = asking.ROWS.most + asking.WAITING  # a further one with rows is refused
    threads = [
        threading.Thread(target=lambda: replies.append(lasting_client.get(f"{path}?rows=true").status_code))
        for _ in range(many)
    ]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(asking.ROWS._asked) == many, "all of them")
        assert lasting_client.get(path).status_code == 200
        assert lasting_client.get(f"/runs/{run}/report.md").status_code == 200
    finally:
        monkeypatch.setattr(check_pool, "ask", ask)
        for question in [*asking.ROWS._asked]:
            question.leave()
        for thread in threads:
            thread.join()
    assert replies == [503] * many


@pytest.fixture
def everything(lasting_home: Path, tmp_path: Path) -> list[dict[str, str]]:
    """What our routes may be asked about, by the names in their paths."""
    store = Store(lasting_home)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "x", "response": "y"}\n' * 2)
    kept = kept_datasets.keep(lasting_home, data)
    card = ended(data_card.card(data_card.Question(kept, "{prompt} {response}", None, 512)))
    measured = examples.measured(store, [*examples.rows(3)], [examples.answer("What?", "A.", "B.", "C.")])
    runs = (measured, planted.finished(store, answers=rows(2)))
    named = {"key": str(card["key"]), "finding": "duplicates", "number": "1", "stage": "evaluate"}
    return [{**named, "run": run, "group": "none", "state": "open", "where": "up"} for run in runs]


def test_no_route_waits_for_a_process_in_a_thread_of_the_page(
    lasting_client: TestClient, everything: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[str]] = {}

    def noted(function: str, given: dict[str, Any]) -> Iterator[str]:
        asked.setdefault(function, set()).add(threading.current_thread().name.partition("_")[0])
        yield ""
        raise LabError("This was only noted.")

    monkeypatch.setattr(check_pool, "ask", noted)
    ballot = {"voter": "Ada", "row": 0, "choice": "a", "seen": "0" * 32}
    for route in make_reference.our_routes():
        for given in everything if "{" in route.path else everything[:1]:
            for kind in ("csv", "json", "jsonl", "html", "md") if "{kind}" in route.path else ("",):
                path = route.path.format(**given, kind=kind)
                for method in route.methods:
                    body = {"json": ballot} if method == "POST" else {}
                    lasting_client.request(method, path, params={"voter": "Ada", "before": 1}, **body)
    assert {function.rpartition(".")[2] for function in asked} == {
        "zip_file:asked", "files:asked", "pages:page", "pages:whole", "export:write", "data_card:write_lines",
        "data_card:page", "booth:state", "booth:vote", "booth:reveal", "booth:result", "booth:pairs",
    }  # fmt: skip
    assert set.union(*asked.values()) == {asking.THREAD}
