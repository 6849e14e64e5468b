"""Where the machine can start no more threads or processes for a moment, that moment is all that it costs.

A container's limit, or a user's, can be reached by anything in it. Whoever counts, takes or makes something
for what is started then gives it back, and the next one works.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import gc
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from pipeline import settings
from pipeline.errors import NO_MORE, LabError, sentence
from pipeline.exports import row_view
from pipeline.exports.chat import chat_processes
from pipeline.exports.chat.sources import Source
from pipeline.inputs.data import lengths
from pipeline.inputs.data.hub import fetching_rows
from pipeline.inputs.data.telling import ended
from pipeline.inputs.prompts import rendering
from pipeline.runs import check_pool, pulls
from pipeline.runs.comparing import scorecard
from pipeline.runs.data import data_card
from pipeline.store import Store, scratch
from pipeline.store.run import RUNNING
from pipeline.system import checksums, locks, own_process
from pipeline.worker import webhook
from tests.helpers import planted
from tests.helpers.lab import until
from webapp import servers, threads, upload_count
from webapp.routes import asking, best_ways
from webapp.ui import check_turns

GROUP_OF_TESTS = "tests.runs.test_check_pool:echo"
BROWSER = "n" * 22
JOB = ([{"role": "user", "content": "a"}], True)


class World:
    """What the cases work with; pools whose first thread is still to be started."""

    def __init__(self, home: Path, folder: Path, store: Store) -> None:
        self.home, self.folder, self.store = home, folder, store
        self.places, self.threads = asking.Places(1), threads.Threads(1)
        self.uploads = upload_count.Count()
        self.group = planted.scorecard(store)
        self.rows = scorecard.rows(store, self.group)
        self.file = folder / "rows.jsonl"
        self.file.write_text('{"prompt": "a", "response": "b"}\n' * 4)
        self.source = Source("model x", folder, None, False)

    def held(self) -> dict[str, Any]:
        """All that is counted, taken and made."""
        gc.collect()
        process = psutil.Process()
        return {
            "descriptors": len([*Path("/proc/self/fd").iterdir()]),
            "processes": sorted(child.pid for child in process.children(recursive=True)),
            "temporary": sorted(Path(tempfile.gettempdir()).iterdir()),
            "scratch": sorted(path.name for path in (self.home / scratch.FOLDER).glob("*")),
            "turns": check_turns._threads._value,
            "asked": len(self.places._asked),
            "work": [pool._work_queue.qsize() for pool in (self.places._threads, self.threads)],
            "looking": (self.uploads._looking, self.uploads._touched),
            "ways": sorted(best_ways._asked),
            "checks": len(check_pool._state.busy),
            "rows": [len(each) for each in (row_view._processes, row_view._temporary, row_view._ending)],
            "running": [len(own_process._running), len(own_process._groups)],
            "served": len(servers._served),
            "counting": lengths._free._value,
            "rendering": rendering._pool._busy,
            "loading": len(chat_processes._loading),
            "pulls": pulls.listed(self.home),
            "sums": len(checksums._started),
            "places": [
                str(lock)
                for lock in self.home.glob("*/.*.lock")
                if lock.parent.name in ("cards", "hub") and locks.held(lock)
            ],
        }


def _checks_in_turn(world: World) -> None:
    steps = check_turns.steps(lambda tell: tell("a"), str)
    for _ in steps:
        pass


def _asks(world: World) -> None:
    world.places.ask(GROUP_OF_TESTS, {"text": "a"}).answer.result()


def _works(world: World) -> None:
    asyncio.run(threads.run(world.threads, list))


def _looks_at_uploads(world: World) -> None:
    asyncio.run(world.uploads.known())


def _checks(world: World) -> None:
    check_pool.answer(GROUP_OF_TESTS, {"text": "a"})


def _shows_a_row(world: World) -> None:
    folders = world.folder, world.folder
    row_view._left(folders, row_view._taken(folders), False)


def _compares_ways(world: World) -> None:
    if best_ways.of(world.group, world.rows) is None and not best_ways._asked:
        raise LabError(NO_MORE)  # it says nothing, and whoever looks again has it tried again
    until(lambda: best_ways.of(world.group, world.rows) == "AWQ suits best.", "the sentence")


def _follows(world: World) -> None:
    own_process.follow(["-c", "print(1)"], settings.local_environment(), lambda _: None, seconds=600.0)


def _runs(world: World) -> None:
    own_process.run(["-c", "print(1)"], None, settings.local_environment())


def _makes_a_card(world: World) -> None:
    ended(data_card.card(data_card.Question(world.file, "{prompt} {response}", None, 512)))


def _fetches(world: World) -> None:
    ended(fetching_rows.fetching("hub:org/towns", world.home))


def _serves(world: World) -> None:
    servers.start(world.home, BROWSER, world.source)
    servers.stop(BROWSER)


def _loads_a_model(world: World) -> None:
    asyncio.run(chat_processes.load(world.home, world.source))


def _pulls(world: World) -> None:
    version = {"id": "azureml:a:1", "name": "a", "version": "1", "tags": {}}
    key = pulls.start(world.home, version, "cli")
    until(lambda: (pulls.facts(world.home, key) or {})["status"] != RUNNING, "the end of its process")


def _renders(world: World) -> None:
    next(rendering.Program("{{ messages[0].content }}", {}).texts([JOB]))
    rendering.close()


def _sums(world: World) -> None:
    checksums.begin(world.file)
    checksums._started.popitem()[1].join()


def _posts(world: World) -> None:
    thread = webhook.tell(world.store.list()[0])
    assert thread is not None
    thread.join()


THREADS, PROCESSES = "threads", "processes"
CASES: list[tuple[Callable[[World], None], str]] = [
    (_checks_in_turn, THREADS),
    (_asks, THREADS),
    (_works, THREADS),
    (_looks_at_uploads, THREADS),
    (_compares_ways, THREADS),
    (_follows, THREADS),
    (_makes_a_card, THREADS),
    (_serves, THREADS),
    (_sums, THREADS),
    (_posts, THREADS),
    (_checks, PROCESSES),
    (_shows_a_row, PROCESSES),
    (_follows, PROCESSES),
    (_runs, PROCESSES),
    (_makes_a_card, PROCESSES),
    (_fetches, PROCESSES),
    (_serves, PROCESSES),
    (_loads_a_model, PROCESSES),
    (_pulls, PROCESSES),
    (_renders, PROCESSES),
]


def _no_thread(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


def _no_process(*_: object) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.fixture
def world(home: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    temporary, folder = tmp_path / "temporary", tmp_path / "folder"
    temporary.mkdir()
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OLIVE_LAB_WEBHOOK", "http://127.0.0.1:9/")
    monkeypatch.setattr(webhook, "PAUSES", ())
    monkeypatch.setattr(check_pool._state, "open", True)
    monkeypatch.setattr(check_pool, "WARM", 0)
    answer = check_pool.answer
    monkeypatch.setattr(
        check_pool,
        "answer",
        lambda asked, *given: "AWQ suits best." if asked == best_ways.ASKED else answer(asked, *given),
    )
    (home / ".gradio-uploads").mkdir()
    monkeypatch.setattr(threads, "LOOKS", threads.Threads(1))
    asyncio.run(asyncio.sleep(0))  # which lets go of a loop that another test has left
    rendering.close()
    best_ways._kept.clear()
    yield World(home, folder, store)
    best_ways._kept.clear()


def outcome(work: Callable[[World], None], world: World) -> str:
    try:
        work(world)
    except LabError as error:  # as handlers and routes do
        return sentence(error)
    return ""


@pytest.mark.parametrize(("work", "limit"), CASES)
def test_all_is_given_back_and_the_next_one_works(
    work: Callable[[World], None], limit: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.held()
    with monkeypatch.context() as patch:
        if limit == THREADS:
            patch.setattr(threading.Thread, "start", _no_thread)
        else:
            patch.setattr(subprocess, "_fork_exec", _no_process)
        assert outcome(work, world) == NO_MORE
        assert world.held() == before
        assert outcome(work, world) == NO_MORE
        assert world.held() == before
    assert outcome(work, world) != NO_MORE


# Whoever starts a process or a thread. What it counts, takes or makes before is given back where that raises,
# as the cases above show; the others hold nothing then but what the end of their own process gives back, or a
# lock that they close in any case.
KNOWN = {
    "pipeline/evaluation/checker.py": {"_start"},
    "pipeline/exports/chat/chat_processes.py": {"_start"},
    "pipeline/exports/row_view.py": {"_taken"},
    "pipeline/inputs/data/formats/convert.py": {"_answer"},
    "pipeline/inputs/data/hub/fetching_rows.py": {"_fetching"},
    "pipeline/inputs/data/lengths.py": {"_ask", "_start"},
    "pipeline/inputs/prompts/rendering.py": {"__init__"},
    "pipeline/passes/finetune/further.py": {"__init__"},
    "pipeline/runs/check_pool.py": {"__init__"},
    "pipeline/runs/data/data_card.py": {"_apart"},
    "pipeline/runs/preflight/calibration.py": {"_start"},
    "pipeline/runs/pulls.py": {"_start"},
    "pipeline/runs/voting/judging.py": {"start"},
    "pipeline/system/checksums.py": {"begin"},
    "pipeline/worker/ahead/warm.py": {"__init__"},
    "pipeline/worker/loop.py": {"_spawn", "ensure"},
    "pipeline/worker/probe.py": {"start"},
    "pipeline/worker/webhook.py": {"tell"},
    "webapp/routes/best_ways.py": {"of"},
    "webapp/servers.py": {"start"},
    "webapp/ui/check_turns.py": {"steps"},
}


def starting(source: str) -> set[str]:
    """Functions that start a process or a thread."""
    return {
        made.name
        for made in ast.walk(ast.parse(source))
        if isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef)
        for call in ast.walk(made)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func)
        in {f"own_process.{name}" for name in ("start", "start_group", "start_thread", "converse")}
    }


def test_whoever_starts_something_is_known_here() -> None:
    """One more needs a look at what it holds when that raises, and a case if it holds anything."""
    assert starting("def a():\n    own_process.start_group([], {})") == {"a"}
    paths = [path for top in ("pipeline", "webapp") for path in (settings.ROOT / top).rglob("*.py")]
    found = {
        path.relative_to(settings.ROOT).as_posix(): names
        for path in paths
        if (names := starting(path.read_text("utf-8")))
    }
    assert found == KNOWN
