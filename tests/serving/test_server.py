"""`python -m pipeline serve` as a process, with a small export that really answers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from pipeline import settings
from tests.helpers import exports
from tests.helpers.lab import cli, processes, until

Start = Callable[..., subprocess.Popen[str]]
GIVEN = "a-token-of-my-own-0123"


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start `serve` on a free port."""
    started: list[subprocess.Popen[str]] = []

    def begin(*given: object, **environment: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "pipeline", "serve", *map(str, given), "--port", "0"]
        started.append(
            subprocess.Popen(
                words, cwd=settings.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
                env=settings.child_environment(OLIVE_LAB_HOME=str(home), **environment),
            )
        )  # fmt: skip
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> dict[str, str]:
    """What it says at its start: `url`, `models`, `token`."""
    assert process.stdout is not None
    lines = [process.stdout.readline().rstrip("\n") for _ in range(4)]
    assert lines[3] == "Ctrl-C stops it."
    return {
        "url": lines[0].rpartition(" at ")[2],
        "models": lines[1].removeprefix("Models: "),
        "token": lines[2].removeprefix("Token: "),
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(
    home: Path, export: Path, start: Start, number: signal.Signals
) -> None:
    process = start(export)
    said = told(process)
    assert said["models"] == "base, adapter_weights"
    with httpx.Client(base_url=said["url"], headers={"Authorization": f"Bearer {said['token']}"}) as client:
        body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 12}
        texts = [
            client.post("/chat/completions", json={**body, "model": model}).json()["choices"][0]["message"]
            for model in ("base", "adapter_weights", "base")
        ]
        assert texts[0] == texts[2] != texts[1]
        long = {**body, "model": "base", "messages": [{"role": "user", "content": "a" * 300}]}
        refused = client.post("/chat/completions", json=long)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        schema = {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"]}
        schema |= {"additionalProperties": False}
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        shaped = client.post("/chat/completions", json={**body, "model": "base", "response_format": wanted})
        assert json.loads(shaped.json()["choices"][0]["message"]["content"])["a"] in ("x", "yy")
        wanted["json_schema"]["schema"] = {"type": "none"}  # type: ignore[index]
        refused = client.post("/chat/completions", json={**body, "model": "base", "response_format": wanted})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("This JSON schema cannot be followed")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == "Stopped serving: answers that were not complete have ended.\n"
    until(lambda: not processes(home), "the end of the model's process")
    kept = "".join(file.read_text("utf-8", "replace") for file in home.rglob("*") if file.is_file())
    assert said["token"] not in kept


def test_a_token_of_ones_own_is_not_printed(export: Path, start: Start) -> None:
    process = start(export, OLIVE_LAB_SERVE_TOKEN=GIVEN)
    said = told(process)
    assert said["token"] == "the one in OLIVE_LAB_SERVE_TOKEN"
    headers = {"Authorization": f"Bearer {GIVEN}"}
    assert httpx.get(f"{said['url']}/models", headers=headers).status_code == 200
    assert httpx.get(f"{said['url']}/models", headers={"Authorization": "Bearer x"}).status_code == 401


@pytest.mark.parametrize("token", ["short", "with a space in its middle", "größer-als-sechzehn"])
def test_a_token_that_is_none_is_refused(
    home: Path, export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("OLIVE_LAB_SERVE_TOKEN", token)
    code, out, err = cli(capsys, "serve", export)
    assert (code, out) == (2, "")
    assert err.startswith("OLIVE_LAB_SERVE_TOKEN: it must have 16 letters or more")
    assert token not in err


def test_a_port_in_use_is_a_sentence(home: Path, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, _, err = cli(capsys, "serve", export, "--port", other.getsockname()[1])
    assert (code, err.partition("(")[2].partition(")")[0]) == (1, "Address already in use")


def test_a_model_that_does_not_load_is_a_sentence(home: Path, export: Path, start: Start) -> None:
    (export / exports.ADAPTER).write_bytes(b"no adapter")
    out, err = start(export).communicate(timeout=60)
    assert out == ""
    assert err.startswith("The model could not be loaded: its files in")
    assert err.count("\n") == 1
    until(lambda: not processes(home), "the end of the model's process")


def test_one_that_the_page_attends_ends_with_its_sentence(export: Path, start: Start) -> None:
    """Python aborts where a thread waits for standard input by `sys.stdin`."""
    (export / exports.ADAPTER).write_bytes(b"no adapter")
    process = start(export, "--attended")
    assert process.wait(60) == 1
    out, err = process.communicate()
    assert json.loads(out)["error"].startswith("The model could not be loaded: its files in")
    assert err == ""


def test_one_that_the_page_attends_ends_with_its_input(export: Path, start: Start) -> None:
    process = start(export, "--attended")
    assert process.stdout is not None
    assert process.stdin is not None
    assert "url" in json.loads(process.stdout.readline())
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it
    assert process.wait(60) in (0, 130)  # 130 before it takes the signal as a wish to stop
