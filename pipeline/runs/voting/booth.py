"""The page's questions about a vote, each asked of a process of `check_pool`: texts may be long and many.

Each is a generator of sentences on the way whose end is the answer, as `check_pool.ask` wants it. `run` is
the run's folder, `answers` its recorded answers. No answer before a voter's own vote names a side.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, LabError
from pipeline.runs.voting import ballots, blind_rows
from pipeline.runs.voting.ballots import Vote, Voter, Votes
from pipeline.runs.voting.blind_rows import Rows

Steps = Generator[str, None, dict[str, Any]]
READING = "Reading the answers…"
LETTERED = (*blind_rows.LETTERS, ballots.TIE, ballots.BAD)
MOST_LISTED = 200  # rows whose sides are listed
SHORT = 160
UNKNOWN_ROW = "row: this run has no such row to vote on; reload the page"
CHANGED = "These answers have changed since they were shown, so nothing was voted; reload the page."
OPEN_ONLY = "You have seen which side was which, so your vote on this run is closed."
STILL_BLIND = "The result is shown after Reveal, because it says which side was which."


def state(run: str, answers: str, voter: str, row: int | None = None) -> Steps:
    """A row to vote on, the one asked for or the first without a vote of this voter, and how far they are.

    {rows, equal_answers, voted, revealed, last: the row voted on last, row: null or what `blind_rows.shown`
    gives with `position` and, where the voter has voted on it, `choice`}. Raises InputError, LabError,
    OSError.
    """
    yield READING
    who, _ = ballots.person(voter)
    return _state(Path(run), blind_rows.load(Path(answers)), who, row)


def vote(run: str, answers: str, voter: str, row: int, choice: str, seen: str) -> Steps:
    """Record a vote on a row that the page displayed; returns the `state` after it. Raises as that does."""
    yield READING
    who, name = ballots.person(voter)
    folder, rows = Path(run), blind_rows.load(Path(answers))
    if choice not in LETTERED:
        raise InputError("choice: a, b, tie or bad")
    if (found := rows.by_number.get(row)) is None:
        raise InputError(UNKNOWN_ROW)
    key = ballots.secret(folder)
    if not blind_rows.is_seen(key, found, who, seen):
        raise LabError(CHANGED)
    if who in ballots.read(folder).revealed:
        raise LabError(OPEN_ONLY)
    cast = Vote(found.of, blind_rows.meant(key, found, who, choice))
    ballots.cast(folder, who, name, row, cast)
    return _state(folder, rows, who, None)


def reveal(run: str, answers: str, voter: str) -> Steps:
    """Close the vote of a voter, who then may see the `result`, which is returned. Raises as `state` does."""
    yield READING
    who, name = ballots.person(voter)
    blind_rows.load(Path(answers))
    ballots.reveal(Path(run), who, name)
    return (yield from result(run, answers, voter))


def result(run: str, answers: str, voter: str) -> Steps:
    """The result, and `sides`: what A and B were in the rows of this voter. Only for who has revealed them.

    Raises as `state` does.
    """
    from pipeline.runs.voting import vote_result  # loads scipy, which the next row does not need

    yield READING
    who, _ = ballots.person(voter)
    folder, rows = Path(run), blind_rows.load(Path(answers))
    votes = ballots.read(folder)
    if who not in votes.revealed:
        raise LabError(STILL_BLIND)
    return {**vote_result.result(rows, votes), "sides": _sides(folder, rows, who, votes)}


def everything(run: str, answers: str, only: Sequence[str] = ()) -> Steps:
    """The result for who is not a voter of the page. `only` is as for `vote_result.fitting`. Raises as that
    does, LabError, OSError."""
    from pipeline.runs.voting import vote_result

    yield READING
    return vote_result.result(blind_rows.load(Path(answers)), ballots.read(Path(run)), only)


def pairs(run: str, answers: str, voter: str, to: str) -> Steps:
    """Write the preference pairs to a file that is there already: {pairs, ties}. Only for who has revealed.

    Raises as `state` does.
    """
    from pipeline.runs.voting import preference_pairs

    yield READING
    who, _ = ballots.person(voter)
    folder = Path(run)
    if who not in ballots.read(folder).revealed:
        raise LabError(STILL_BLIND)
    with Path(to).open("r+", encoding="utf-8") as file:  # who has left has removed it
        return {**preference_pairs.write(folder, Path(answers), file)}


def _state(folder: Path, rows: Rows, who: Voter, wanted: int | None) -> dict[str, Any]:
    votes = ballots.read(folder)
    mine = rows.fitting(votes.of(who))
    if wanted is not None and wanted not in rows.by_number:
        raise InputError(UNKNOWN_ROW)
    left = (row.number for row in rows.asked if row.number not in mine)
    number = next(left, None) if wanted is None else wanted
    told: dict[str, Any] = {
        "rows": len(rows.asked), "equal_answers": rows.equal, "voted": len(mine),
        "revealed": who in votes.revealed, "row": None, "last": _last(votes, who, mine),
    }  # fmt: skip
    if number is None or told["revealed"]:
        return told
    key, row = ballots.secret(folder), rows.by_number[number]
    position = list(rows.by_number).index(number) + 1
    told["row"] = {"position": position, **blind_rows.shown(key, row, who)}
    if number in mine:
        told["row"]["choice"] = blind_rows.lettered(key, row, who, mine[number])
    return told


def _last(votes: Votes, who: Voter, mine: dict[int, str]) -> int | None:
    """The row that a voter voted on last."""
    return next((number for number in reversed(votes.of(who)) if number in mine), None)


def _sides(folder: Path, rows: Rows, who: Voter, votes: Votes) -> list[dict[str, Any]]:
    key = ballots.secret(folder)
    mine = rows.fitting(votes.of(who))
    found = []
    for number in sorted(mine)[:MOST_LISTED]:
        row = rows.by_number[number]
        first, second = blind_rows.sides(key, row, who)
        prompt = " ".join(row.prompt[: 2 * SHORT].split())[:SHORT]
        found.append({"row": number, "prompt": prompt, "a": first, "b": second, "choice": mine[number]})
    return found
