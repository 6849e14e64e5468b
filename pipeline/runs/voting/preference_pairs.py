"""A vote as preference pairs, one JSON line each: prompt, chosen, rejected, as DPO trainers read them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypedDict

from pipeline.runs.voting import ballots, blind_rows, vote_result
from pipeline.runs.voting.ballots import PERSON
from pipeline.system.files import make_room, to_json, whole

FILE = "pairs.jsonl"


class Written(TypedDict):
    """How many pairs were written, and rows with votes that prefer neither answer."""

    pairs: int
    ties: int


def write(run: Path, answers: Path, target: Path, only: Sequence[str] = ()) -> Written:
    """Write the pairs on which the people who voted agree by majority; rows without one are left out.

    `only` is as for `vote_result.fitting`. A row has `system` too where its prompt has a system text. Raises
    InputError, LabError, OSError; then nothing is written.
    """
    rows = blind_rows.load(answers)
    cast = vote_result.fitting(rows, ballots.read(run), only)
    means = vote_result.scores({voter: choices for voter, choices in cast.items() if voter.kind == PERSON})
    written = Written(pairs=0, ties=0)
    ours = target.parent == run / ballots.FOLDER
    if ours:
        make_room(target.parent, answers.stat().st_size)
    # For the page one writes at a time, and to one path: its process is ended where the page is left.
    with (
        ballots.locked(run) if ours else nullcontext(),
        whole(target, shared=not ours) as part,
        part.open("w", encoding="utf-8") as file,
    ):
        part.chmod(0o600)
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
