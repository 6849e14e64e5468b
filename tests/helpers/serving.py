"""An endpoint as clients see it; its model's process is a small script."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.exports.chat import chat_processes
from pipeline.exports.chat.sources import Source
from pipeline.serving import endpoint, listening
from pipeline.serving.desk import Desk
from pipeline.serving.offer import Offer
from pipeline.serving.server import _Server

TOKEN = "the-token-of-this-test"
SCRIPT = """#!{python}
import json, os, signal, sys
signal.alarm(200)
def say(**answer):
    print(json.dumps(answer), flush=True)
def note(name, text):
    with open(os.environ["OLIVE_LAB_HOME"] + "/" + name, "a") as file:
        file.write(text + "\\n")
say(ready=True)
for line in sys.stdin:
    request = json.loads(line)
    if "cancel" in request:
        note("canceled", str(request["cancel"]))
        continue
    n, word = request.pop("id"), request["messages"][-1]["content"]
    note("asked", word)
    if word == "die":
        os._exit(1)
    if word == "long":
        say(id=n, error="The prompt has 9 tokens; this model reads 3, answer included.", refused=True)
        continue
    if word == "broken":
        say(id=n, error="It broke; try again.")
        continue
    say(id=n, prompt_tokens=5)
    if word == "halfway":
        say(id=n, text="So ")
        say(id=n, error="It broke; try again.")
        continue
    say(id=n, text=json.dumps(request))
    if word == "wait":
        continue
    say(id=n, text="!")
    say(id=n, done=True, tokens=2, cut=word == "cut")
    say(id=n, end=True)
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the script take the place of the model's process."""
    script = folder / "process"
    script.write_text(SCRIPT.format(python=sys.executable))
    script.chmod(0o700)
    monkeypatch.setattr("pipeline.settings.python", lambda: str(script))
    monkeypatch.setattr(chat_processes, "_servers", {})
    monkeypatch.setattr(chat_processes, "_starting", asyncio.Lock())


@contextmanager
def served(home: Path) -> Iterator[tuple[str, _Server]]:
    """The address of a running endpoint with one adapter, `town`, and its server."""
    source = Source("run x", home, None, False, (home / "town.onnx_adapter",))
    desk = Desk(home, Offer(source, 1))
    listener = listening.listen("127.0.0.1", 0)
    server = _Server(desk, endpoint.create(desk, TOKEN, ["lab.example.com"]))

    async def serve() -> None:
        try:
            await desk.load()
            await server.serve([listener])
        finally:
            await chat_processes.shutdown()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield listening.address("127.0.0.1", listener), server
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()
