"""Votes as preference pairs: whole texts, ties left out and counted."""

from __future__ import annotations

import json

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
    assert preference_pairs.export(booth.folder, booth.answers, target) == {"pairs": 2, "ties": 2}
    pairs = [json.loads(line) for line in target.read_text("utf-8").split("\n")[:-1]]
    assert pairs == [
        {"prompt": "Line\nbreak \u2028 <b>", "system": "Be brief.", "chosen": "of the adapter 00000",
         "rejected": "of the base 00000"},
        {"prompt": "Question 1?", "chosen": "of the base 00001", "rejected": "of the adapter 00001"},
    ]  # fmt: skip
    assert target.stat().st_mode & 0o777 == 0o600


def test_the_page_s_file_is_written_where_it_is_and_a_failure_leaves_one_s_own_as_it_was(store, tmp_path):
    booth = Booth(store, rows(2))
    booth.vote("Ada", "adapter")
    target = tmp_path / "pairs.jsonl"
    with pytest.raises(LabError, match="after Reveal"):
        booth.ask("pairs", voter="Ada", to=str(target))
    booth.ask("reveal", voter="Ada")
    with pytest.raises(FileNotFoundError):
        booth.ask("pairs", voter="Ada", to=str(target))
    target.touch()
    with target.open("rb") as file:  # as the page has it
        assert booth.ask("pairs", voter="Ada", to=str(target)) == {"pairs": 1, "ties": 0}
        assert json.loads(file.read())["chosen"] == "of the adapter 00000"
    booth.rewrite([])
    before = target.read_bytes()
    with pytest.raises(LabError):
        preference_pairs.export(booth.folder, booth.answers, target)
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".pairs*"))
    assert sorted(path.name for path in booth.ballots.parent.iterdir()) == ["ballots.jsonl", "secret"]
