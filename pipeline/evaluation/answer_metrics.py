"""How near a generated answer is to the expected one, and whether the adapter's answers are nearer.

Words are runs of letters and digits, without regard to capitals and punctuation. Languages that put no spaces
between words have long runs, so for them chrF, which looks at letters, says most.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.evaluation.verdict import Metric, Pair, judge_all

Answer = Mapping[str, Any]  # a side of a row of answers.json: {text, tokens, cut}
_WORD = re.compile(r"\w+")


def exact_match(expected: str, text: str) -> float:
    """1.0 if both have the same words in the same order, else 0.0."""
    return float(_words(expected) == _words(text))


def token_f1(expected: str, text: str) -> float:
    """Words in common, in any order: the harmonic mean of their shares of both texts, from 0 to 1."""
    one, other = Counter(_words(expected)), Counter(_words(text))
    return _f1((one & other).total(), one.total(), other.total())


def rouge_l(expected: str, text: str) -> float:
    """Words in common in the same order (ROUGE-L): F measure of the longest such sequence, from 0 to 1."""
    one, other = _words(expected), _words(text)
    return _f1(_longest_common(one, other), len(one), len(other))


def chrf(expected: str, text: str) -> float:
    """Sequences of one to six letters in common (chrF), from 0 to 1; by torchmetrics, so it imports torch."""
    if not expected.strip() or not text.strip():
        return float(expected.strip() == text.strip())
    from torchmetrics.functional.text import chrf_score

    return float(chrf_score([text], [[expected]], n_word_order=0))


NEARNESS: dict[Metric, Callable[[str, str], float]] = {
    Metric("exact_match", "exact match"): exact_match,
    Metric("token_f1", "token F1"): token_f1,
    Metric("rouge_l", "ROUGE-L"): rouge_l,
    Metric("chrf", "chrF"): chrf,
}


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of both sides by metric, of rows of answers.json: {"token_f1": {"base": 0.3, "adapter": 0.7,
    "verdict": {...}}, ..., "tokens": {...}, "ended": {...}}.

    `tokens` is the length of answers, `ended` the share that ended by themselves. Verdicts are corrected for
    being several; there are none where a side has no answers.
    """
    sides = [side for side in ("base", "adapter") if rows and all(row[side] for row in rows)]
    found: dict[str, Any] = {
        "tokens": {side: _mean([row[side]["tokens"] for row in rows]) for side in sides},
        "ended": {side: _mean([not row[side]["cut"] for row in rows]) for side in sides},
    }
    pairs: dict[Metric, Pair] = {}
    for metric, nearness in NEARNESS.items():
        by_side = {side: [nearness(row["expected"], row[side]["text"]) for row in rows] for side in sides}
        found[metric.name] = {side: _mean(figures) for side, figures in by_side.items()}
        if len(sides) == 2:
            pairs[metric] = (by_side["base"], by_side["adapter"])
    for name, verdict in judge_all(pairs).items():
        found[name]["verdict"] = verdict.to_json()
    return found if sides else {}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _f1(common: int, one: int, other: int) -> float:
    """The F measure of a part that two texts of so many words share; 1 for two empty ones."""
    return 2 * common / (one + other) if one + other else 1.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest sequence of words that both have in this order.

    By one bit a word of `one`, so that texts of thousands of words take milliseconds (Hyyrö's method).
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    everything = (1 << len(one)) - 1
    state = everything
    for word in other:
        matched = state & places.get(word, 0)
        state = (state + matched | state - matched) & everything
    return len(one) - state.bit_count()


def _mean(figures: Sequence[float]) -> float:
    return sum(figures) / len(figures)
