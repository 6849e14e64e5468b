"""The endpoint as programs and as pages of other sites find it."""

from __future__ import annotations

import json
import logging
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from pipeline.serving import desk, questions
from tests.helpers import serving
from tests.helpers.lab import until

ASK = "/v1/chat/completions"


@contextmanager
def asking(home: Path) -> Iterator[httpx.Client]:
    """A client with the token."""
    headers = {"Authorization": f"Bearer {serving.TOKEN}"}
    with serving.served(home) as (url, _), httpx.Client(base_url=url, headers=headers, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(shared_home: Path) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        serving.install(shared_home, patch)
        with asking(shared_home) as found:
            yield found


def body(word: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": word}], "seed": 1, **more}


def error(reply: httpx.Response) -> tuple[int, str, str | None, str | None]:
    """Status, sentence, field and code of a refusal, which no page of another site may read."""
    found = reply.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert found["message"].endswith(".")
    assert not [name for name in reply.headers if name.startswith("access-control")]
    return reply.status_code, found["message"], found["param"], found["code"]


def events(reply: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def noted(home: Path, name: str) -> list[str]:
    file = home / name
    return file.read_text().splitlines() if file.exists() else []


def test_models_are_base_and_adapters(client: httpx.Client) -> None:
    found = client.get("/v1/models").json()
    assert found["object"] == "list"
    assert [one["id"] for one in found["data"]] == ["base", "town"]
    assert client.get("/v1/models/town").json() == found["data"][1]
    assert error(client.get("/v1/models/city"))[0::3] == (404, "model_not_found")


def test_an_answer_whole_and_as_events(client: httpx.Client) -> None:
    reply = client.post(ASK, json=body(model="town", stop="x", max_tokens=9, temperature=0.5, top_p=0.9))
    found = reply.json()
    asked = json.loads(found["choices"][0]["message"]["content"].removesuffix("!"))
    assert asked == {
        "adapter": "town", "messages": [{"role": "user", "content": "Hi"}], "stop": ["x"], "schema": "",
        "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 1,
    }  # fmt: skip
    assert (found["object"], found["model"]) == ("chat.completion", "town")
    assert found["choices"][0]["finish_reason"] == "stop"
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert found["usage"] == usage
    assert not [name for name in reply.headers if name.startswith("access-control")]

    reply = client.post(ASK, json=body("cut", stream=True, stream_options={"include_usage": True}))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *pieces, last, used = events(reply)
    assert {one["object"] for one in (first, *pieces, last, used)} == {"chat.completion.chunk"}
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"]["content"] for one in pieces).endswith("!")
    assert last["choices"][0]["finish_reason"] == "length"
    assert (used["choices"], used["usage"]) == ([], usage)
    assert all(one["usage"] is None for one in (first, *pieces, last))
    assert "usage" not in str(events(client.post(ASK, json=body(stream=True))))


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer wrong", f"Basic {serving.TOKEN}", f"Bearer {serving.TOKEN}x", "Bearer \xe9"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", ASK, "/nothing"])
def test_nobody_comes_in_without_the_token(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, given: str | None, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = [("Authorization", given.encode("latin-1"))] if given is not None else []
    with httpx.Client(base_url=client.base_url) as stranger:
        assert error(stranger.get(path, headers=headers))[0::3] == (401, "invalid_api_key")
    assert "the-token" not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:8000"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_sites_are_refused_with_the_token_or_without(
    client: httpx.Client, shared_home: Path, method: str, headers: dict[str, str]
) -> None:
    before = noted(shared_home, "asked")
    for more in ({}, {"Authorization": "none"}):
        reply = client.request(method, ASK, json=body(), headers={**headers, **more})
        assert error(reply)[0] == 403
    assert noted(shared_home, "asked") == before


def test_our_own_names_and_origin_are_good(client: httpx.Client) -> None:
    port = client.base_url.port
    own = [
        {"Host": f"localhost:{port}"}, {"Host": f"lab.example.com:{port}"}, {"Host": "[::1]"},
        {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"},
    ]  # fmt: skip
    assert [client.get("/v1/models", headers=headers).status_code for headers in own] == [200] * 5


def test_what_the_model_refuses_is_a_status_also_of_a_stream(client: httpx.Client) -> None:
    long = "The prompt has 9 tokens; this model reads 3, answer included."
    for stream in (False, True):
        reply = client.post(ASK, json=body("long", stream=stream))
        assert error(reply) == (400, long, "messages", "context_length_exceeded")
        reply = client.post(ASK, json=body("broken", stream=stream))
        assert error(reply) == (503, "It broke; try again.", None, "model_failed")
        assert reply.headers["retry-after"] == "1"
    _, begun, failed = events(client.post(ASK, json=body("halfway", stream=True)))
    assert begun["choices"][0]["delta"] == {"content": "So "}
    assert failed["error"]["message"] == "It broke; try again."


def test_a_model_that_dies_is_started_again(client: httpx.Client) -> None:
    status, said, _, code = error(client.post(ASK, json=body("die")))
    assert (status, code) == (503, "model_failed")
    assert said.startswith("The inference process ended")
    assert client.post(ASK, json=body()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_answer(client: httpx.Client, shared_home: Path, stream: bool) -> None:
    asked, canceled = len(noted(shared_home, "asked")), len(noted(shared_home, "canceled"))
    url = urlsplit(str(client.base_url))
    sent = json.dumps(body("wait", stream=stream)).encode()
    head = f"POST {ASK} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {serving.TOKEN}\r\n"
    with socket.create_connection((url.hostname, url.port)) as raw:
        raw.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        until(lambda: len(noted(shared_home, "asked")) > asked, "the question")
    until(lambda: len(noted(shared_home, "canceled")) > canceled, "the end of the answer")
    assert client.post(ASK, json=body()).status_code == 200


def test_too_many_are_told_and_those_who_wait_get_their_turn(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "MOST_ANSWERED", 1)
    monkeypatch.setattr(desk, "MOST_WAITING", 1)
    serving.install(tmp_path, monkeypatch)
    headers = {"Authorization": f"Bearer {serving.TOKEN}"}
    with (
        serving.served(home) as (url, server),
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
        ThreadPoolExecutor() as pool,
    ):
        with client.stream("POST", ASK, json=body("wait", stream=True)):
            second = pool.submit(client.post, ASK, json=body("second"))
            until(lambda: server.desk._here == 2, "the one who waits")
            refused = client.post(ASK, json=body("third"))
            assert error(refused)[0::3] == (429, "too_many_requests")
            assert refused.headers["retry-after"] == "1"
            assert noted(home, "asked") == ["wait"]
        assert second.result(60).status_code == 200  # once the first has made room
    assert noted(home, "asked") == ["wait", "second"]


def test_answers_end_when_the_server_is_stopped(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.install(tmp_path, monkeypatch)
    headers = {"Authorization": f"Bearer {serving.TOKEN}"}
    with (
        serving.served(home) as (url, server),
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
        ThreadPoolExecutor() as pool,
    ):
        whole = pool.submit(httpx.post, url + ASK, json=body("wait"), headers=headers, timeout=60)
        with client.stream("POST", ASK, json=body("wait", stream=True)) as streamed:
            until(lambda: len(noted(home, "asked")) == 2, "both questions")
            server.handle_exit(signal.SIGINT, None)
            streamed.read()
        said = whole.result(60)
    assert events(streamed)[-1]["error"]["message"] == desk.STOPPED
    assert error(said)[:2] == (503, desk.STOPPED)


def test_a_request_that_is_too_large_is_not_read(client: httpx.Client, shared_home: Path) -> None:
    before = noted(shared_home, "asked")
    large = b"x" * (questions.LARGEST_BODY + 1)
    assert error(client.post(ASK, content=large))[0] == 413
    assert error(client.post(ASK, content=iter([large])))[0] == 413
    assert error(client.post(ASK, content=b"{"))[0] == 400
    assert noted(shared_home, "asked") == before


def test_other_addresses_and_methods_are_refused_in_openais_shape(client: httpx.Client) -> None:
    assert error(client.get("/"))[0] == 404
    assert error(client.post("/v1/completions", json=body()))[0] == 404
    assert error(client.get(ASK))[0] == 405
    assert error(client.delete("/v1/models"))[0] == 405
