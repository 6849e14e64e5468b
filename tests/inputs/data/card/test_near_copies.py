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


def signed(*signatures: np.ndarray, trained: list[bool] | None = None) -> tuple[list[int], list[int]]:
    """What is found of rows with these signatures."""
    near = Near()
    near._rows, near._signatures = [np.arange(len(signatures))], [np.array(signatures, np.uint32)]
    pairs, leaks = near.pairs(np.array(trained or [True] * len(signatures)))
    return pairs.tolist(), leaks.tolist()


@pytest.mark.parametrize(("alike", "near"), [(126, True), (101, True), (100, False), (6, False)])
def test_rows_are_near_from_four_fifths_on(alike: int, near: bool) -> None:
    one = np.arange(near_copies.SLOTS)
    other = np.where(one < alike, one, one + 1000)
    assert signed(one, other)[0] == [1] * near


def test_one_band_in_common_is_enough_to_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 of 21 bands have a slot that differs: 106 of 126 are the same, more than four fifths."""
    one = np.arange(near_copies.SLOTS)
    for whole in range(near_copies.BANDS):
        other = one.copy()
        for band in range(near_copies.BANDS):
            other[band * near_copies.IN_BAND + 2] += 1000 * (band != whole)
        assert signed(one, other)[0] == [1]


def test_each_row_of_a_band_is_compared_with_three_others() -> None:
    """The first, the one before, and the first that is trained on; rows of other bands with none."""
    signatures = np.zeros((5, near_copies.SLOTS), np.uint32)
    signatures[4] += 7
    learnt = np.array([False, False, True, False, False])
    first, before, taught, *_ = near_copies._candidates(signatures, learnt)
    pairs = [sorted(zip(one.tolist(), other.tolist(), strict=True)) for one, other in (first, before, taught)]
    assert pairs == [[(1, 0), (2, 0), (3, 0)], [(1, 0), (2, 1), (3, 2)], [(0, 2), (1, 2), (3, 2)]]


def test_a_long_text_is_compared_by_its_beginning() -> None:
    many = " ".join(f"{number * 7919 % 100_003}" for number in range(4_000))
    begins = many[:4000]
    assert found([begins + many[4000:8000], begins + many[12_000:16_000]]) == ([1], [])
    same = begins[:1000]
    assert found([same + "a b c" * 600, same + "".join(reversed(begins[:3000]))]) == ([], [])


def test_results_do_not_depend_on_how_much_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*(TEXT + f" {'so' * (number % 3)}" for number in range(12)), "Nothing of the kind."]
    at_once = found(texts, {0, 3, 5})
    monkeypatch.setattr(near_copies, "AT_ONCE", 3)
    monkeypatch.setattr(near_copies, "BATCH", 200)
    assert found(texts, {0, 3, 5}) == at_once == (list(range(1, 12)), [0, 3, 5])
    near = Near()
    near.add(0, TEXT * 2)
    assert (near._batch, len(near._signatures)) == ([], 1), "texts are not kept when there are enough"


def test_of_rows_that_are_let_go_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "MOST_ROWS", 100)
    near = Near()
    for row in range(1000):
        near.add(row, f"{row}")
        assert sum(map(len, near._rows)) + len(near._batch) == near.kept.count <= 101
    assert all(near.kept.keeps(row) for row in near._rows[0].tolist())


def test_texts_without_letters_are_compared_too() -> None:
    assert found(["\U0001f600" * 9, "\U0001f600" * 9 + " ", "\U0001f680" * 9]) == ([1], [])


def test_what_makes_no_difference_between_texts() -> None:
    assert near_copies.normalized(" A,\n  STRASSE_straße – b! ") == "a strasse strasse b"
