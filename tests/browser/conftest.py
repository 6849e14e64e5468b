"""The app as a process over a home of the test's own, and Debian's chromium to look at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.runs.data import data_card
from pipeline.stages.costs.machine import FILE
from pipeline.store import Store
from pipeline.system import locks
from tests.helpers.lab import killed, until

WAIT_MS = 60_000
SETTLE_MS = 1500
LOOK_MS = 50
POLLS = ("/live?", "/activity.json", "/queue.json")  # what a page asks again and again
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class App:
    """The app, its store, and how to open a page of it."""

    home: Path
    port: int
    browser: Any
    process: subprocess.Popen[bytes]
    outside: list[str] = field(default_factory=list)  # requests to any other host
    errors: list[str] = field(default_factory=list)  # uncaught errors of pages
    asked: set[Any] = field(default_factory=set)  # what pages have asked for once and wait for
    last: float = 0.0  # when, by the monotonic clock, a page has last asked or been answered

    @property
    def store(self) -> Store:
        return Store(self.home)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def open(self, query: str = "", dark: bool = False, width: int = 1280, **options: Any) -> Any:
        """A page of a browser of its own, so that nothing is shared with another page."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            **options,
        )
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("request", self._note)
        page.on("requestfinished", self._forget)
        page.on("requestfailed", self._forget)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.url + query)
        return page

    def form(self, query: str = "?tab=lab", **options: Any) -> Any:
        """A page with all of the Lab's form unfolded."""
        page = self.open(query, **options)
        self.unfold(page)
        return page

    def unfold(self, page: Any) -> None:
        """Show all of the Lab's form."""
        for name in ("All options", "Recipe and command"):
            page.get_by_role("button", name=name).click()

    def settle(self, page: Any) -> None:
        """Wait until pages have asked for nothing new for a moment, and all that they asked is answered."""
        began = self.last = time.monotonic()
        while time.monotonic() < began + WAIT_MS / 1000:
            page.wait_for_timeout(LOOK_MS)  # which is when questions and answers are noted
            if not self.asked and time.monotonic() > self.last + SETTLE_MS / 1000:
                return
        raise AssertionError(f"the page does not come to rest: {self.asked}")

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.outside.append(request.url)
        if request.url.startswith(self.url) and not any(poll in request.url for poll in POLLS):
            self.last = time.monotonic()
            self.asked.add(request)

    def _forget(self, request: Any) -> None:
        if request in self.asked:
            self.last = time.monotonic()
            self.asked.discard(request)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def start(self) -> None:
        self.process = serve(self.home, self.port)


def serve(home: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the app and wait until it answers, which is a while after it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "webapp", "--port", str(port)],
        cwd=settings.ROOT,
        env=settings.child_environment(OLIVE_LAB_HOME=str(home)),
    )

    def answers() -> bool:
        assert process.poll() is None, "the app has ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/queue.json", timeout=60) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    until(answers, "the first answer", 180)
    return process


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """One for this folder: while Playwright runs, no other test can use `asyncio.run`."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)

    executable = CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium")
    assert executable, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def served(home: Path, browser: Any, works: bool = False) -> Iterator[App]:
    """An app over an empty home. Whoever asks for it holds the worker's lock: nothing runs for real, unless
    it `works`."""
    lock = None if works else locks.take(home / "worker.lock")
    assert works or lock is not None
    (home / FILE).write_text("{}")  # else this machine is measured meanwhile
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    made = App(home, port, browser, serve(home, port))
    yield made
    made.stop()
    if lock is not None:
        os.close(lock)


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[App]:
    """One app for all that a worker is given: starting one takes as long as most tests."""
    home = tmp_path_factory.mktemp("shared") / "home"
    home.mkdir(mode=0o700)
    with served(home, browser) as made:
        yield made
    until(lambda: not killed(home), "the end of all processes")


@pytest.fixture
def app(shared: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """The shared app, over a home that is empty again."""
    monkeypatch.setenv("OLIVE_LAB_HOME", str(shared.home))
    empty(shared.home)
    with looked_at(shared):
        yield shared


@pytest.fixture
def own_app(home: Path, browser: Any) -> Iterator[App]:
    """An app that starts in the environment of its test."""
    with served(home, browser) as made, looked_at(made):
        yield made


@pytest.fixture
def working_app(home: Path, browser: Any) -> Iterator[App]:
    """An app whose runs run."""
    with served(home, browser, works=True) as made, looked_at(made):
        yield made


@contextlib.contextmanager
def looked_at(app: App) -> Iterator[None]:
    """Pages of a test: they are closed afterwards, and none has failed or asked anybody else."""
    app.outside.clear()
    app.errors.clear()
    app.asked.clear()
    yield
    for context in app.browser.contexts:
        context.close()
    assert app.outside == []
    assert app.errors == []


KEPT = (
    "runs",
    # Each page has the sample read by the starter's tokenizer: two processes of a second and more.
    "models",
    ".tokenizers",
    "cards",
    "worker.lock",
    "webapp.lock",
    "runs.lock",
    "runs.db",
    "runs.db-wal",
    "runs.db-shm",
    ".gradio-uploads",
    FILE,
)


def empty(home: Path) -> None:
    """Take out what the test before has left, without a word to the app."""
    with Store(home)._write() as db:
        for table in ("stages", "runs", "facts"):
            db.execute(f"DELETE FROM {table}")
    for folder in ("runs", "models", "."):
        for path in (home / folder).glob("*"):
            if path.name not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    data_card.tidy(home)  # those of the test's own data


@pytest.fixture
def shot() -> Any:
    """Save a picture of a page where OLIVE_LAB_SCREENSHOTS says, if it does."""
    folder = os.environ.get("OLIVE_LAB_SCREENSHOTS")

    def save(page: Any, name: str) -> None:
        if folder:
            page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    return save
