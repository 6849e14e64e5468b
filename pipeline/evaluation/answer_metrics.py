"""How near a generated answer is to the expected one, and whether the adapter's answers are nearer.

Words are runs of letters and digits, without regard to capitals and punctuation. Languages that put no spaces
between words have long runs, so for them chrF, which looks at letters, says most.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.evaluation.checker import Outcome
from pipeline.evaluation.checks import Check
from pipeline.evaluation.verdict import Metric, Pair, Verdict

Side = Mapping[str, Any]  # a side of a row of answers.json: {text, tokens, cut}
SIDES = ("base", "adapter")
FLOAT = "float"  # the model that was quantized, where it was asked too; some rows may lack it
CHECK = "check_"  # begins the names of metrics of checks, which end with its number
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


LONGEST = 20_000  # as much as is written of an expected answer


def measured(expected: str, side: Side, outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """A side with all that its answer alone says: {..., "ended": true, "nearness": {"token_f1": 0.5, ...}},
    and with `outcomes` of checks {"checks": [true, false, "why nobody can tell", ...]}. How near an answer is
    is seen from its first LONGEST letters: chrF of more takes minutes."""
    text = side["text"][:LONGEST]
    nearness = {metric.name: near(expected, text) for metric, near in NEARNESS.items()}
    checked = {"checks": list(outcomes)} if outcomes else {}
    return {**side, "ended": not side["cut"], "nearness": nearness, **checked}


def compare(
    rows: Sequence[Mapping[str, Any]], checks: Sequence[Check] = ()
) -> tuple[dict[str, Any], dict[str, tuple[Metric, Pair]]]:
    """Means of both sides by metric, of rows of answers.json whose sides are `measured`: {"token_f1":
    {"base": 0.3, "adapter": 0.7}, ..., "tokens": {...}, "ended": {...}, "checks": [{"check": "contains:
    Paris", "base": 0.1, "adapter": 0.9, "undecided": 2, "why": ...}]}. And what of it is to be judged, for
    `put` to add the verdicts; nothing where a side has no answers.

    `tokens` is the length of answers, `ended` the share that ended by themselves; of checks it is the share
    that passes, without those that nobody can tell of. Where the float model was asked too, they have its
    mean as "float", over the `float_prompts` that it answered; nothing is claimed of that.
    """
    sides = [side for side in SIDES if rows and all(row[side] for row in rows)]
    if not sides:
        return {}, {}
    found: dict[str, Any] = {
        "tokens": {side: _mean([row[side]["tokens"] for row in rows]) for side in sides},
        "ended": {side: _mean([row[side]["ended"] for row in rows]) for side in sides},
    }
    pairs: dict[str, tuple[Metric, Pair]] = {}
    for metric in NEARNESS:
        figures = [[row[side]["nearness"][metric.name] for row in rows] for side in sides]
        found[metric.name] = {side: _mean(each) for side, each in zip(sides, figures, strict=True)}
        pairs[metric.name] = metric, (figures[0], figures[-1])
    listed = []
    for number, check in enumerate(checks):
        passed = _passed(rows, sides, number)
        listed.append(_entry(check, rows, sides, number, passed))
        metric = _metric(number, check)
        pairs[metric.name] = metric, ([row[0] for row in passed], [row[-1] for row in passed])
    if listed:
        found["checks"] = listed
    if exact := [row for row in rows if row.get(FLOAT)]:
        _add_float(found, exact)
    return found, pairs if len(sides) == len(SIDES) else {}


def put(found: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> None:
    """Add to what `compare` found the verdicts on what it says is to be judged, by the same names."""
    for name, verdict in verdicts.items():
        entry = found[name] if name in found else found["checks"][int(name.removeprefix(CHECK)) - 1]
        entry["verdict"] = verdict.to_json()


def _add_float(found: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the float model's means to what `compare` found; the rows are those that it answered."""
    answers = [row[FLOAT] for row in rows]
    found["float_prompts"] = len(answers)
    found["tokens"][FLOAT] = _mean([answer["tokens"] for answer in answers])
    found["ended"][FLOAT] = _mean([answer["ended"] for answer in answers])
    for metric in NEARNESS:
        found[metric.name][FLOAT] = _mean([answer["nearness"][metric.name] for answer in answers])
    for number, entry in enumerate(found.get("checks", ())):
        passed = [one for answer in answers if not isinstance(one := answer["checks"][number], str)]
        if passed:
            entry[FLOAT] = _mean(passed)


def _metric(number: int, check: Check) -> Metric:
    return Metric(f"{CHECK}{number + 1}", f"share that passes '{check.name}'")


def _passed(rows: Sequence[Mapping[str, Any]], sides: Sequence[str], number: int) -> list[list[float]]:
    """Whether each side passes a check, 1 or 0, of the rows where that can be told of all sides."""
    outcomes = [[row[side]["checks"][number] for side in sides] for row in rows]
    return [list(map(float, each)) for each in outcomes if not any(isinstance(one, str) for one in each)]


def _entry(
    check: Check,
    rows: Sequence[Mapping[str, Any]],
    sides: Sequence[str],
    number: int,
    passed: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """The facts of a check, without its verdict; `passed` are the rows whose outcome is known."""
    entry: dict[str, Any] = {"check": check.name}
    if passed:
        entry |= {side: _mean([row[at] for row in passed]) for at, side in enumerate(sides)}
    outcomes = [row[side]["checks"][number] for row in rows for side in sides]
    if reasons := Counter(one for one in outcomes if isinstance(one, str)):
        entry |= {"undecided": len(rows) - len(passed), "why": reasons.most_common(1)[0][0]}
    return entry


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
