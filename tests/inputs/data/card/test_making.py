"""making: each finding of whole datasets, tokens as training counts them, and samples that say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.data.card import making, near_copies, token_counts
from pipeline.inputs.data.card.making import Card
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.prompts import templates, training_ids
from tests.helpers import talks
from tests.helpers.lab import write_tokenizer
from tests.helpers.talks import TALK, talk

TEMPLATE = templates.parse("{prompt} {response}")
LONG = (
    "The quick brown fox jumps over the lazy dog while the cat sleeps by the warm stove and dreams of mice."
)


def rows(*pairs: tuple[Any, Any]) -> Iterator[making.Row]:
    return ((line, {"prompt": a, "response": b}) for line, (a, b) in enumerate(pairs, 1))


def lines(card: Card, name: str) -> list[int]:
    return list(card.found.lines_with([name]))


def counted(tmp_path: Path, given: Iterator[making.Row], max_length: int = 512, coming: int = 0) -> Card:
    """A card with tokens: one a byte, one that begins a text and one that ends it."""
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    write_tokenizer(folder / "tokenizer.json")
    counting = making.counter(max_length, coming)
    with Lengths(lambda: folder, "the-model", Limits(max_length), str, counting.note) as lengths:
        return making.of(given, TEMPLATE, counting=counting, lengths=lengths, coming=coming)


def test_the_sample_has_no_findings() -> None:
    card = making.of(datasets.readable(settings.SAMPLES / "travel.jsonl"), templates.parse("chat"))
    assert card.to_page() == {"rows": 144, "tokens": None, "notes": [], "findings": []}


def test_rows_that_repeat_others() -> None:
    other = LONG.replace("lazy", "sleepy")
    card = making.of(
        rows(
            ("Ask one", LONG),
            ("Ask one", LONG),
            ("Ask one", other),
            ("Ask two", "It is so."),
            ("Ask one", LONG),
        ),
        TEMPLATE,
    )
    assert lines(card, "duplicates") == [2, 5]
    assert lines(card, "near_duplicates") == [3]
    assert lines(card, "different_answers") == [3]
    assert card.to_json() == {"tokens": None, "duplicates": 2, "near_duplicates": 1, "leaks": 0}


def test_a_near_copy_across_the_split_leaks() -> None:
    pairs = [
        (f"Question {number} about {'abcdefgh'[number] * 9}", f"Answer {number}" * 9) for number in range(8)
    ]
    parts = datasets.Contents(("prompt", "response"), (), 0)
    for _, row in rows(*pairs, ("It", LONG), ("It!", LONG)):
        parts.add(row)
    held_out = set(parts.parts(0.2).held_out)
    card = making.of(rows(*pairs, ("It", LONG), ("It!", LONG)), TEMPLATE, eval_fraction=0.2)
    apart = len(held_out & {8, 9}) == 1
    assert len(lines(card, "leaks")) == apart
    found = [
        seed
        for seed in range(20)
        if lines(making.of(rows(*pairs, ("It", LONG), ("It!", LONG)), TEMPLATE, seed=seed), "leaks")
    ]
    assert 0 < len(found) < 20


def test_equal_rows_leak_where_no_split_parts_them() -> None:
    card = making.of(rows(*[("Ask", LONG)] * 20), TEMPLATE)
    assert len(lines(card, "leaks")) == 2
    assert len(lines(card, "duplicates")) == 19


def test_rows_by_themselves_and_their_copies() -> None:
    bad = ("Write to me", "At jane@acme.org with AKIAIOSFODNN7EXAMPLE")
    card = making.of(
        rows(bad, ("Say", "Yes"), ("Say so", " "), bad, ("What then, say?", "It is so")), TEMPLATE
    )
    found = {name: lines(card, name) for name in ("emails", "secrets", "one_word_answers", "empty_answers")}
    assert found == {"emails": [1, 4], "secrets": [1, 4], "one_word_answers": [2], "empty_answers": [3]}


def test_rows_that_do_not_fit_are_counted_and_not_looked_at() -> None:
    card = making.of(rows(("Ask", None), (["x"], "y"), (True, "z"), ("Ask", 7)), TEMPLATE)
    assert card.rows == 4
    assert lines(card, "one_word_answers") == [4]


def test_copies_that_are_not_recognized_at_once_are_no_near_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "MOST_KNOWN", 0)
    card = making.of(rows(("Ask them", LONG), ("Ask them", LONG), ("Ask them!", LONG)), TEMPLATE)
    assert (lines(card, "duplicates"), lines(card, "near_duplicates")) == ([2], [3])


def test_rows_without_an_answer_are_not_compared() -> None:
    card = making.of(rows(("Ask them", " "), ("Ask them", " "), ("Ask them", "It is so.")), TEMPLATE)
    assert card.found.counts() == {"empty_answers": 2}


def test_only_what_is_wanted_is_found() -> None:
    card = making.of(rows(("Say", "Yes"), ("Say", "Yes")), TEMPLATE, only=["duplicates"])
    assert card.found.counts() == {"duplicates": 1}


def test_no_rows() -> None:
    assert making.of(iter(()), TEMPLATE).to_json() == {
        "tokens": None, "duplicates": 0, "near_duplicates": 0, "leaks": 0,
    }  # fmt: skip


def test_tokens_are_those_of_training(tmp_path: Path) -> None:
    """A row is <s>, the prompt, and " " with the answer and its end."""
    pairs = [("ab", "c" * size) for size in (5, 6, 7, 26)]
    card = counted(tmp_path, rows(*pairs), max_length=20)
    assert card.tokens is not None
    assert card.to_json()["tokens"] == {"median": 11, "p95": 31, "max": 31, "cut": 1}
    assert lines(card, "cut") == [4]
    assert card.tokens.trained == pytest.approx((7 + 8 + 9 + 17) / (10 + 11 + 12 + 31))
    assert sum(card.tokens.bars) == 4
    assert len(card.tokens.bars) <= token_counts.BARS


def test_a_conversation_is_looked_at_and_all_its_answers_are_trained(tmp_path: Path) -> None:
    card = making.of(
        ((line, row) for line, row in enumerate([TALK, TALK, talk("Say", "jane@acme.org", "So?", "Yes")], 1)),
        templates.parse("chat", talks.chat("qwen2.5")),
    )
    found = {name: lines(card, name) for name in ("duplicates", "one_word_answers", "emails")}
    assert found == {"duplicates": [2], "one_word_answers": [3], "emails": [3]}
    counts = token_counts.Counts(512)
    full = "u" * 40 + "a" * 40 + "u" * 20 + "a" * 10
    text = templates.Rendered(full[:100], full, earlier=(templates.Span(40, 80, 0),))
    with Lengths(lambda: tmp_path, "the-model", Limits(512), str, counts.note) as lengths:
        list(counts.add(0, 1, text, lengths))
    counts.note(0, 100, 10)
    tokens = counts.figures(1)
    assert tokens is not None
    assert tokens.trained == pytest.approx((40 + 10) / 110)


def test_conversations_that_cannot_be_learned_are_counted_and_not_looked_at() -> None:
    bad = [{"messages": given} for given in (None, [], [7], [{"role": "user"}], "x", [{"role": []}])]
    card = making.of(enumerate(bad, 1), templates.parse("chat"))
    assert (card.rows, card.found.counts()) == (6, {})


def test_why_tokens_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    counting = making.counter(20)
    with Lengths(lambda: tmp_path / "model", "the-model", Limits(20), str, counting.note) as lengths:
        card = making.of(rows(("a", "b c")), TEMPLATE, counting=counting, lengths=lengths)
    assert card.tokens is None
    assert card.notes == ["Tokens are not counted: the tokenizer of the-model cannot be used."]


def test_of_many_rows_a_sample_is_counted_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_counts, "MOST_ROWS", 10)
    monkeypatch.setattr(near_copies, "MOST_ROWS", 10)
    card = counted(tmp_path, rows(*[(f"ab {number}", "c" * 30) for number in range(40)]), max_length=20)
    assert card.tokens is not None
    assert 5 <= card.tokens.counted <= 10
    assert card.tokens.cut == 40
    assert [note.split(" in ")[0].split(" among ")[0] for note in card.notes] == [
        "Tokens are counted", "Near-duplicates are looked for",
    ]  # fmt: skip


def test_where_many_come_a_small_sample_is_taken_at_once_and_what_can_be_exact_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_counts, "MOST_ROWS", 40)
    monkeypatch.setattr(token_counts, "SAMPLE", 20)
    monkeypatch.setattr(near_copies, "MOST_ROWS", 40)
    hashed: list[str] = []
    monkeypatch.setattr(near_copies, "_hashed", lambda text: hashed.append(text) or text.ljust(5))
    given = [(f"ab {number % 150}", "c" * 30) for number in range(200)]
    card = counted(tmp_path, rows(*given), max_length=20, coming=200)
    assert card.tokens is not None
    assert 18 <= card.tokens.counted <= 22
    assert card.tokens.cut == 200
    assert (card.rows, card.found.counts()["duplicates"]) == (200, 50)
    assert 25 <= len(hashed) <= 40, "none is hashed and let go"
    assert [note.split(",")[0] for note in card.notes] == [
        f"Tokens are counted in {card.tokens.counted} of 200 rows",
        f"Near-duplicates are looked for among {len(hashed)} of 200 rows",
    ]


def test_how_far_it_is_is_told_all_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "TELL_SECONDS", -1.0)
    told = list(making.making(rows(*[(f"Ask {n}", LONG) for n in range(3)]), TEMPLATE))
    assert told[:3] == [f"Row {number}: looking for findings…" for number in (1, 2, 3)]
    comparing = told[3 : told.index("Comparing rows: 0 %…")]
    assert len(comparing) > 3
    assert set(comparing) == {"Comparing rows…"}
    assert "Comparing rows: 98 %…" in told


def test_what_is_kept_of_a_cut_answer_is_what_training_keeps() -> None:
    for prompt in (1, 7, 8, 9, 30):
        for answer in (1, 7, 8, 9, 30):
            counts = token_counts.Counts(16)
            _, kept = training_ids.cut([0] * prompt, [0] * answer, 16)
            assert counts._trained(prompt, answer) == len(kept)
    assert counts._trained(10, 2, 4) == 6
    assert counts._trained(32, 9, 8) == 4
    assert counts._trained(14, 9, 7) == 7 + 2


def test_hostile_rows_are_read_to_the_end() -> None:
    soup = "\ud7ff\U0010ffff\u0300\ufdfa\u202e" * 20_000
    made = making.of(
        rows(
            ("1" * 900_000, "1 " * 400_000), (soup, soup), ("+1 " * 300_000, "a@" * 400_000),
            ("password: " * 90_000, "\n" * 900_000), ("", "x"), (1e308, 10**30),
            ("://" * 300_000, "eyJ" * 300_000),
        ),
        TEMPLATE,
    )  # fmt: skip
    assert made.rows == 7
    assert lines(made, "empty_answers") == [4]
    assert lines(made, "repeated_prompts") == [2]
