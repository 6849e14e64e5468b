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


def test_turns_that_nobody_answers_are_left_out_at_the_end_of_a_sharegpt_chat() -> None:
    answered = {"from": "gpt", "value": "b"}
    found = shapes.chat({"conversations": [GOOD, answered, GOOD, GOOD]}, "conversations")
    assert isinstance(found, dict)
    assert [message["role"] for message in found["messages"]] == ["user", "assistant"]
    said = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]
    found = shapes.chat({"messages": said}, "messages")
    assert isinstance(found, dict)
    assert found["messages"] == said


def test_tools_of_a_table_stand_as_json_in_a_cell() -> None:
    said = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    found = shapes.chat({"messages": said, "tools": '[{"name": "t"}]'}, "messages")
    assert isinstance(found, dict)
    assert found["tools"] == [{"name": "t"}]


def test_a_role_of_null_is_kept_for_the_check() -> None:
    said = {"role": None, "content": "a", "name": None}
    assert shapes.chat({"messages": [said]}, "messages") == {"messages": [{"role": None, "content": "a"}]}


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (None, "'conversations' must be a list of turns"),
        ([], "'conversations' must be a list of turns"),
        ([GOOD], "'conversations' has no turn of the assistant"),
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


def test_sharegpts_tool_calls_are_refused_with_what_to_do() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "Observation", "value": "7"}]
    said = shapes.chat({"conversations": turns}, "conversations")
    assert isinstance(said, str)
    assert said.startswith("turn 2 of 'conversations' is from 'Observation'; known are human, gpt, system")
    assert "write rows with tool calls as 'messages'" in said
