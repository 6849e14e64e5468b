"""generation: where an answer ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.exports.generation import Answer, load, until


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["Hel", "lo", " you"], [], "Hello you"),
        (["Hello<|", "end|>", "<|user|>"], ["<|end|>"], "Hello"),
        (["Hello<", "|en", "d|", "> more"], ["<|end|>"], "Hello"),
        (["a <| b", "<|e", "nd"], ["<|end|>"], "a <| b<|end"),
        (["<|end|>"], ["<|end|>"], ""),
        (["one\n", "\ntwo"], ["\n\n", "two"], "one"),
    ],
)
def test_until_a_stop_text(pieces: list[str], stops: list[str], text: str) -> None:
    assert "".join(until(iter(pieces), stops)) == text


def test_what_may_be_a_stop_is_held_back() -> None:
    assert list(until(iter(["ab<", "x", "<|"]), ["<|end|>"])) == ["ab", "<x", "", "<|"]


def test_speed_leaves_the_first_token_out() -> None:
    answer = Answer(_pieces=iter(["a", "b"]), tokens=5, first_token_seconds=1.0, decode_seconds=2.0)
    assert list(answer) == ["a", "b"]
    assert answer.facts() == {
        "text": "ab",
        "tokens": 5,
        "cut": False,
        "tokens_per_second": 2.0,
        "first_token_seconds": 1.0,
    }
    assert Answer(tokens=1).tokens_per_second == 0


@pytest.mark.chain
def test_a_config_without_session_options_is_loaded(export: Path) -> None:
    """Its keys all have defaults, and the runtime takes it."""
    config = json.loads((export / "genai_config.json").read_text())
    del config["model"]["decoder"]["session_options"]
    (export / "genai_config.json").write_text(json.dumps(config))
    assert load(export)
