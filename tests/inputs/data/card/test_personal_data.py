"""personal_data: addresses and numbers that are valid count, other digits do not."""

from __future__ import annotations

import json

import pytest

from pipeline import settings
from pipeline.inputs.data.card import personal_data


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("mail jane.doe@acme.co.uk now", "emails"),
        ("+49 30 901820", "phones"),
        ("+44 20 7946 0018", "phones"),
        ("call (212) 555-0123.", "phones"),
        ("call 212-555-0123", "phones"),
        ("DE89 3704 0044 0532 0130 00", "id_numbers"),
        ("DE89370400440532013000", "id_numbers"),
        ("4111 1111 1111 1111", "id_numbers"),
        ("my number is 536-22-1234", "id_numbers"),
    ],
)
def test_personal_data_is_found(text: str, finding: str) -> None:
    assert personal_data.Search().finds(text) == [finding]


@pytest.mark.parametrize(
    "text",
    [
        "a@b", "see @user", "version 212-555-01234", "order 2125550123", "10.123.456.7890",
        "DE89370400440532013001", "4111-1111-1111-1112", "078-05-1120", "isbn 978-3-16-148410-0",
        "in 1999-2000 +5 %", "+1 23", "on 2026-11-28 at 10:30", "192.168.100.200",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert personal_data.Search().finds(text) == []


def test_the_sample_has_none() -> None:
    search = personal_data.Search()
    for line in (settings.SAMPLES / "travel.jsonl").read_text("utf-8").splitlines():
        assert [search.finds(text) for text in json.loads(line).values()] == [[], []]


def test_few_pieces_of_a_text_and_so_many_of_a_dataset_are_looked_at() -> None:
    search = personal_data.Search()
    assert search.finds("212-000-0123 " * 50_000) == []
    assert search.left == personal_data.MOST_IN_ALL - personal_data.MOST_PIECES
    search.left = 0
    assert search.finds("212-555-0123") == []
    assert search.is_over
