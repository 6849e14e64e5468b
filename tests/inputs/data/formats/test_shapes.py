"""Chats: whose turns they are, and what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.inputs.data.formats import shapes

GOOD = {"from": "human", "value": "a"}


def test_turns_become_messages_with_system_and_tools() -> None:
    row = {"system": "s", "tools": [{"name": "t"}], "conversations": [GOOD, {"from": "GPT", "value": "b"}]}
    assert shapes.chat(row, "conversations") == {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ],
        "tools": [{"name": "t"}],
    }


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (None, "'conversations' must be a list of turns"),
        ([], "'conversations' must be a list of turns"),
        ([GOOD, 7], "turn 2 of 'conversations' is no object"),
        ([GOOD, {"from": "observation", "value": "x"}], "turn 2 of 'conversations' is from 'observation'"),
        ([GOOD, {"from": "gpt", "value": None}], "turn 2 of 'conversations' has no text as its value"),
        ([GOOD, {"from": "gpt", "value": "\0"}], "turn 2 of 'conversations' has a NUL character"),
        ([GOOD] * 10_001, "'conversations' has 10,001 turns; allowed: 10,000"),
    ],
)
def test_a_bad_turn_is_said_by_its_number(turns: Any, said: str) -> None:
    found = shapes.chat({"conversations": turns}, "conversations")
    assert isinstance(found, str)
    assert found.startswith(said)
