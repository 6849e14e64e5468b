"""Models that are kept loaded, and how those who ask much make room for others."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.exports.chat import chat_client, chat_processes, sources
from pipeline.exports.chat.sources import Source
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import files
from tests.helpers.inference import pieces
from tests.helpers.lab import processes, until
from tests.helpers.planted import plant


def test_only_so_many_models_are_kept_loaded(
    home: Path, store: Store, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_processes, "MOST_PROCESSES", 1)
    second = home / "artifacts" / "second"
    second.mkdir()
    other = store.get(plant(store, "other"))
    monkeypatch.setattr(
        Run, "artifact", lambda run, kind: str(second) if run.id == other.id else str(second.parent)
    )

    async def one_then_the_other() -> int:
        await pieces(home, finished, "a")
        await pieces(home, other, "a")
        running = len(processes(home))
        await chat_processes.shutdown()
        return running

    assert asyncio.run(one_then_the_other()) == 1


def test_what_models_that_do_not_load_write_has_an_end(
    home: Path, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LARGEST_LOG", 10_000)
    process("print('x' * 9_000, file=sys.stderr)\nsay(error='It does not load.')")
    for _ in range(4):
        with pytest.raises(LabError, match="does not load"):
            asyncio.run(chat_processes.load(home, Source("a", home, None, False)))
    assert 9_000 < (home / "inference.log").stat().st_size < 20_000


@pytest.mark.parametrize(
    "start",
    ["say(ready=True)", "say(error='It does not load.')", "say(ready=True); os._exit(1)", "signal.pause()"],
)
def test_a_process_that_is_ended_leaves_no_copy_of_an_adapter(
    home: Path, process: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """It has no time to remove that, however it ends, and one may have gigabytes."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    copied = (
        "open(os.environ['TMPDIR'] + '/adapter', 'w').close(); open(os.environ['OLIVE_LAB_HOME'] + '/c', 'w')"
    )
    process(f"{copied}; {start}")

    async def load_and_leave() -> None:
        loading = asyncio.create_task(chat_processes.load(home, Source("a", home, None, False)))
        while not (home / "c").exists():
            await asyncio.sleep(0.01)
        assert len([*tmp_path.glob("temporary/*/adapter")]) == 1 or loading.done()
        if "pause" in start:
            loading.cancel()
        await asyncio.wait([loading])
        await chat_processes.shutdown()

    asyncio.run(load_and_leave())
    assert [*(tmp_path / "temporary").iterdir()] == []


def test_a_loaded_model_answers_while_another_loads(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    process(
        "if 'slow' in sys.argv:\n"
        "    open(os.environ['OLIVE_LAB_HOME'] + '/loading', 'w')\n"
        "    signal.pause()\n"
        "say(ready=True)"
    )

    async def scenario() -> list[int]:
        await pieces(home, finished, "a")
        slow = asyncio.create_task(anext(chat_client.stream(home, Source("slow", home, None, False), "a")))
        while not (home / "loading").exists():
            await asyncio.sleep(0.01)
        answer = await asyncio.wait_for(pieces(home, finished, "b"), 60)
        await asyncio.wait_for(chat_processes.release_idle(-1), 60)
        kept = len(chat_processes._servers)
        slow.cancel()
        await asyncio.wait([slow])
        return [len(answer), kept]

    assert asyncio.run(scenario()) == [4, 0]
    until(lambda: not processes(home), "the end of the processes")


def test_room_is_made_of_those_that_answer_nobody(
    home: Path, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_processes, "OLD_SECONDS", 1e9)
    monkeypatch.setattr(chat_processes, "TURN_SECONDS", 1e9)

    async def scenario() -> None:
        answering = [chat_client.stream(home, Source(name, home, None, False), "wait") for name in "ab"]
        for stream in answering:
            await anext(stream)
        third = asyncio.create_task(pieces(home, finished, "a"))
        while not chat_processes._starting.locked():
            await asyncio.sleep(0)
        assert not third.done()
        await answering.pop().aclose()
        assert len(await third) == 4
        assert [key.name for key in chat_processes._servers] == ["a", f"run {finished.id}"]
        await answering.pop().aclose()
        await chat_processes.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_model_asked_too_much_ends_the_oldest_answer_once_it_is_old(
    home: Path, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "MOST_ASKED", 2)
    monkeypatch.setattr(chat_processes, "OLD_SECONDS", 1e9)
    source = sources.of_run(finished)

    async def scenario() -> None:
        answering = [chat_client.stream(home, source, "wait") for _ in range(2)]
        for stream in answering:
            await anext(stream)
        with pytest.raises(LabError, match="Many others are being answered"):
            await pieces(home, finished, "a")
        monkeypatch.setattr(chat_processes, "OLD_SECONDS", 0)
        assert len(await pieces(home, finished, "a")) == 4
        with pytest.raises(LabError, match="Others wait to be answered"):
            await anext(answering[0])
        (kept,) = chat_processes._servers[source].answers.values()
        assert kept.answer.empty(), "the newer one still runs"
        while not (home / "canceled").exists():  # the process sees it, too
            await asyncio.sleep(0.01)
        await answering[1].aclose()
        await chat_processes.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("limit", ["OLD_SECONDS", "TURN_SECONDS"])
def test_a_model_that_has_had_its_time_makes_room_for_another_model(
    home: Path, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """So those who ask one again and again do not keep others away."""
    monkeypatch.setattr(chat_processes, "OLD_SECONDS", 1e9)
    monkeypatch.setattr(chat_processes, "TURN_SECONDS", 1e9)
    monkeypatch.setattr(chat_processes, "MOST_PROCESSES", 1)

    async def scenario() -> None:
        stream = chat_client.stream(home, Source("a", home, None, False), "wait")
        await anext(stream)
        monkeypatch.setattr(chat_processes, limit, 0)
        assert len(await pieces(home, finished, "a")) == 4
        with pytest.raises(LabError, match="Others wait to be answered"):
            await anext(stream)
        await chat_processes.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_process_nobody_asks_is_ended(home: Path, finished: Run, process: Callable[[str], None]) -> None:
    async def scenario() -> list[int]:
        await pieces(home, finished, "Hi")
        await chat_processes.release_idle(3600)
        kept = len(chat_processes._servers)
        await chat_processes.release_idle(-1)
        return [kept, len(chat_processes._servers)]

    assert asyncio.run(scenario()) == [1, 0]


def test_those_that_wait_for_a_model_that_does_not_load_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would load it once more, and whoever asks another model would wait for all of them."""
    monkeypatch.setattr(chat_processes, "_servers", {})
    monkeypatch.setattr(chat_processes, "_failed", {})
    monkeypatch.setattr(chat_processes, "_starting", asyncio.Lock())
    loads = []

    async def start(home: Path, source: Source, turn: Any) -> Any:
        loads.append(source.name)
        await asyncio.sleep(0.01)
        raise LabError("It does not load.")

    async def ask() -> list[Any]:
        asked = [chat_processes.server(tmp_path, Source("a", tmp_path, None, False)) for _ in range(3)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(LabError):  # who comes later has it tried again
            await chat_processes.server(tmp_path, Source("a", tmp_path, None, False))
        return told

    monkeypatch.setattr(chat_processes, "_start", start)
    assert [str(error) for error in asyncio.run(ask())] == ["It does not load."] * 3
    assert loads == ["a", "a"]
