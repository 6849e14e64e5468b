"""Texts with markers: the turns that they hold, what is wrong with one, and where one ends in a text file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.inputs.data import datasets
from pipeline.inputs.data.formats import markers
from tests.helpers.formats import made_of, rows_of

ALPACA = "### Instruction:\nAdd.\n\n### Input:\n{}\n\n### Response:\n3"
PREAMBLE = "Below is an instruction that describes a task. Write a response.\n\n"
CHATML = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
PAIR = {"prompt": "u", "response": "a"}
TWICE = {"messages": [
    {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
    {"role": "user", "content": "v"}, {"role": "assistant", "content": "b"},
]}  # fmt: skip
MARKS = ("###", "<|", "INST", "SYS", "<s>", "</s>", "_turn", "Below is")


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (ALPACA.format("1 2"), {"prompt": "Add.\n\n1 2", "response": "3"}),
        (PREAMBLE + ALPACA.format("") + "</s>", {"prompt": "Add.", "response": "3"}),
        ("Be brief.\n" + ALPACA.format(""), {"prompt": "Add.", "response": "3", "system": "Be brief."}),
        ("### Instruction\nu\n### Response\na", PAIR),
        ("### Human: u### Assistant: a", PAIR),
        ("### Human: u### Assistant: a### Human: v### Assistant: b### Human: w", TWICE),
        (CHATML, PAIR),
        (f"<|im_start|>system\ns<|im_end|>\n{CHATML}", {**PAIR, "system": "s"}),
        (CHATML + "<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\nb", TWICE),
        ("<|begin_of_text|>" + LLAMA3.format("user", "u") + LLAMA3.format("assistant", "a"), PAIR),
        ("<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s>", {**PAIR, "system": "s"}),
        ("<s>[INST] u [/INST] a </s><s>[INST] v [/INST] b </s>", TWICE),
        ("<|user|>\nu<|end|>\n<|assistant|>\na<|end|>\n<|endoftext|>", PAIR),
        ("<bos><start_of_turn>user\nu<end_of_turn>\n<start_of_turn>model\na<end_of_turn>", PAIR),
    ],
)
def test_markers_become_turns(text: str, row: dict[str, Any]) -> None:
    found = markers.row(text)
    assert found == row
    assert not any(mark in json.dumps(found) for mark in MARKS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Hello there.", "has no markers of a conversation, which other rows have"),
        (CHATML.replace("\nu", "\n"), "turn 1 between its markers is empty"),
        (
            CHATML.replace("user\nu<|im_end|>", "user\nu<|im_end|> more"),
            "has the marker '<|im_end|>' where none",
        ),
        ("Read this: " + CHATML, "has a text in front of the first marker: 'Read this:'"),
        (CHATML + "<|im_start|>robot\nx", "has a turn of 'robot' between its markers; known are system"),
        (CHATML + "\0", "has a NUL character"),
        ("### Human: a### Assistant: b" * 5_001, "has 10,002 turns between markers; allowed: 10,000"),
    ],
)
def test_a_bad_text_is_said(text: str, said: str) -> None:
    found = markers.row(text)
    assert isinstance(found, str)
    assert found.startswith(said)


@pytest.mark.parametrize(
    "text",
    ["# Title\n### Answer:\nno", "a [INST] b", "<|im_start|>user\nu", "#### Human: a #### Assistant: b"],
)
def test_what_only_looks_like_markers(text: str) -> None:
    assert markers.style_of(text) is None


@pytest.mark.parametrize(
    ("text", "shape"), [(ALPACA, "alpaca"), (CHATML, "messages"), ("[INST] u [/INST] a", "messages")]
)
def test_rows_are_what_their_markers_say(tmp_path: Path, text: str, shape: str) -> None:
    rows = [text.format("x"), text.format("y"), "It is a text without any."]
    content = "".join(json.dumps({"text": one, "id": 7}) + "\n" for one in rows)
    found = made_of(tmp_path, content, "a.jsonl")
    assert (found.shape, found.columns, found.is_made) == (shape, None, True)
    assert list(rows_of(found)) == [1, 2]
    ((line, problem),) = found.problems
    assert line == 3
    assert problem.startswith("'text' has no markers of a conversation")


def test_one_and_several_turns_go_together(tmp_path: Path) -> None:
    rows = [CHATML, "[INST] u [/INST] a </s>[INST] v [/INST] b", CHATML.replace("\nu", "\nw")]
    found = made_of(tmp_path, json.dumps([{"text": text} for text in rows]), "a.json")
    assert list(rows_of(found).values()) == [PAIR, TWICE, {**PAIR, "prompt": "w"}]
    assert datasets.check(found.path, "chat").good


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (f"{PREAMBLE}{ALPACA.format('1')}\n\nand\n\n{PREAMBLE}{ALPACA.format('2')}\n", [1, 14]),
        ("### Instruction:\nu\n### Response:\na\n### Instruction:\nv\n### Response:\nb\n", [1, 5]),
        (f"{CHATML}\n{CHATML}{CHATML}", [1, 6]),
        ("<s>[INST] u [/INST] a </s>\n<s>[INST] v [/INST] b </s>\n", [1, 2]),
        ("### Human: u### Assistant: a\n### Human: u### Assistant: a\n", [1, 2]),
    ],
)
def test_a_text_file_of_conversations(tmp_path: Path, content: str, lines: list[int]) -> None:
    found = made_of(tmp_path, content, "a.txt")
    assert (found.container, found.shape, found.problems) == ("txt", found.shape, ())
    assert found.shape in ("alpaca", "messages")
    assert list(rows_of(found)) == lines
