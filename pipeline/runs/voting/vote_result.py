"""What a vote says: which side is preferred in how many rows, how sure that is, and whether voters agree.

Rows are the sample: a row counts once, by the mean of its votes, a vote for the adapter being 1, for the base
-1, and a tie or both bad 0. Equal answers are not asked and not counted. A judge's votes are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from pipeline.errors import InputError
from pipeline.evaluation import verdict
from pipeline.evaluation.verdict import Metric
from pipeline.runs.voting.ballots import (
    ADAPTER,
    BAD,
    BASE,
    CHOICES,
    JUDGE,
    MOST_VOTERS,
    PERSON,
    TIE,
    Voter,
    Votes,
    person,
)
from pipeline.runs.voting.blind_rows import Rows

NO_VOTE = "--only: nobody called {name} has voted on the answers of this run"
WORTH = {ADAPTER: 1.0, BASE: -1.0, TIE: 0.0, BAD: 0.0}
PREFERENCE = Metric("preference", "preference of voters")
OF_JUDGE = Metric("preference", "preference of the judge")
Ballots = dict[Voter, dict[int, str]]  # choices by voter and row, of votes that are about these answers


def fitting(rows: Rows, votes: Votes, only: Sequence[str] = ()) -> Ballots:
    """The votes that count: of people, those of the names in `only`, or if there are none, of the first
    MOST_VOTERS, whom no made-up name takes out. Raises InputError for a name in `only` without a vote."""
    found = _fitting(rows, votes)
    people = [voter for voter in found if voter.kind == PERSON]
    chosen = dict.fromkeys(person(name)[0] for name in only) or people[:MOST_VOTERS]
    if missing := [voter.shown for voter in chosen if voter not in found]:
        raise InputError(NO_VOTE.format(name=missing[0]))
    others = set(people) - set(chosen)
    return {voter: choices for voter, choices in found.items() if voter not in others}


def _fitting(rows: Rows, votes: Votes) -> Ballots:
    found = {voter: rows.fitting(cast) for voter, cast in votes.by.items()}
    return {voter: choices for voter, choices in found.items() if choices}


def result(rows: Rows, votes: Votes, only: Sequence[str] = ()) -> dict[str, Any]:
    """The result of people, and beside it that of each judge; as `votes RUN --json` prints it. Raises as
    `fitting` does."""
    whole, cast = _fitting(rows, votes), fitting(rows, votes, only)
    people = {voter: choices for voter, choices in cast.items() if voter.kind == PERSON}
    means = scores(people)
    judges = {voter: choices for voter, choices in cast.items() if voter.kind == JUDGE}
    return {
        **_preferred(means, PREFERENCE),
        "asked": len(rows.asked),
        "equal_answers": rows.equal,
        "voters": [_count(votes.names[voter], choices) for voter, choices in cast.items()],
        "more_voters": len(whole) - len(cast),
        "agreement": agreement(people),
        "judges": [
            {
                "voter": voter.shown,
                **_preferred(scores({voter: choices}), OF_JUDGE),
                "with_people": _equal_to(means, choices),
            }
            for voter, choices in judges.items()
        ],
        "left_out": sum(map(len, votes.by.values())) - sum(map(len, whole.values())),
        "unread_lines": votes.unread,
    }


def scores(cast: Ballots) -> dict[int, float]:
    """The mean worth of the votes on each row, by row in order."""
    by_row: dict[int, list[float]] = {}
    for choices in cast.values():
        for row, choice in choices.items():
            by_row.setdefault(row, []).append(WORTH[choice])
    return {row: sum(worths) / len(worths) for row, worths in sorted(by_row.items())}


def _preferred(means: dict[int, float], metric: Metric) -> dict[str, Any]:
    worths = list(means.values())
    adapter, base = sum(worth > 0 for worth in worths), sum(worth < 0 for worth in worths)
    if not worths:
        found = verdict.missing(metric, "nobody has voted yet")
        return {
            "rows": 0,
            "adapter": 0,
            "base": 0,
            "neither": 0,
            "text": found.text,
            "verdict": found.to_json(),
        }
    found = verdict.judge(metric, [0.0] * len(worths), worths)
    rows, neither = len(worths), len(worths) - adapter - base
    text = (
        f"The adapter is preferred in {adapter:,} of {rows:,} row{'s' * (rows != 1)}, the base in {base:,};"
        f" no difference in {neither:,}. {found.text}"
    )
    return {
        "rows": rows, "adapter": adapter, "base": base, "neither": neither,
        "text": text, "verdict": found.to_json(),
    }  # fmt: skip


def _count(name: str, choices: dict[int, str]) -> dict[str, Any]:
    counted = Counter(choices.values())
    return {"voter": name, "rows": len(choices), **{choice: counted[choice] for choice in CHOICES}}


def _equal_to(means: dict[int, float], choices: dict[int, str]) -> dict[str, Any]:
    """In how many rows that people and a judge voted on both prefer the same side, or neither."""
    shared = [(_sign(means[row]), _sign(WORTH[choice])) for row, choice in choices.items() if row in means]
    equal = sum(theirs == its for theirs, its in shared)
    return {"rows": len(shared), "equal": equal, "share": equal / len(shared) if shared else None}


def _sign(worth: float) -> int:
    return (worth > 0) - (worth < 0)


def agreement(cast: Ballots) -> dict[str, Any]:
    """How far voters agree on rows that several have voted on.

    `share` is that of equal votes among all pairs of votes on a row; `alpha` is Krippendorff's. Both are None
    where there is nothing to compare, alpha also where all votes are the same one.
    """
    units = _units(cast.values())
    pairs = [first == second for votes in units for first, second in combinations(votes, 2)]
    return {
        "voters": len(cast),
        "rows": len(units),
        "share": sum(pairs) / len(pairs) if pairs else None,
        "alpha": alpha(units),
    }


def _units(cast: Iterable[dict[int, str]]) -> list[list[str]]:
    """The votes on each row that has two or more."""
    by_row: dict[int, list[str]] = {}
    for choices in cast:
        for row, choice in choices.items():
            by_row.setdefault(row, []).append(choice)
    return [votes for votes in by_row.values() if len(votes) > 1]


def alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal values: 1 is agreement, 0 what chance gives; None if undefined.

    `units` have two or more values each. The formula stands here because the kept library for it is under the
    GPL. See Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C.
    """
    total: Counter[str] = Counter()
    observed = 0.0
    for values in units:
        counted = Counter(values)
        total += counted
        unequal = len(values) ** 2 - sum(count**2 for count in counted.values())  # ordered pairs
        observed += unequal / (len(values) - 1)
    count = total.total()
    expected = count**2 - sum(one**2 for one in total.values())
    return 1 - (count - 1) * observed / expected if expected else None
