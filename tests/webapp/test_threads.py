"""Each kind of work has threads of its own."""

from __future__ import annotations

import ast
import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gradio.route_utils import FnIndexInferError
from starlette.testclient import TestClient

from pipeline import settings
from pipeline.errors import LabError
from tests.helpers.handlers import gradio
from webapp import threads
from webapp.tabs.comparing import prompting
from webapp.tabs.serving import panel

PATIENCE = 20.0  # seconds for what takes none


def shared(source: str) -> list[int]:
    """Lines that use asyncio's own threads: `to_thread`, or `run_in_executor` without naming others; or those
    of anyio: `run_in_threadpool`, or a route that is no coroutine."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            found += [node.lineno for name in node.names if name.name == "to_thread"]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [node.lineno] if (node.value.id, node.attr) == ("asyncio", "to_thread") else []
        if isinstance(node, ast.ImportFrom):  # the forty of anyio, which serve static files too
            found += [node.lineno for name in node.names if name.name == "run_in_threadpool"]
        if isinstance(node, ast.FunctionDef):
            routes = [one for one in node.decorator_list if ast.unparse(one).startswith("router.")]
            found += [node.lineno] if routes else []
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run_in_executor":
            first = next((key.value for key in node.keywords if key.arg == "executor"), None)
            first = node.args[0] if node.args else first
            if first is None or (isinstance(first, ast.Constant) and first.value is None):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "await asyncio.to_thread(work)",
        "start = partial(asyncio.to_thread, work)",
        "from asyncio import to_thread",
        "loop.run_in_executor(None, work)",
        "asyncio.get_running_loop().run_in_executor(executor=None, func=work)",
        "from fastapi.concurrency import run_in_threadpool",
        "@router.get('/runs')\ndef listed(): ...",
    ],
)
def test_the_threads_that_all_share_are_seen(source: str) -> None:
    assert shared(source) == [source.count("\n") + 1]
    assert shared("threads.run(threads.COMPARE, work); loop.run_in_executor(own, work)") == []


@pytest.mark.parametrize("top", ["webapp", "pipeline"])
def test_no_work_uses_the_threads_that_all_share(top: str) -> None:
    paths = list((settings.ROOT / top).rglob("*.py"))
    assert paths
    found = {str(path): lines for path in paths if (lines := shared(path.read_text("utf-8")))}
    assert found == {}, "name the threads: `threads.run(threads.KIND, work)`"


@contextmanager
def flooded(*pools: ThreadPoolExecutor) -> Iterator[None]:
    """All threads of these pools are busy."""
    free = threading.Event()
    for pool in pools:
        for _ in range(pool._max_workers):
            pool.submit(free.wait)
    try:
        yield
    finally:
        free.set()


async def last(steps: AsyncIterator[tuple[Any, ...]]) -> tuple[Any, ...]:
    return [step async for step in steps][-1]


@pytest.mark.parametrize(
    "ask",
    [lambda: prompting.compare(None, [], "a" * 22, "Hello", 8, 0, 0), lambda: panel.start("none", "a" * 22)],
    ids=["compare", "serving"],
)
def test_a_flood_of_other_work_stops_neither_compare_nor_serving(home: Path, ask: Any) -> None:
    others = ThreadPoolExecutor(1)

    async def run() -> tuple[Any, ...]:
        asyncio.get_running_loop().set_default_executor(others)
        with flooded(others, threads.UPLOADS, threads.LOOKS, threads.UPKEEP):
            async with asyncio.timeout(PATIENCE):
                return await last(ask())

    assert "bad" in str(asyncio.run(run()))


def test_work_gives_what_it_returns_and_raises(home: Path) -> None:
    async def run() -> int:
        with pytest.raises(ValueError, match="invalid literal"):
            await threads.run(threads.UPKEEP, int, "x")
        return await threads.run(threads.UPKEEP, int, "11", base=2)

    assert asyncio.run(run()) == 3


def test_where_no_thread_can_be_started_those_there_are_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, free = threads.Threads(2), threading.Event()
    first = pool.submit(free.wait, PATIENCE)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = pool.submit(int, "3")
        done: list[str] = []
        with pytest.raises(LabError, match="can start no more processes now"):
            threads.Threads(1).submit(done.append, "for nobody")
    free.set()
    assert (first.result(PATIENCE), second.result(PATIENCE)) == (True, 3)
    assert done == []
    pool.shutdown()


def started_by_itself(source: str) -> list[int]:
    """Lines that start a thread otherwise than `own_process.start_thread`, or have a pool of Python's own."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func).endswith(("ThreadPoolExecutor", "ProcessPoolExecutor"))
            or (getattr(node.func, "attr", "") == "start" and "Thread(" in ast.unparse(node.func))
        )
    ]


def test_all_threads_of_the_app_are_started_where_a_refusal_is_a_sentence() -> None:
    for source in ("threading.Thread(target=work).start()", "pool = futures.ThreadPoolExecutor(2)"):
        assert started_by_itself(source) == [1]
    assert started_by_itself("own_process.start_thread(threading.Thread(target=work))") == []
    paths = list((settings.ROOT / "webapp").rglob("*.py"))
    assert paths
    found = {str(path): lines for path in paths if (lines := started_by_itself(path.read_text("utf-8")))}
    assert found == {}, "`own_process.start_thread`, or `threads.Threads`"


def test_what_answers_for_an_error_needs_no_thread(client: TestClient) -> None:
    """The framework has one start for a handler that is no coroutine, and there may be none."""
    apps = [client.app, gradio(client)]
    ours = {error: call for app in apps for error, call in app.exception_handlers.items()}
    assert {LabError, FnIndexInferError} <= ours.keys()
    assert [error for error, call in ours.items() if not inspect.iscoroutinefunction(call)] == []
