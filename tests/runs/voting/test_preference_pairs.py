"""Votes as preference pairs: whole texts, ties left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import LabError
from pipeline.runs.voting import ballots, blind_rows, preference_pairs
from pipeline.runs.voting.ballots import JUDGE, Vote, Voter
from tests.helpers.votes import Booth, rows


def test_pairs_have_the_columns_of_dpo_and_ties_are_counted(store, tmp_path):
    given = rows(5)
    given[0] |= {"system": "Be brief.", "prompt": "Line\nbreak \u2028 <b>"}
    given[1]["base"]["cut"] = True
    booth = Booth(store, given)
    for row, wanted in enumerate(["adapter", "base", "tie", "adapter"]):
        booth.vote("Ada", wanted, row=row)
    booth.vote("Grace", "base", row=3)
    asked = blind_rows.load(booth.answers).by_number[4]
    ballots.cast(booth.folder, Voter(JUDGE, "gpt"), "gpt", 4, Vote(asked.of, "adapter"))
    target = tmp_path / "pairs.jsonl"
    assert preference_pairs.write(booth.folder, booth.answers, target) == {"pairs": 2, "ties": 2}
    pairs = [json.loads(line) for line in target.read_text("utf-8").split("\n")[:-1]]
    assert pairs == [
        {"prompt": "Line\nbreak \u2028 <b>", "system": "Be brief.", "chosen": "of the adapter 00000",
         "rejected": "of the base 00000"},
        {"prompt": "Question 1?", "chosen": "of the base 00001", "rejected": "of the adapter 00001"},
    ]  # fmt: skip
    assert target.stat().st_mode & 0o777 == 0o600


def test_the_page_gets_a_file_of_the_run_and_nothing_is_left_of_a_failure(store, monkeypatch):
    booth = Booth(store, rows(2))
    booth.vote("Ada", "adapter")
    booth.ask("reveal", voter="Ada")
    told = booth.ask("pairs", voter="Ada")
    assert (told["pairs"], told["ties"]) == (1, 0)
    assert (
        json.loads((booth.folder / "votes" / "pairs.jsonl").read_text())["chosen"] == "of the adapter 00000"
    )
    booth.rewrite([])
    with pytest.raises(LabError):
        booth.ask("pairs", voter="Ada")
    assert sorted(path.name for path in booth.ballots.parent.iterdir()) == [
        "ballots.jsonl", "pairs.jsonl", "secret",
    ]  # fmt: skip


def test_those_that_end_while_they_write_for_the_page_leave_one_file_at_most(store, monkeypatch):
    """A page that is left ends the process that writes for it, so nothing is removed there."""
    booth = Booth(store, rows(2))
    booth.vote("Ada", "adapter")
    booth.ask("reveal", voter="Ada")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with monkeypatch.context() as killed:
        killed.setattr(preference_pairs, "to_json", _killed)
        for _ in range(3):
            with pytest.raises(_Killed):
                booth.ask("pairs", voter="Ada")
    assert len(list(booth.ballots.parent.glob(".pairs*"))) == 1
    booth.ask("pairs", voter="Ada")
    assert not list(booth.ballots.parent.glob(".pairs*"))


class _Killed(BaseException):
    pass


def _killed(*_: object, **__: object) -> str:
    raise _Killed
