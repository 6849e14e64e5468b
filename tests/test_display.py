from __future__ import annotations

import json
import sys
from unicodedata import category

import pytest

from pipeline import display

SEEN = "\t\n\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
HIDDEN = [
    c
    for c in map(chr, range(sys.maxunicode + 1))
    if category(c) in ("Cc", "Cf", "Zl", "Zp") and c not in SEEN
]


def test_half_pairs_are_replaced_and_whole_ones_stay() -> None:
    assert display.valid("a\ud83d b\udc00 \ud83d\ude00 é") == "a\ufffd b\ufffd \U0001f600 é"


def test_a_terminal_gets_no_control_characters() -> None:
    text = "a\tb\n\x1b[31m\0\x9b\u202e\u2028\ud83d"
    assert display.plain(text) == "a\tb\n\\u001b[31m\\u0000\\u009b\\u202e\\u2028\ufffd"


def test_no_character_that_is_not_seen_reaches_a_terminal() -> None:
    for letter in HIDDEN:
        plain = display.plain(f"a{letter}b")
        assert plain.isprintable()
        assert json.loads(f'"{plain}"') == f"a{letter}b"


def test_what_joins_letters_and_pictures_stays() -> None:
    scotland = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
    text = f"می\u200cخواهم क्\u200dष 👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 {scotland} \u0600١"
    assert display.plain(text) == text
    assert display.plain("\u200cخ") == "\u200cخ"  # the rest of an answer that comes in pieces
    hidden = {"a\u200db": "a\\u200db", "خ\u200c\u200cب": "خ\\u200c\\u200cب", "x\U000e0067": "x\\udb40\\udc67"}
    assert {text: display.plain(text) for text in hidden} == hidden


def test_a_file_s_name_is_what_it_looks_like() -> None:
    assert display.file_name("rows of é 你好.jsonl") == "rows of é 你好.jsonl"
    assert display.file_name("\u202elnosj.exe\x1b\udce9\u200b.jsonl") == "_lnosj.exe___.jsonl"


def test_json_stays_json() -> None:
    given = {"a\x1b": "\x7f\x9b\u202e\u061c\u2028\U000e0041"}
    assert json.loads(display.plain(json.dumps(given, ensure_ascii=False))) == given


def test_a_line_shows_what_cannot_be_seen_and_is_cut() -> None:
    assert display.line("a\x1b[2J\u202eb\nc\u200b\ud83d\U000e0001") == (
        "a\\u001b[2J\\u202eb\\nc\\u200b\\ud83d\\U000e0001"
    )
    assert display.line("x" * 1000, 10) == "xxxxxxxxx…"
    assert display.line(["a"]) == "['a']"


def test_a_name_is_short_and_on_one_line() -> None:
    assert display.quoted("a\nb\u2028") == "'a\\nb\\u2028'"
    assert display.quoted("x" * 100) == f"'{'x' * 59}…'"
    some = ["a", "b" * 100, *map(str, range(20))]
    assert display.names(some) == f"a, {'b' * 59}…, 0, 1, 2, 3, 4, 5, 6, 7, 12 more"


def test_a_value_that_stands_for_billions_is_looked_at_only_where_it_is_shown() -> None:
    nested: object = "x" * 10_000
    for _ in range(60):
        nested = [nested] * 9
    begins = "[[[...], [...], [...], [...], ...], [[...], [...], [...], [...], ...], [[...], "
    assert display.value(nested) == f"{begins}…"
    pairs: object = "x"
    for _ in range(60):
        pairs = dict.fromkeys(range(9), pairs)
    assert len(display.value(pairs)) == display.LONGEST_VALUE


def test_what_is_short_stands_as_python_writes_it() -> None:
    for value in (None, True, 5, 1.5, "a'b", [1, "x"], {"a": 1}, b"x", 10**70):
        assert display.value(value) == repr(value)


def test_numbers_longer_than_python_writes_have_a_size() -> None:
    assert display.value(1 << 20_000) == "a number of 20,001 bits"
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
    assert display.sentences(text, most) == expected
