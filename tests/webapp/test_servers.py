"""Models served from the page: real processes, with a small export that really answers."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports.chat import sources
from pipeline.exports.chat.sources import Source
from pipeline.store.run import Run
from tests.helpers import exports
from tests.helpers.lab import processes, until
from webapp import servers
from webapp.tabs.serving import panel

ANN, BOB, EVE = "a" * 22, "b" * 22, "e" * 22


@pytest.fixture
def source(export: Path) -> Source:
    return sources.of_folder(export, "model x")


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    for name in list(servers._served):
        servers.stop(name)


def steps(model: str | None, name: str) -> list[tuple]:
    async def taken() -> list[tuple]:
        return [step async for step in panel.start(model, name)]

    return asyncio.run(taken())


def test_address_and_token_are_shown_to_whom_it_belongs(home: Path, finished: Run) -> None:
    before, *_, (facts, notice, *_) = steps(finished.id, ANN)
    assert before[:2] == (None, {"text": f"Loading the model of run {finished.id}…"})
    assert notice["kind"] == "good"
    told = dict(facts)
    assert told["Models"] == "base, adapter_weights"
    headers = {"Authorization": f"Bearer {told['Token']}"}
    assert httpx.get(f"{told['Address']}/models", headers=headers).status_code == 200
    assert httpx.get(f"{told['Address']}/models").status_code == 401
    assert panel.look(None, ANN) == (facts, notice)
    for stranger in (BOB, "", "a" * 21, "a" * 22 + "\n"):
        assert panel.look(None, stranger) == (None, panel.NOTHING)
        assert panel.stop(None, stranger) == (None, panel.NOTHING)
    assert [step[:2] for step in steps(finished.id, ANN)] == [
        (None, {"text": f"You serve run {finished.id} already; stop it first.", "kind": "bad"})
    ]
    assert panel.stop(None, ANN) == (None, {"text": f"Stopped serving run {finished.id}."})
    until(lambda: not processes(home), "the end of its processes")
    assert panel.look(None, ANN) == (None, panel.NOTHING)


def test_there_are_only_so_many_and_one_that_failed_makes_room(
    home: Path, source: Source, tmp_path: Path
) -> None:
    (source.folder / exports.ADAPTER).write_bytes(b"no adapter")
    failed = servers.start(home, ANN, source)
    servers.start(home, BOB, source)
    with pytest.raises(LabError, match="2 models are served already; choose one below"):
        servers.start(home, EVE, source)
    until(lambda: failed.error, "the end of the first")
    assert failed.error.startswith("The model could not be loaded: its files in")
    assert panel.look(None, ANN) == (None, {"text": failed.error, "kind": "bad"})
    until(lambda: servers.start(home, EVE, source) if servers.of(ANN).error else None, "room")
    with pytest.raises(InputError, match="no name for what it serves"):
        servers.start(home, "../x", source)
    assert steps(None, ANN)[0][:2] == (None, {"text": "Choose a model first.", "kind": "bad"})


def test_where_all_places_are_taken_anybody_may_stop_one(home: Path, source: Source, finished: Run) -> None:
    left = servers.start(home, ANN, source)
    used = servers.start(home, BOB, source)
    until(lambda: left.url and used.url, "both of them")
    left.used -= 600
    used.answering = 1
    ((_, notice, row, offered),) = steps(finished.id, EVE)
    assert (notice["text"], row["visible"]) == (servers.FULL, True)
    labels = [label for label, _ in offered["choices"]]
    assert re.fullmatch(r"model x, started .* ago, used \d+ min \d\d s ago", labels[0])
    assert labels[1].endswith(", in use")
    told = str((notice, row, offered))
    secrets = (ANN, BOB, left.token, used.token, left.url, used.url)
    assert not any(secret in told for secret in secrets), "a label is all that others see"
    for wrong in (None, "", ANN, left.token, "0" * 16):
        assert panel.clear(wrong)[0]["kind"] == "bad"
    said, hidden, _ = panel.clear(offered["choices"][0][1])
    assert (said["text"], hidden["visible"]) == ("Stopped serving model x; start yours now.", False)
    assert panel.look(None, ANN) == (None, {"text": servers.CLEARED, "kind": "bad"})
    assert servers.running() == [used]
    assert panel.clear(left.id)[0] == {"text": servers.GONE, "kind": "bad"}
    servers.start(home, EVE, source)


def test_one_that_nobody_uses_ends(home: Path, source: Source) -> None:
    asked, left = (servers.start(home, name, source) for name in (ANN, BOB))
    until(lambda: asked.url and left.url, "both of them")

    def age() -> None:
        for one in (asked, left):
            one.used -= servers.IDLE_SECONDS + 1

    age()
    assert servers.of(ANN) is asked, "its page shows it"
    servers.end_idle()
    assert (asked.error, left.error) == ("", servers.IDLE)
    age()
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    headers = {"Authorization": f"Bearer {asked.token}"}
    assert httpx.post(f"{asked.url}/chat/completions", json=body, headers=headers).status_code == 200
    until(lambda: asked.idle() < servers.IDLE_SECONDS and not asked.answering, "word of the question")
    servers.end_idle()
    assert asked.error == "", "a program asks it"
    asked.answering = 1
    age()
    servers.end_idle()
    assert asked.error == "", "it answers just now"
    asked.answering = 0
    servers.end_idle()
    assert asked.error == servers.IDLE
    until(lambda: not processes(home), "the end of its processes")


def test_a_server_ends_with_the_process_that_started_it(home: Path, source: Source) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from pipeline.exports.chat import sources; from webapp import servers\n"
        "made = servers.start(Path(sys.argv[1]), 'a' * 22, sources.of_folder(Path(sys.argv[2]), 'x'))\n"
        "from tests.helpers.lab import until\n"
        "print(until(lambda: made.url, 'its address'), flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(home), str(source.folder)]
    environment = settings.child_environment(OLIVE_LAB_HOME=str(home))
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=settings.ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.kill()
    until(lambda: not processes(home), "the end of the server and its model")
