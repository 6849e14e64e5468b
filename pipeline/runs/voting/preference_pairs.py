"""A vote as preference pairs, one JSON line each: prompt, chosen, rejected, as DPO trainers read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypedDict

from pipeline.runs.voting import ballots, blind_rows, vote_result
from pipeline.runs.voting.ballots import PERSON
from pipeline.system.files import to_json, whole


class Written(TypedDict):
    """How many pairs were written, and rows with votes that prefer neither answer."""

    pairs: int
    ties: int


def export(run: Path, answers: Path, target: Path, only: Sequence[str] = ()) -> Written:
    """`write` into a file of its own, that only its user can read. What raises leaves the file as it is."""
    with whole(target, shared=True) as part, part.open("x", encoding="utf-8") as file:
        part.chmod(0o600)
        return write(run, answers, file, only)


def write(run: Path, answers: Path, file: IO[str], only: Sequence[str] = ()) -> Written:
    """Write the pairs on which the people who voted agree by majority; rows without one are left out.

    `only` is as for `vote_result.fitting`. A row has `system` too where its prompt has a system text. Raises
    InputError, LabError, OSError.
    """
    rows = blind_rows.load(answers)
    cast = vote_result.fitting(rows, ballots.read(run), only)
    means = vote_result.scores({voter: choices for voter, choices in cast.items() if voter.kind == PERSON})
    written = Written(pairs=0, ties=0)
    for number, worth in means.items():
        row = rows.by_number[number]
        if not worth:
            written["ties"] += 1
            continue
        chosen, rejected = (row.adapter, row.base) if worth > 0 else (row.base, row.adapter)
        system = {"system": row.system} if row.system else {}
        pair = {"prompt": row.prompt, **system, "chosen": chosen, "rejected": rejected}
        file.write(to_json(pair, ensure_ascii=False) + "\n")
        written["pairs"] += 1
    return written
