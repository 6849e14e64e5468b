"""The page in a process of its own, asked as a browser asks it: for `streaming --page` and `prompt_file`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from gradio_client.utils import apply_diff  # type: ignore[import-untyped]

from pipeline import settings
from pipeline.exports.bound import binding
from pipeline.exports.chat import sources
from pipeline.exports.chat.sources import SIDES, Source
from pipeline.exports.verifying import adapter_files
from pipeline.stages.costs.machine import FILE
from pipeline.system import checksums, files, locks
from pipeline.worker.loop import WORKER_LOCK

VERSION = "1"
START_SECONDS = 180.0
MOST_SECONDS = 600.0
INPUTS = 10  # of the event that asks
COLUMNS = 4


@dataclass(frozen=True)
class Answered:
    """An answer as it arrived: seconds to its first text and from there to its end, tokens, and its text.

    `processor` is what the page's own process took of it, in seconds, until its stream of events had ended;
    `messages` is how many of these there were. Both don't depend on what else the machine does.
    """

    first: float
    rest: float
    tokens: int
    text: str
    processor: float
    messages: int


def planted(source: Source, home: Path) -> list[tuple[Source, str]]:
    """Each side of an export as a model of the home that answers on this side alone, with the side.

    The page asks both sides of a model at once, and a bare loop one after the other.
    """
    found = []
    for side in source.sides:
        folder = home / "registry" / side / VERSION
        folder.parent.mkdir(parents=True)
        if side == "adapter" and source.adapter is not None:
            binding.bind(source.folder, source.adapter, folder)
        else:
            without = shutil.ignore_patterns(
                *(path.name for path in adapter_files.adapters_of(source.folder))
            )
            shutil.copytree(source.folder, folder, ignore=without)
            checksums.write(folder)
        facts = {"run": "benchmark", "created": time.time(), "description": "", "bytes": files.size(folder)}
        files.write_whole(folder / "published.json", facts)
        found.append((sources.of_folder(folder, side), side))
    return found


@contextmanager
def served(home: Path) -> Iterator[Page]:
    """The page over a home, until the block is left. No worker of it begins: that would outlive the page."""
    (home / FILE).write_text("{}", "utf-8")  # else this machine is measured meanwhile
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    lock = locks.take(home / WORKER_LOCK)
    words = [sys.executable, "-m", "webapp", "--port", str(port)]
    environment = settings.child_environment(OLIVE_LAB_HOME=str(home))
    with (home / "page.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=settings.ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield Page.opened(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait()
        if lock is not None:
            os.close(lock)


@dataclass(frozen=True)
class Event:
    """An event of the page: its number, and that of the component that begins it."""

    number: int
    trigger: int


@dataclass(frozen=True)
class Page:
    """An open page: its process, its address, and what it is made of."""

    process: psutil.Process
    url: str
    config: dict[str, Any]
    session: str

    @classmethod
    def opened(cls, url: str, process: subprocess.Popen[bytes]) -> Page:
        """Open it once it answers. Raises RuntimeError if it ends, TimeoutError."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RuntimeError(f"the page has ended (code {process.returncode}); its log says why")
            try:
                with urllib.request.urlopen(f"{url}/config", timeout=START_SECONDS) as reply:
                    config = json.load(reply)
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise TimeoutError("the page does not answer")
        return cls(psutil.Process(process.pid), url, config, secrets.token_hex(5))

    def event(self, named: str, kind: str, inputs: int) -> Event:
        """The event of a component of this name that has so many inputs."""
        trigger = next(one["id"] for one in self.config["components"] if one["props"].get("elem_id") == named)
        return next(
            Event(one["id"], trigger)
            for one in self.config["dependencies"]
            if [trigger, kind] in [list(target) for target in one["targets"]] and len(one["inputs"]) == inputs
        )

    def call(self, event: Event, data: list[Any]) -> Iterator[list[Any]]:
        """Carry out an event, and what its outputs are after each message of the stream, until its end."""
        call = {"data": data, "event_data": None, "fn_index": event.number, "trigger_id": event.trigger}
        self._join({**call, "session_hash": self.session})
        yield from self._shown()

    def ask(self, side: str, prompt: str, tokens: int) -> Answered:
        """Ask a model of `planted`; what its column shows, and when. Raises RuntimeError for a refusal."""
        talk = secrets.token_urlsafe(16)
        data = [f"registry/{side}/{VERSION}", [], talk, prompt, tokens, 0, 0, "", False, ""]
        at, event = SIDES.index(side), self.event("compare-go", "click", INPUTS)
        before = self._processor()
        began = time.perf_counter()
        first = ended = 0.0
        shown: list[Any] = []
        messages = 0
        for shown in self.call(event, data):
            messages += 1
            if shown[at] and not first:
                first = time.perf_counter()
            if shown[COLUMNS + at] and not ended:
                ended = time.perf_counter()
        if not ended:
            raise RuntimeError(
                f"the page has not answered: {shown[3 * COLUMNS] if shown else 'nothing came'}"
            )
        facts = {row[0]: row[1] for row in shown[COLUMNS + at]}
        tokens, took = int(facts["Tokens"].split()[0]), self._processor() - before
        return Answered(first - began, ended - first, tokens, str(shown[at]), took, messages)

    def _processor(self) -> float:
        """Seconds of processor that the page's own process has taken; not those that it started."""
        taken = self.process.cpu_times()
        return float(taken.user + taken.system)

    def _join(self, call: dict[str, Any]) -> None:
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/gradio_api/queue/join", json.dumps(call).encode(), kind)
        with urllib.request.urlopen(request, timeout=MOST_SECONDS) as reply:
            reply.read()

    def _shown(self) -> Iterator[list[Any]]:
        """What the outputs are after each message of the session's stream of events, until its end."""
        told: list[Any] = []
        address = f"{self.url}/gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(address, timeout=MOST_SECONDS) as stream:
            for line in stream:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line.removeprefix(b"data:"))
                if message["msg"] == "process_generating":
                    came = message["output"]["data"]
                    told = [apply_diff(*pair) for pair in zip(told, came, strict=True)] if told else came
                    yield told
