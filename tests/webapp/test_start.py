"""`python -m webapp` as a process: what stands in its way, what it imports, what it weighs."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs import confined
from pipeline.inputs.models import base_models
from pipeline.publish import check_process
from pipeline.store import Store
from pipeline.system import locks
from tests.helpers import planted
from tests.helpers.lab import killed, open_files, until
from tests.helpers.planted import plant
from webapp import __main__ as main
from webapp.__main__ import _favor_the_page, arguments
from webapp.app import create

HEAVY = (
    "scipy",
    "torchmetrics",
    "jsonschema",
    "rensa",
    "detect_secrets",
    "phonenumbers",
    "stdnum",
    "torch",
    "transformers",
    "peft",
    "olive",
    "onnx",
    "onnxruntime",
    "onnxruntime_genai",
    "plotly",
    "azure",
)


def start(home: Path, *given: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "webapp", *given],
        cwd=settings.ROOT,
        env=settings.child_environment(OLIVE_LAB_HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int, name: str = "127.0.0.1") -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": f"{name}:{port}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_until_the_app_is_there_a_page_says_that_it_is_starting(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked while the app is being made."""
    listener = main.listen("127.0.0.1", 0)
    found = []

    def asked(*_: object, **__: object) -> None:
        connection = http.client.HTTPConnection(*listener.getsockname(), timeout=30)
        connection.request("GET", "/")
        reply = connection.getresponse()
        found.append((reply.status, b"is starting" in reply.read()))
        connection.close()
        raise LabError("asked")

    monkeypatch.setattr("webapp.app.create", asked)
    monkeypatch.setattr(main, "_favor_the_page", lambda: None)  # this process stays as it is
    with listener, pytest.raises(LabError, match="asked"):
        main.serve(listener, arguments([]))
    assert found == [(503, True)]


@pytest.fixture
def served(home):
    """A running app: process, port, seconds to its first answer."""
    port, began = free_port(), time.monotonic()
    process = start(home, "--port", str(port))
    until(lambda: answers(port), "the first answer", 180)
    yield process, port, time.monotonic() - began
    process.kill()
    process.communicate()


def test_a_second_app_is_refused_with_a_sentence(served, home, tmp_path, record_property):
    process, port, seconds = served
    resident = (
        int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    )
    record_property("first_answer_seconds", seconds)
    record_property("resident_mb", resident)
    print(f"first answer after {seconds:.1f} s, {resident:.0f} MB resident")

    other = tmp_path / "other"
    same_port = start(other, "--port", str(port))
    assert same_port.communicate(timeout=120)[1].startswith(
        f"Port {port} of 127.0.0.1 cannot be used (Address already in use)."
    )
    assert same_port.returncode == 2
    assert not other.exists()

    same_home = start(home, "--port", str(free_port()))
    assert "already serves" in same_home.communicate(timeout=120)[1]
    assert same_home.returncode == 2

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    again = start(home, "--port", str(port))
    until(lambda: answers(port), "the answer of the next app", 180)
    again.kill()
    again.communicate()


@pytest.mark.parametrize(
    "ask",
    [
        lambda home: base_models.resolve("slow/model"),
        lambda home: check_process.ask(home, "Azure", "azure", "whoami"),
    ],
    ids=["hub", "Azure"],
)
def test_what_asks_others_for_the_app_ends_with_it(home, tmp_path, monkeypatch, ask):
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/part\nmv {tmp_path}/part {tmp_path}/pid\nexec tail -f /dev/null"
    )
    python.chmod(0o700)
    monkeypatch.setattr(base_models, "ANSWER_SECONDS", 600)
    ends = []

    def asking():
        try:
            ask(home)
        except LabError as error:
            ends.append(error)

    thread = threading.Thread(target=asking)
    with TestClient(create()):
        monkeypatch.setattr(settings, "python", lambda: str(python))  # not of the processes that stand ready
        thread.start()
        until((tmp_path / "pid").exists, "the question")
    thread.join(60)
    ended = not thread.is_alive()
    if not ended:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        thread.join()
    assert ended
    assert len(ends) == 1
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_with_nobody_there_it_sleeps(served):
    """Gradio's queue alone would wake it a thousand times a second."""
    process, *_ = served
    wakes = psutil.Process(process.pid).num_ctx_switches
    before, began = wakes().voluntary, time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    assert (wakes().voluntary - before) / (time.monotonic() - began) < 200


def test_the_worker_outlives_the_app(tmp_path):
    home = tmp_path / "own"
    store = Store(home)
    plant(store, data=str(tmp_path / "gone.jsonl"), model=str(tmp_path / "gone"))
    port = free_port()
    app = start(home, "--port", str(port))
    try:
        until(lambda: answers(port), "the first answer", 180)
        until(lambda: locks.held(home / "worker.lock"), "the worker that the queued run needs")
        app.send_signal(signal.SIGTERM)
        app.communicate(timeout=120)
        assert locks.held(home / "worker.lock")
    finally:
        app.kill()
        app.communicate()
        until(lambda: not killed(home), "the end of all processes")


def test_a_port_that_is_none_is_refused(home):
    process = start(home, "--port", "99999")
    assert "99999" in process.communicate(timeout=120)[1]
    assert process.returncode == 2


def a_newer_one(home: Path) -> None:
    with sqlite3.connect(Store(home).path) as db:
        db.execute("PRAGMA user_version = 99")


SPOILT = {
    "runs cannot be used (File exists)": lambda home: (home / "runs").touch(),
    "unable to open database file": lambda home: (home / "runs.db").mkdir(),
    "another version of Olive Lab": a_newer_one,
    "must be a folder, and no link": lambda home: (home / ".gradio-uploads").touch(),
    "must be a folder, and no link; remove": lambda home: (home / ".gradio-uploads").symlink_to("/"),
    "is a link to itself": lambda home: (home.rmdir(), home.symlink_to(home)),
}


@pytest.mark.parametrize("said", SPOILT)
def test_a_home_that_cannot_be_used_is_refused_before_the_page_is_built(
    tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    SPOILT[said](home)
    monkeypatch.setenv("OLIVE_LAB_HOME", str(home))
    monkeypatch.setattr(settings, "keep_private", lambda: None)
    monkeypatch.setattr(main, "serve", None)
    assert main.run(arguments(["--port", "0"])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("name", ["http://lab.example", "lab.example:7860", "*", ""])
def test_a_name_no_browser_sends_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        arguments(["--allow-host", name])
    assert "write it like lab.example.com" in capsys.readouterr().err


def test_names_may_be_repeated():
    given = arguments(["--allow-host", "a.example", "--allow-host", "b.example"])
    assert given.allow_host == ["a.example", "b.example"]
    assert arguments([]).allow_host == []


def test_a_download_ends_with_its_connection_and_holds_nobody_up(home):
    """Readers that wait, readers that leave, and a file that breaks on the way."""
    port, store = free_port(), Store(home)
    run = planted.finished(store)
    folder = Path(str(store.get(run).artifact("onnx")))
    with (folder / "model.onnx.data").open("wb") as file:
        file.truncate(256 << 20)  # far more than fits between two processes
    process = start(home, "--port", str(port))
    until(lambda: answers(port), "the first answer", 180)
    with contextlib.ExitStack() as readers:
        stays = download(port, run, readers)
        with contextlib.ExitStack() as others:
            for _ in range(50):  # more than there are threads for requests
                download(port, run, others)
            until(lambda: answers(port), "an answer beside the downloads")
            assert len(open_files(process.pid, folder)) == 51 * 2
        until(lambda: len(open_files(process.pid, folder)) == 2, "the end of those whose readers have left")
        (folder / "model.onnx.data").write_bytes(b"")
        with pytest.raises(http.client.IncompleteRead):
            stays.read()
    until(lambda: not open_files(process.pid, folder), "the end of the one that broke")
    until(lambda: answers(port), "an answer after the one that broke")
    process.send_signal(signal.SIGINT)
    log = process.communicate(timeout=120)[1]
    assert "model.onnx.data became shorter while it was being downloaded" in log
    assert log.count("Exception in ASGI application") == 1, "a reader that leaves is no error"


def download(port: int, run: str, readers: contextlib.ExitStack) -> http.client.HTTPResponse:
    """Begin to read the ZIP of a run."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    readers.callback(connection.close)
    connection.request("GET", f"/runs/{run}/model.zip")
    reply = readers.enter_context(connection.getresponse())
    assert reply.read(2) == b"PK"
    return reply


def printed(code: str, environment: dict[str, str]) -> str:
    """What a Python process of its own prints that executes `code` in the project."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=settings.ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported(home):
    code = (
        "import sys\nfrom pipeline import settings\n"
        "with settings.importing_gradio():\n    from webapp.app import create\n"
        f"create()\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed(code, settings.child_environment()) == "[]\n"


def test_only_gradio_is_kept_from_the_hub(home):
    code = (
        "import os\nfrom pipeline import settings\n"
        "with settings.importing_gradio():\n    import gradio, huggingface_hub.constants as hub\n"
        "print(hub.HF_HUB_OFFLINE, 'HF_HUB_OFFLINE' in os.environ, os.environ['GRADIO_ANALYTICS_ENABLED'])"
    )
    environment = {k: v for k, v in settings.child_environment().items() if k != "HF_HUB_OFFLINE"}
    assert printed(code, environment) == "True False False\n"


def test_the_page_starts_without_renewing_stubs_for_type_checkers(home):
    """Gradio parses its whole source for that, which takes longer than the rest of its import."""
    code = (
        "import sys\nfrom pipeline import settings\nopened = []\n"
        "sys.addaudithook(lambda event, given: event == 'open' and opened.append(str(given[0])))\n"
        "before = list(sys.meta_path)\n"
        "with settings.importing_gradio():\n    from webapp.app import create\n"
        "stubs = [path for path in opened if path.endswith('.pyi')]\n"
        "print(stubs, len(opened) > 1000, sys.meta_path == before)"
    )
    assert printed(code, settings.child_environment()) == "[] True True\n"


def test_a_public_address_is_warned_about(home):
    port = free_port()
    process = start(home, "--host", "0.0.0.0", "--port", str(port), "--allow-host", "lab.example")
    until(lambda: answers(port), "the first answer", 180)
    until(lambda: answers(port, "lab.example"), "an answer under another name")
    assert not answers(port, "evil.example")
    config = urllib.request.Request(f"http://127.0.0.1:{port}/config", headers={"X-Forwarded-Proto": "https"})
    with urllib.request.urlopen(config, timeout=60) as reply:
        assert json.load(reply)["root"] == "/"
    process.send_signal(signal.SIGINT)
    assert "anybody who reaches port" in process.communicate(timeout=120)[1]


def test_a_system_that_confines_nothing_is_warned_about(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "works", lambda: True)
    assert main._warnings("127.0.0.1", 7860, home) == []
    monkeypatch.setattr(confined, "works", lambda: False)
    assert main._warnings("127.0.0.1", 7860, home) == [main.UNCONFINED]


def test_a_home_that_others_may_write_to_is_warned_about(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "works", lambda: True)
    home.chmod(0o1777)
    (said,) = main._warnings("127.0.0.1", 7860, home)
    assert said.startswith(f"every user of this machine may write to {home}, and")


def test_the_thread_that_answers_waits_little_for_busy_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight checks at once left it a page in 30 seconds, most of them spent on looking for matplotlib."""
    looked: list[str] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            looked.append(name)

    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    before = sys.getswitchinterval()
    try:
        _favor_the_page()
        assert sys.getswitchinterval() < before
        monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
        with contextlib.suppress(ImportError):
            importlib.import_module("matplotlib")
        assert looked == []
    finally:
        sys.setswitchinterval(before)
        sys.modules.pop("matplotlib", None)
