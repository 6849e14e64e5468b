from __future__ import annotations

import json
import sys

import pytest

from pipeline import shown


def test_half_pairs_are_replaced_and_whole_ones_stay() -> None:
    assert shown.valid("a\ud83d b\udc00 \ud83d\ude00 é") == "a\ufffd b\ufffd \U0001f600 é"


def test_a_terminal_gets_no_control_characters() -> None:
    text = "a\tb\n\x1b[31m\0\x9b\u202e\u2028\ud83d"
    assert shown.plain(text) == "a\tb\n\\u001b[31m\\u0000\\u009b\\u202e\\u2028\ufffd"


def test_json_stays_json() -> None:
    given = {"a\x1b": "\x7f\x9b\u202e"}
    assert json.loads(shown.plain(json.dumps(given, ensure_ascii=False))) == given


def test_a_line_shows_what_cannot_be_seen_and_is_cut() -> None:
    assert shown.line("a\x1b[2J\u202eb\nc\u200b\ud83d\U000e0001") == (
        "a\\u001b[2J\\u202eb\\nc\\u200b\\ud83d\\U000e0001"
    )
    assert shown.line("x" * 1000, 10) == "xxxxxxxxx…"
    assert shown.line(["a"]) == "['a']"


def test_a_name_is_short_and_on_one_line() -> None:
    assert shown.quoted("a\nb\u2028") == "'a\\nb\\u2028'"
    assert shown.quoted("x" * 100) == f"'{'x' * 59}…'"
    some = ["a", "b" * 100, *map(str, range(20))]
    assert shown.names(some) == f"a, {'b' * 59}…, 0, 1, 2, 3, 4, 5, 6, 7, 12 more"


def test_a_value_that_stands_for_billions_is_looked_at_only_where_it_is_shown() -> None:
    nested: object = "x" * 10_000
    for _ in range(60):
        nested = [nested] * 9
    begins = "[[[...], [...], [...], [...], ...], [[...], [...], [...], [...], ...], [[...], "
    assert shown.value(nested) == f"{begins}…"
    pairs: object = "x"
    for _ in range(60):
        pairs = dict.fromkeys(range(9), pairs)
    assert len(shown.value(pairs)) == shown.LONGEST_VALUE


def test_what_is_short_stands_as_python_writes_it() -> None:
    for value in (None, True, 5, 1.5, "a'b", [1, "x"], {"a": 1}, b"x", 10**70):
        assert shown.value(value) == repr(value)


def test_numbers_longer_than_python_writes_have_a_size() -> None:
    assert shown.value(1 << 20_000) == "a number of 20,001 bits"
    assert sys.get_int_max_str_digits() == 4300


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("One. Two.\n", 20, "One. Two"),
        ("One is here. Two is there.", 20, "One is here"),
        ("Version 1.5 is there now, and longer", 20, "Version 1.5 is…"),
        ("x" * 30, 20, "x" * 19 + "…"),
        ("", 20, ""),
    ],
)
def test_a_long_text_ends_with_a_sentence_or_a_word(text: str, most: int, expected: str) -> None:
    assert shown.sentences(text, most) == expected
