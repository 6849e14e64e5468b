"""Models that people serve from the page, each by a process of its own: `python -m pipeline serve`.

A browser chooses a long random name for what it serves. Whoever knows the name sees the address and the
token, and may stop it, so nobody lists them. A server ends with the page's process.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports.chat_client import Source
from pipeline.system import own_process

NAME = re.compile(r"[A-Za-z0-9_-]{22}")
MOST = 2  # models that are served at a time: each is in memory
MOST_ENDED = 20  # servers that have ended, of which the reason is kept
STOP_SECONDS = 6.0  # for answers to end
FULL = f"{MOST} models are served already; stop one of them, or try again later."
ENDED = "The server has ended, perhaps because memory ran out; start it again."
NO_NAME = "This page has no name for what it serves; reload it."


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

    def read(self) -> None:
        """Take what the process says until it ends."""
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):  # its pipe is closed when it is stopped
            for line in self.process.stdout:
                self._take(json.loads(line))
        own_process.end(self.process)
        self.url, self.error = "", self.error or ENDED

    def _take(self, said: dict[str, Any]) -> None:
        self.note = said.get("note", self.note)
        self.error = said.get("error", self.error)
        self.models = said.get("models", self.models)
        self.url = said.get("url", self.url)

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        own_process.kill(self.process)


_served: dict[str, Served] = {}
_changing = threading.Lock()


def of(name: str) -> Served | None:
    """What a browser serves, or has served; None for nothing, and for a name that is none."""
    return _served.get(name) if NAME.fullmatch(name) else None


def start(home: Path, name: str, source: Source) -> Served:
    """Serve a model under a browser's name. Raises LabError if that serves one already, or too many do."""
    if not NAME.fullmatch(name):
        raise InputError(NO_NAME)
    with _changing:
        there = _served.get(name)
        if there is not None and not there.error:
            raise LabError(f"You serve {there.label} already; stop it first.")
        if sum(not one.error for one in _served.values()) >= MOST:
            raise LabError(FULL)
        ended = [key for key, one in _served.items() if one.error]
        for key in ended[: len(ended) - MOST_ENDED]:
            del _served[key]
        token = secrets.token_urlsafe(32)
        elsewhere = source.adapter and source.adapter.parent != source.folder
        more = ["--adapter", str(source.adapter)] if elsewhere else []
        words = ["-m", "pipeline", "serve", str(source.folder), *more, "--port", "0", "--attended"]
        environment = settings.child_environment(OLIVE_LAB_HOME=str(home), OLIVE_LAB_SERVE_TOKEN=token)
        made = Served(source.name, token, own_process.start_group(words, environment))
        _served[name] = made
    threading.Thread(target=made.read, daemon=True).start()
    return made


def stop(name: str) -> Served | None:
    """Stop what a browser serves, and forget it; None if there is nothing."""
    with _changing:
        found = _served.pop(name, None) if NAME.fullmatch(name) else None
    if found is not None and not found.error:
        found.stop()
    return found
