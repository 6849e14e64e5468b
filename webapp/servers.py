"""Models that people serve from the page, each by a process of its own: `python -m pipeline serve`.

A browser chooses a long random name for what it serves. Whoever knows the name sees the address and the
token, so nobody lists the names. A server ends with the page's process, and once nobody uses it: no program
asks it and its page is not opened. Where all places are taken, anybody may stop one, chosen by its label.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports.chat.sources import Source
from pipeline.system import own_process

NAME = re.compile(r"[A-Za-z0-9_-]{22}")
MOST = 2  # models that are served at a time: each is in memory
MOST_ENDED = 20  # servers that have ended, of which the reason is kept
STOP_SECONDS = 6.0  # for answers to end
IDLE_SECONDS = 1800.0  # without a question or a page that shows it, after which a server ends
FULL = f"{MOST} models are served already; choose one below that nobody needs and stop it, then start yours."
IDLE = f"It ended after {IDLE_SECONDS / 60:.0f} minutes in which nobody used it; start it again."
CLEARED = "Somebody stopped it to serve another model; start it again."
GONE = "It is not served any more; start yours."
ENDED = "The server has ended, perhaps because memory ran out; start it again."
NO_NAME = "This page has no name for what it serves; reload it."


class Full(LabError):
    """All places are taken."""


@dataclass
class Served:
    """A model that is served, or was: `url` once it answers, `error` once it has ended."""

    label: str
    token: str
    process: subprocess.Popen[bytes]
    url: str = ""
    models: list[str] = field(default_factory=list)
    note: str = ""
    error: str = ""
    why: str = ""  # it is being stopped
    id: str = field(default_factory=lambda: secrets.token_hex(8))  # which others may know
    answering: int = 0  # questions at this moment
    used: float = field(default_factory=time.monotonic)  # when a question or a page was last here
    started: float = field(default_factory=time.monotonic)

    def idle(self) -> float:
        """Seconds since it was used."""
        return 0.0 if self.answering else time.monotonic() - self.used

    def read(self) -> None:
        """Take what the process says until it ends."""
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):  # its pipe is closed when it is stopped
            for line in self.process.stdout:
                self._take(json.loads(line))
        own_process.end(self.process)
        self._ended()

    def _take(self, said: dict[str, Any]) -> None:
        self.note = said.get("note", self.note)
        self.error = said.get("error", self.error)
        self.models = said.get("models", self.models)
        if "answering" in said:
            self.answering, self.used = said["answering"], time.monotonic()
        self.url = said.get("url", self.url)

    def stop(self, why: str = "") -> None:
        """Ask it to end, and end it if it does not. Its page gets `why`."""
        assert self.process.stdin is not None
        self.why = why
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        own_process.kill(self.process)
        self._ended()

    def _ended(self) -> None:
        self.url, self.error = "", self.error or self.why or ENDED


_served: dict[str, Served] = {}
_changing = threading.Lock()


def of(name: str) -> Served | None:
    """What a browser serves, or has served; None for nothing, and for a name that is none."""
    found = _served.get(name) if NAME.fullmatch(name) else None
    if found is not None:
        found.used = time.monotonic()
    return found


def running() -> list[Served]:
    """What is served now, by anybody."""
    return [one for one in list(_served.values()) if not one.error]


def start(home: Path, name: str, source: Source) -> Served:
    """Serve a model under a browser's name.

    Raises Full if too many are served, LabError if this browser serves one already, or no process
    or thread can be started.
    """
    if not NAME.fullmatch(name):
        raise InputError(NO_NAME)
    with _changing:
        there = _served.get(name)
        if there is not None and not there.error:
            raise LabError(f"You serve {there.label} already; stop it first.")
        if len(running()) >= MOST:
            raise Full(FULL)
        ended = [key for key, one in _served.items() if one.error]
        for key in ended[: len(ended) - MOST_ENDED]:
            del _served[key]
        token = secrets.token_urlsafe(32)
        elsewhere = source.adapter and source.adapter.parent != source.folder
        more = ["--adapter", str(source.adapter)] if elsewhere else []
        words = ["-m", "pipeline", "serve", str(source.folder), *more, "--port", "0", "--attended"]
        environment = settings.child_environment(OLIVE_LAB_HOME=str(home), OLIVE_LAB_SERVE_TOKEN=token)
        made = Served(source.name, token, own_process.start_group(words, environment))
        try:
            own_process.start_thread(threading.Thread(target=made.read, daemon=True))
        except BaseException:
            own_process.end(made.process)
            raise
        _served[name] = made
    return made


def stop(name: str) -> Served | None:
    """Stop what a browser serves, and forget it; None if there is nothing."""
    with _changing:
        found = _served.pop(name, None) if NAME.fullmatch(name) else None
    if found is not None and not found.error:
        found.stop()
    return found


def clear(chosen: str) -> Served:
    """Stop what anybody serves, by its `id`. Raises InputError if it is not served."""
    found = next((one for one in running() if one.id == chosen), None)
    if found is None:
        raise InputError(GONE)
    found.stop(CLEARED)
    return found


def end_idle() -> None:
    """Stop what nobody has used for a while."""
    for one in running():
        if one.idle() > IDLE_SECONDS:
            one.stop(IDLE)
