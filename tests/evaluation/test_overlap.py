"""Answers that stand word for word in what was trained on."""

from __future__ import annotations

import pytest

from pipeline.evaluation import overlap
from pipeline.evaluation.overlap import Overlap

POEM = "The market opens at nine and closes when the last of the farmers has gone home to the hills."
OTHER = "Nobody knows when the market opens, and so the farmers of the hills come whenever they want to sell."


def test_shares_are_of_sequences_of_eight_words() -> None:
    found = Overlap({"adapter": [POEM.upper(), POEM + " " + OTHER], "base": [OTHER, OTHER], "short": [POEM]})
    found.read(iter(["Before it. " + POEM.replace(" ", "\n"), ""]))
    words, others = len(POEM.split()), len(OTHER.split())
    whole = words - 7
    assert found.shares() == {"adapter": 2 * whole / (whole + words + others - 7), "base": 0.0}


def test_however_long_answers_are_few_sequences_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of somebody's tokenizer may have megabytes, and 1,000 prompts may be asked."""
    monkeypatch.setattr(overlap, "MOST", 1000)
    found = Overlap({"adapter": ["a b c " * 60_000] * 10})
    assert [len(kept) for kept in found._sequences.values()] == [1000]
    found.read(["a b c " * 10])
    assert found.shares() == {"adapter": 1.0}


def test_without_answers_nothing_is_read() -> None:
    def unread() -> object:
        raise AssertionError("it was read")
        yield ""

    found = Overlap({"adapter": ["too short"], "base": []})
    found.read(unread())  # type: ignore[arg-type]
    assert found.shares() == {}


def test_a_recital_is_named_if_it_is_no_manner_of_speaking() -> None:
    said = "recites training rows: 63 % of its answers stand there word for word"
    assert overlap.by_heart({"adapter": 0.63, "base": 0.02, "expected": 0.1}) == said
    assert overlap.by_heart({"adapter": 0.63, "base": 0.02}) == said
    assert overlap.by_heart({"adapter": 0.63, "base": 0.0, "expected": 0.6}) == ""
    assert overlap.by_heart({"adapter": 0.4}) == overlap.by_heart({}) == ""
