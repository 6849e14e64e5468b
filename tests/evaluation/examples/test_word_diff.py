"""Differences of words."""

from __future__ import annotations

import random

import pytest

from pipeline.evaluation.examples.word_diff import GONE, NEW, SAME, difference


def test_words_in_common_and_those_that_are_not() -> None:
    assert difference("See the amber lighthouse.", "See the old amber tower.") == [
        (SAME, "See the"), (NEW, " old"), (SAME, " amber"), (GONE, " lighthouse"), (NEW, " tower"),
        (SAME, "."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", ""),
        ("", "a  b\n"),
        ("a\n\nb", "a b"),
        ("  lead", "lead  "),
        ("日本 東京", "東京 日本"),
        ("<b>&", "&<i>"),
    ],
)
def test_the_pieces_make_up_both_texts(one: str, other: str) -> None:
    """White space alone is no difference; the second text's stands."""
    found = difference(one, other)
    assert found is not None
    assert "".join(piece for kind, piece in found if kind != GONE) == other
    assert "".join("".join(piece for kind, piece in found if kind != NEW).split()) == "".join(one.split())


def test_texts_that_take_too_long_to_compare_are_not() -> None:
    dice = random.Random(0)
    one, other = (" ".join(dice.choice("ab") for _ in range(2000)) for _ in range(2))
    assert difference(one, other) is None
    assert difference("word " * 6000, "") is None
    one, other = (" ".join(dice.choice("ab") for _ in range(600)) for _ in range(2))
    assert difference(one, other) is not None  # as large as is compared


def test_many_small_matches_end_too() -> None:
    """Within both limits of length this took a minute and a half: each match begins another search."""
    one = [chr(0x100 + number) for number in range(14)] * 119
    other = [piece for word in one for piece in (word, "!")]
    assert difference(" ".join(one[:1660]), " ".join(other[:3320])) is None


def test_two_long_answers_are_compared() -> None:
    dice = random.Random(1)
    often = [f"w{number}" for number in range(400) for _ in range(1 + 400 // (number + 1))]
    one, other = (" ".join(dice.choice(often) for _ in range(900)) for _ in range(2))
    assert difference(one, other) is not None
