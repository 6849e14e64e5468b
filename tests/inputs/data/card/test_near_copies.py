"""near_copies: near rows are found and others are not; many alike take no time by their square."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.inputs.data.card import near_copies
from pipeline.inputs.data.card.near_copies import Near

TEXT = (
    "The quick brown fox jumps over the lazy dog, while the cat sleeps by the warm stove and dreams of mice"
    " in the old barn behind the mill."
)


def found(texts: list[str], held_out: set[int] = frozenset()) -> tuple[list[int], list[int]]:  # type: ignore[assignment]
    near = Near()
    for row, text in enumerate(texts):
        near.add(row, text)
    trained = np.array([row not in held_out for row in range(len(texts))])
    pairs, leaks = near.pairs(trained)
    return pairs.tolist(), leaks.tolist()


@pytest.mark.parametrize(
    "other", [TEXT.upper(), TEXT.replace(",", " -"), TEXT.replace("lazy", "sleepy"), TEXT + " Yes."]
)
def test_a_row_that_is_nearly_the_same(other: str) -> None:
    assert found([TEXT, "Something else is written here.", other]) == ([2], [])


@pytest.mark.parametrize("other", [TEXT[: len(TEXT) // 2], " ".join(reversed(TEXT.split())), ""])
def test_a_row_that_is_not(other: str) -> None:
    assert found([TEXT, other]) == ([], [])


def test_a_held_out_row_near_one_that_is_trained_on_leaks() -> None:
    texts = [TEXT, "Nothing of the kind.", TEXT + " So.", TEXT + " Yes."]
    assert found(texts, {0}) == ([2, 3], [0])
    assert found(texts, {2, 3}) == ([2, 3], [2, 3])
    assert found(texts, {1}) == ([2, 3], [])
    assert found(texts, {0, 2, 3}) == ([2, 3], [])


def test_many_alike_make_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = np.zeros((1000, near_copies.SLOTS), np.uint32)
    pairs = near_copies._candidates(signatures, np.ones(1000, bool))
    assert sum(len(one) for one, _ in pairs) <= 3 * near_copies.BANDS * 1000


def test_of_many_rows_a_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "MOST_ROWS", 100)
    near = Near()
    for row in range(1000):
        near.add(row, TEXT + f" {row}")
    pairs, _ = near.pairs(np.ones(1000, bool))
    assert not near.kept.is_all
    assert 49 <= len(pairs) <= 100
    assert len(pairs) == near.kept.count - 1


def test_odd_texts() -> None:
    assert found(["", "\U0001f600", "\ufdfa" * 5000, "\u0300" * 5000]) == ([], [])


def test_rows_are_hashed_together_as_they_would_be_one_by_one() -> None:
    texts = [near_copies._hashed(text) for text in (TEXT, "a", "", "abcdef", "\U0001f600", TEXT[:40])]
    together, begins = near_copies._hashes(texts)
    alone = [near_copies._hashes([text])[0] for text in texts]
    assert together.tolist() == np.concatenate(alone).tolist()
    assert begins.tolist() == [0, *np.cumsum([len(hashes) for hashes in alone])]
    assert [len(hashes) for hashes in alone][1:5] == [1, 1, 2, 1]


def test_how_far_the_comparison_is_is_told_on_the_way() -> None:
    near = Near()
    for row in range(50):
        near.add(row, TEXT)
    shares = list(near.comparing(np.ones(50, bool)))
    assert shares == sorted(shares)
    assert (shares[0], len(shares)) == (0.0, 3 * near_copies.BANDS)
    assert 0.9 < shares[-1] < 1
