from __future__ import annotations

from pipeline import shown


def test_half_pairs_are_replaced_and_whole_ones_stay() -> None:
    assert shown.valid("a\ud83d b\udc00 \ud83d\ude00 é") == "a\ufffd b\ufffd \U0001f600 é"


def test_a_terminal_gets_no_control_characters() -> None:
    assert shown.plain("a\tb\n\x1b[31m\0\x9b\u202e\ud83d") == "a\tb\n\\x1b[31m\\x00\\u009b\\u202e\ufffd"


def test_a_name_is_short_and_on_one_line() -> None:
    assert shown.name("a\nb\u2028") == "'a\\x0ab\\u2028'"
    assert shown.name("x" * 100) == f"'{'x' * 60}…'"
