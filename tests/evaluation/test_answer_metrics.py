"""How near an answer is to the expected one, against known values and against counting by hand."""

from __future__ import annotations

import json
import random
from itertools import combinations
from typing import Any

import pytest

from pipeline.evaluation import answer_metrics, checks
from pipeline.evaluation.answer_metrics import exact_match, rouge_l, token_f1
from pipeline.evaluation.verdict import judge_each

CAT, MAT = "The cat sat on the mat.", "the cat was on the mat"


def test_known_values() -> None:
    assert token_f1(CAT, MAT) == pytest.approx(5 / 6)
    assert rouge_l(CAT, MAT) == pytest.approx(5 / 6)
    assert rouge_l("a b c d", "d c b a") == pytest.approx(1 / 4)
    assert token_f1("a b c d", "d c b a") == 1.0
    assert token_f1("a a a", "a") == pytest.approx(0.5)
    assert exact_match(CAT, " the CAT sat\non the mat") == 1.0
    assert exact_match(CAT, MAT) == 0.0


@pytest.mark.parametrize("measure", [exact_match, token_f1, rouge_l])
@pytest.mark.parametrize(("expected", "text", "found"), [("", "", 1.0), ("a", "", 0.0), ("", "a", 0.0)])
def test_empty_answers(measure: Any, expected: str, text: str, found: float) -> None:
    assert measure(expected, text) == found


def longest(one: list[str], other: list[str]) -> int:
    for size in range(min(len(one), len(other)), 0, -1):
        if set(combinations(one, size)) & set(combinations(other, size)):
            return size
    return 0


def test_the_longest_common_sequence_is_that_of_trying_all() -> None:
    draw = random.Random(0)
    for _ in range(150):
        one, other = ([draw.choice("abc") for _ in range(draw.randrange(8))] for _ in range(2))
        assert answer_metrics._longest_common(one, other) == longest(one, other), (one, other)


def test_an_answer_of_8_000_tokens_is_compared() -> None:
    words = [str(random.Random(1).randrange(500)) for _ in range(8000)]
    assert rouge_l(" ".join(words), " ".join(words[::2])) == pytest.approx(2 / 3)


def measured(rows: list[dict[str, Any]], outcomes: Any = lambda n, side: ()) -> list[dict[str, Any]]:
    return [
        {
            **row,
            **{
                side: row[side]
                and answer_metrics.measured(row["expected"], row[side], outcomes(number, side))
                for side in answer_metrics.SIDES
            },
        }
        for number, row in enumerate(rows)
    ]


def answers(count: int, near: bool) -> list[dict[str, Any]]:
    return [
        {
            "expected": f"In {n}, see the market.",
            "base": {"text": "Hello. How are you?", "tokens": 6, "cut": n % 2 == 0},
            "adapter": {
                "text": f"In {n}, see the {'market' if near else 'river'}.",
                "tokens": 8,
                "cut": False,
            },
        }
        for n in range(count)
    ]


def compared(*given: Any) -> dict[str, Any]:
    """What is found, with the verdicts on these metrics alone."""
    found, pairs = answer_metrics.compare(*given)
    answer_metrics.put(found, judge_each(pairs))
    return found


@pytest.fixture
def no_chrf(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {metric: measure for metric, measure in answer_metrics.NEARNESS.items() if metric.name != "chrf"}
    monkeypatch.setattr(answer_metrics, "NEARNESS", known)


@pytest.mark.usefixtures("no_chrf")
class TestCompare:
    def test_both_sides_and_a_verdict_for_each_metric(self) -> None:
        found = compared(measured(answers(12, near=False)))
        assert found["tokens"] == {"base": 6.0, "adapter": 8.0}
        assert found["ended"] == {"base": 0.5, "adapter": 1.0}
        assert found["exact_match"]["verdict"]["outcome"] == "cannot_tell"
        assert found["token_f1"]["base"] == 0.0
        assert found["token_f1"]["adapter"] == pytest.approx(0.8)
        assert found["token_f1"]["verdict"]["outcome"] == "better"
        assert found["token_f1"]["verdict"]["text"] == "Better: token F1 0.8 higher (0.8–0.8), 12 of 12 rows."
        json.dumps(found, allow_nan=False)

    def test_few_answers_are_no_verdict(self) -> None:
        found = compared(measured(answers(3, near=True)))
        assert found["rouge_l"]["verdict"]["outcome"] == "cannot_tell"

    def test_a_side_without_answers_is_left_out(self) -> None:
        rows = [{**row, "base": None} for row in answers(12, near=True)]
        found = compared(measured(rows, lambda *_: [True]), checks.read("json", ""))
        assert found["exact_match"] == {"adapter": 1.0}
        assert found["checks"] == [{"check": "json", "adapter": 1.0}]
        assert answer_metrics.compare([]) == ({}, {})

    def test_each_answer_keeps_its_own_figures(self) -> None:
        (row,) = measured(answers(1, near=True))
        assert row["base"]["ended"] is False
        assert row["adapter"]["ended"] is True
        assert row["adapter"]["nearness"] == {"exact_match": 1.0, "token_f1": 1.0, "rouge_l": 1.0}
        assert row["adapter"]["text"] == "In 0, see the market."
        assert "checks" not in row["adapter"]

    def test_checks_have_the_share_that_passes_and_a_verdict(self) -> None:
        """By the exact test on pairs: here 15 of 16 answers pass only with the adapter."""

        def outcomes(number: int, side: str) -> list[bool | str]:
            slow = "it took longer than 1 s"
            return [side == "adapter" and number > 0, slow if number < 4 else True, slow]

        known = checks.read("contains: market\njson\nregex: a", "")
        found = compared(measured(answers(16, near=False), outcomes), known)["checks"]
        assert [entry["check"] for entry in found] == ["contains: market", "json", "regex: a"]
        assert (found[0]["base"], found[0]["adapter"]) == (0.0, 15 / 16)
        assert found[0]["verdict"]["outcome"] == "better"
        assert "share that passes 'contains: market' 0.938 higher" in found[0]["verdict"]["text"]
        assert found[0]["verdict"]["better"] == 15
        assert "undecided" not in found[0]
        assert (found[1]["base"], found[1]["undecided"]) == (1.0, 4)
        assert found[1]["why"] == "it took longer than 1 s"
        assert found[1]["verdict"]["outcome"] == found[2]["verdict"]["outcome"] == "cannot_tell"
        assert found[1]["verdict"]["rows"] == 12
        assert "base" not in found[2]
        json.dumps(found, allow_nan=False)


@pytest.mark.chain
def test_chrf_is_that_of_known_texts() -> None:
    assert answer_metrics.chrf(CAT, CAT) == pytest.approx(1.0)
    assert 0 < answer_metrics.chrf("The cat sat.", "A dog ran.") < answer_metrics.chrf(CAT, MAT) < 1
    assert answer_metrics.chrf("", " ") == 1.0
    assert answer_metrics.chrf("a", "") == 0.0
    assert answer_metrics.chrf("数据库", "数据") > answer_metrics.chrf("数据库", "语言") == 0.0
