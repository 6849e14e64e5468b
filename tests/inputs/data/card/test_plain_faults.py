"""plain_faults: each fault, and what is nearly one."""

from __future__ import annotations

import pytest

from pipeline.inputs.data.card import plain_faults


@pytest.mark.parametrize(
    ("prompt", "answer", "found"),
    [
        ("Say it", "  \n", ["empty_answers"]),
        ("Say it", "Yes.", ["one_word_answers"]),
        ("Say it", "Yes, sir.", []),
        ("Say it", "\u79c1\u306f\u5143\u6c17\u3067\u3059", []),  # a sentence, in Japanese
        ("What is it, then?", "what is  it, then? A cat.", ["repeated_prompts"]),
        ("What is it, then?", "What is it?", []),
        ("A cat", "A cat is an animal", []),  # too short to tell
        ("Say it", "Say it", ["repeated_prompts"]),
        ("Say\x07 it", "It is so", ["control_characters"]),
        ("Say it", "It \u202eis so", ["control_characters"]),
        ("Say\tit\r\n", "It is\nso \u200d", []),
    ],
)
def test_a_row(prompt: str, answer: str, found: list[str]) -> None:
    assert plain_faults.of(prompt, answer) == found


def test_the_beginning_of_long_texts_is_looked_at() -> None:
    long = "ab " * 300_000
    assert plain_faults.of(long, long) == ["repeated_prompts"]
    assert plain_faults.of("Say it", long + "\x00") == []
