from __future__ import annotations

import json
import re
import sys
from unicodedata import category

import pytest

from pipeline import display, settings
from pipeline.cli import terminal
from pipeline.store.run import DONE, StageRun
from tests.helpers.planted import record
from webapp.ui import views

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


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ""),
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (12.5, "13 s"),
        (185, "3 min 05 s"),
        (59.7, "1 min 00 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_duration_reads_at_a_glance(value: float | None, words: str) -> None:
    assert display.duration(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_950, "1.0 MB"),
        (123_456_789, "123.5 MB"),
        (4.2e12, "4200.0 GB"),
    ],
)
def test_a_size_reads_at_a_glance(value: float | None, words: str) -> None:
    assert display.size(value) == words


def test_numbers_have_four_digits_and_other_things_stay() -> None:
    assert [display.number(v) for v in (1.23456, 3, "x", True, [1], 1e-7)] == [
        "1.235",
        "3",
        "x",
        "true",
        "[1]",
        "1e-07",
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("bytes_before", 269_060_552, "269.1 MB"),
        ("adapter_bytes", 900, "900 B"),
        ("train_seconds", 220.9, "3 min 41 s"),
        ("base_tokens_per_second", 57.954, "57.95"),
        ("trainable_parameters", 4_884_480, "4,884,480"),
        ("dtype", "bfloat16", "bfloat16"),
    ],
)
def test_measures_are_in_the_unit_of_their_name(name: str, value: object, words: str) -> None:
    assert display.measure(name, value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "a minute"), (89, "a minute"), (600, "10 minutes"), (7200, "2.0 hours"), (1e6, "12 days")],
)
def test_an_estimate_is_not_more_exact_than_it_is(seconds: float, words: str) -> None:
    assert display.about(seconds) == words


def test_a_page_and_a_terminal_show_the_same_figures() -> None:
    weights = {"name": "model", "kind": "model", "path": "/a", "bytes": 2_460_000_000}
    stage = StageRun("quantize", DONE, seconds=185.2, artifacts=[weights])
    run = record(stage, status=DONE)
    shown = views.stages(run)["rows"][0][2:4]
    assert shown == ["3 min 05 s", "2.5 GB"]
    assert "  ".join(shown) in terminal.summary(run)


FIGURES = re.compile(r"/ 1e[369]|/ 1000\*\*|%Y-%m-%d %H:%M\"")  # of other modules' own


def test_sizes_and_times_become_text_in_one_place() -> None:
    root = settings.ROOT
    found = {
        path.relative_to(root).as_posix()
        for folder in ("pipeline", "webapp")
        for path in (root / folder).rglob("*.py")
        if FIGURES.search(path.read_text("utf-8"))
    }
    assert found == {"pipeline/display.py"}
