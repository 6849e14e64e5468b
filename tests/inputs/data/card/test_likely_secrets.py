"""likely_secrets: what is one and what only looks like one; hostile texts take a bounded number of pieces."""

from __future__ import annotations

import json

import pytest

from pipeline import settings
from pipeline.inputs.data.card import likely_secrets


@pytest.mark.parametrize(
    "text",
    [
        "my key is AKIAIOSFODNN7EXAMPLE",
        'first line\nthe password = "hunter2xyz"\nlast line',
        "password: s3cr3tPassw0rd",
        "api_key=abcd1234efgh",
        "ghp_" + "a1B2" * 9,
        "see https://user:pa55word@host/x",
        "-----BEGIN RSA PRIVATE KEY-----",
        "client_secret: 8f9d7c6b5a4e3d2c1b0a",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_def",
    ],
)
def test_a_secret_is_found(text: str) -> None:
    assert likely_secrets.Search().finds(text)


@pytest.mark.parametrize(
    "text",
    [
        "AKIA is how such keys begin",
        "The password: it is short",
        "Your password: never share it.",
        "API_KEY: <your key here>",
        'password=os.environ["X"]',
        'password="${PASSWORD}"',
        "The secret: 2-3 cups of flour",
        "Secret: well-known",
        "see https://host:8080/@user",
        "BEGIN PUBLIC KEY",
        "d41d8cd98f00b204e9800998ecf8427e is the sum",
    ],
)
def test_what_only_looks_like_one_is_not(text: str) -> None:
    assert not likely_secrets.Search().finds(text)


def test_the_sample_has_none() -> None:
    search = likely_secrets.Search()
    for line in (settings.SAMPLES / "travel.jsonl").read_text("utf-8").splitlines():
        assert not any(search.finds(text) for text in json.loads(line).values())


def test_few_pieces_of_a_text_and_so_many_of_a_dataset_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    search = likely_secrets.Search()
    assert not search.finds("password: x " * 100_000)
    assert search.left == likely_secrets.MOST_IN_ALL - likely_secrets.MOST_PIECES
    search.left = 1
    assert not search.finds("password: x password: y")
    assert search.is_over
    assert not search.finds("password: s3cr3tPassw0rd")


def test_the_beginning_of_a_text_is_searched() -> None:
    secret = " AKIAIOSFODNN7EXAMPLE"
    assert likely_secrets.Search().finds("a " * 9_000 + secret)
    assert not likely_secrets.Search().finds("a " * 10_000 + secret)
