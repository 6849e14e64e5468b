"""Models that take long to load, or never do: whoever asks others does not wait for them again and again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.exports.chat import chat_processes
from pipeline.exports.chat.sources import Source

LATE = "The model of {} did not load within {} seconds. It can be tried again in 5 minutes."


class Model:
    """A process that loads a model, without one: it has loaded when `loads` is called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stdout = asyncio.StreamReader()
        self.returncode: int | None = None

    def loads(self) -> None:
        self.stdout.feed_data(b'{"ready": true}\n')

    def kill(self) -> None:
        if self.returncode is None:
            self.returncode = -9
            self.stdout.feed_eof()

    async def wait(self) -> int | None:
        return self.returncode


class Machine:
    """Its models, in the order in which they were started; those whose name has `slow` never load."""

    def __init__(self) -> None:
        self.started: list[Model] = []
        self.most = 0

    async def converse(self, words: list[str], *_given: Any, **_options: Any) -> Model:
        model = Model(words[2])
        self.started.append(model)
        self.most = max(self.most, sum(model.returncode is None for model in self.started))
        if "slow" not in model.name:
            model.loads()
        return model

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.started]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Whatever has not loaded when it is first looked at is slow, and never given up."""
    made = Machine()
    monkeypatch.setattr(chat_processes.own_process, "converse", made.converse)
    for name, value in {"_servers": {}, "_failed": {}, "_slow": {}, "_loading": set()}.items():
        monkeypatch.setattr(chat_processes, name, value, raising=False)
    for name in ("_starting", "_starting_slowly"):
        monkeypatch.setattr(chat_processes, name, asyncio.Lock(), raising=False)
    monkeypatch.setattr(chat_processes, "SLOW_SECONDS", 0.0, raising=False)
    monkeypatch.setattr(chat_processes, "START_SECONDS", 1e6)
    return made


def source(home: Path, name: str) -> Source:
    return Source(name, home / name, None, False)


async def settled() -> None:
    """Let all tasks come to where they wait."""
    for _ in range(100):
        await asyncio.sleep(0)


def run(scenario: Any) -> None:
    async def whole() -> None:
        try:
            await asyncio.wait_for(scenario, 20)
        finally:
            await chat_processes.shutdown()

    asyncio.run(whole())


def test_a_model_that_loads_in_seconds_does_not_wait_for_those_that_never_load(
    tmp_path: Path, machine: Machine
) -> None:
    slow = [source(tmp_path, f"slow{number}") for number in range(5)]

    async def scenario() -> None:
        asked = [asyncio.create_task(chat_processes.load(tmp_path, one)) for one in slow]
        await asyncio.sleep(0)
        await chat_processes.load(tmp_path, source(tmp_path, "good"))
        await settled()
        assert machine.names == [*(one.name for one in slow), "good"]
        again = [asyncio.create_task(chat_processes.load(tmp_path, one)) for one in slow]
        await settled()
        await chat_processes.load(tmp_path, source(tmp_path, "other"))
        assert machine.names[6:] == ["other"], "those that are known as slow take nobody's turn"
        assert not any(task.done() for task in (*asked, *again))
        for task in (*asked, *again):
            task.cancel()
        await asyncio.wait([*asked, *again])
        assert not chat_processes._starting.locked()
        assert not chat_processes._starting_slowly.locked()

    run(scenario())
    assert machine.most == chat_processes.MOST_PROCESSES
    assert all(model.returncode is not None for model in machine.started)


def test_slow_models_load_one_after_the_other_and_answer_all_who_wait(
    tmp_path: Path, machine: Machine
) -> None:
    async def scenario() -> None:
        names = ("slow0", "slow1", "slow0", "slow1")
        asked = [asyncio.create_task(chat_processes.load(tmp_path, source(tmp_path, name))) for name in names]
        await settled()
        assert [task.done() for task in asked] == [False] * 4
        machine.started[0].loads()
        await settled()
        assert [task.done() for task in asked] == [True, False, True, False]
        assert machine.names == ["slow0", "slow1", "slow1"], "the second one waited, and starts once more"
        machine.started[2].loads()
        await asyncio.gather(*asked)
        assert [model.returncode is None for model in machine.started] == [True, False, True]

    run(scenario())


def test_whoever_waits_for_another_model_can_see_so(tmp_path: Path, machine: Machine) -> None:
    one, two, good = (source(tmp_path, name) for name in ("slow0", "slow1", "good"))

    async def scenario() -> None:
        asked = [asyncio.create_task(chat_processes.load(tmp_path, each)) for each in (one, two)]
        await settled()
        assert [chat_processes.waits(each) for each in (one, two, good)] == [False, True, False]
        machine.started[0].loads()
        await settled()
        machine.started[-1].loads()
        await asked[1]
        assert [chat_processes.waits(each) for each in (one, two)] == [False, False]

    run(scenario())


def test_a_model_that_did_not_load_in_time_is_refused_for_minutes(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by another name, or with an adapter: it is the folder's graph that takes long."""
    monkeypatch.setattr(chat_processes, "START_SECONDS", 0.0)
    late = source(tmp_path, "slow")
    other = Source("the same", late.folder, tmp_path / "x.onnx_adapter", False)

    async def scenario() -> None:
        for one in (late, late, other):
            with pytest.raises(LabError) as raised:
                await chat_processes.load(tmp_path, one)
            assert str(raised.value) == LATE.format(one.name, 0)
        assert machine.names == ["slow"]
        monkeypatch.setattr(chat_processes, "START_SECONDS", 1e6)
        monkeypatch.setitem(chat_processes._slow, late.folder, 0.0)  # the minutes are over
        task = asyncio.create_task(chat_processes.load(tmp_path, late))
        await settled()
        machine.started[1].loads()
        await task

    run(scenario())


def test_a_model_that_was_slow_once_is_among_the_others_when_it_loads_in_seconds(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = source(tmp_path, "good")
    monkeypatch.setattr(chat_processes, "SLOW_SECONDS", 1e6)
    chat_processes._slow[good.folder] = 0.0
    run(chat_processes.load(tmp_path, good))
    assert chat_processes._slow == {}


def test_only_so_many_slow_folders_are_remembered(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_processes, "MOST_SLOW", 2)
    for name in "abac":
        chat_processes._remember_slow(source(tmp_path, name))
    assert [folder.name for folder in chat_processes._slow] == ["a", "c"]
