"""What votes say: rows are the sample, voters agree or not, a judge counts apart."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import InputError
from pipeline.evaluation import verdict
from pipeline.runs.voting import ballots, blind_rows, preference_pairs, vote_result
from pipeline.runs.voting.ballots import JUDGE, Vote, Voter
from tests.helpers.votes import Booth, rows


def cast(booth: Booth, voter: Voter, name: str, choices: list[str]) -> None:
    for row, choice in zip(blind_rows.load(booth.answers).asked, choices, strict=False):
        ballots.cast(booth.folder, voter, name, row.number, Vote(row.of, choice))


def result(booth: Booth):
    return vote_result.result(blind_rows.load(booth.answers), ballots.read(booth.folder))


def test_rows_are_resampled_and_a_row_counts_once(store):
    booth = Booth(store, rows(20))
    choices = ["adapter"] * 14 + ["tie"] * 3 + ["bad"] + ["base"] * 2
    for name in ("Ada", "Grace"):
        cast(booth, *ballots.person(name), choices)
    found = result(booth)
    assert (found["rows"], found["adapter"], found["base"], found["neither"]) == (20, 14, 2, 4)
    expected = verdict.judge(vote_result.PREFERENCE, [0.0] * 20, [1.0] * 14 + [0.0] * 4 + [-1.0] * 2)
    assert found["verdict"] == expected.to_json()
    assert expected.outcome == "better"
    assert found["text"].startswith(
        "The adapter is preferred in 14 of 20 rows, the base in 2; no difference in 4."
    )
    assert "Better: preference of voters 0.6 higher" in found["text"]
    assert found["voters"][0] == {"voter": "Ada", "rows": 20, "adapter": 14, "base": 2, "tie": 3, "bad": 1}
    assert (found["agreement"]["share"], found["agreement"]["alpha"]) == (1.0, 1.0)


def test_of_many_voters_the_first_count(store, monkeypatch):
    monkeypatch.setattr(vote_result, "MOST_VOTERS", 2)
    booth = Booth(store, rows(4))
    cast(booth, Voter(JUDGE, "gpt"), "gpt", ["base"])
    for name in ("Ada", "Grace", "made up"):
        cast(booth, *ballots.person(name), ["adapter"] * (3 if name == "made up" else 1))
    found = result(booth)
    assert [one["voter"] for one in found["voters"]] == ["judge:gpt", "Ada", "Grace"]
    assert (found["more_voters"], found["left_out"], found["agreement"]["voters"]) == (1, 0, 2)


def test_an_operator_can_name_those_who_count(store, monkeypatch, tmp_path):
    monkeypatch.setattr(vote_result, "MOST_VOTERS", 2)
    booth = Booth(store, rows(4))
    cast(booth, Voter(JUDGE, "gpt"), "gpt", ["base"])
    for name in ("made up", "another", "Ada", "Grace"):
        cast(booth, *ballots.person(name), ["base" if name in ("made up", "another") else "adapter"])
    whole, votes = blind_rows.load(booth.answers), ballots.read(booth.folder)
    found = vote_result.result(whole, votes, ["grace", "ADA", "Ada"])
    assert [one["voter"] for one in found["voters"]] == ["judge:gpt", "Ada", "Grace"]
    assert (found["adapter"], found["more_voters"], found["agreement"]["voters"]) == (1, 2, 2)
    target = tmp_path / "pairs.jsonl"
    assert preference_pairs.export(booth.folder, booth.answers, target, ["Ada"])["pairs"] == 1
    assert "of the adapter" in json.loads(target.read_text())["chosen"]
    target.unlink()
    for refused in ("Bob", "gpt", "judge:gpt", ""):
        with pytest.raises(InputError, match=r"nobody called|your name"):
            preference_pairs.export(booth.folder, booth.answers, target, ["Ada", refused])
    assert not target.exists()


def test_one_row_and_none_cannot_tell(store):
    booth = Booth(store, rows(1))
    assert result(booth)["text"] == "Cannot tell: nobody has voted yet."
    cast(booth, *ballots.person("Ada"), ["base"])
    found = result(booth)
    assert found["verdict"]["outcome"] == "cannot_tell"
    assert found["text"].startswith(
        "The adapter is preferred in 0 of 1 row, the base in 1; no difference in 0."
    )


def test_voters_who_prefer_opposite_sides_of_a_row_make_no_difference(store):
    booth = Booth(store, rows(2))
    cast(booth, *ballots.person("Ada"), ["adapter", "adapter"])
    cast(booth, *ballots.person("Grace"), ["base", "tie"])
    found = result(booth)
    assert (found["adapter"], found["base"], found["neither"]) == (1, 0, 1)
    assert (found["agreement"]["share"], found["agreement"]["rows"]) == (0.0, 2)


def test_a_judge_counts_apart_and_its_agreement_with_people_is_told(store):
    booth = Booth(store, rows(4))
    cast(booth, *ballots.person("Ada"), ["adapter", "base", "tie"])
    cast(booth, Voter(JUDGE, "gpt"), "gpt", ["adapter", "adapter", "bad", "base"])
    found = result(booth)
    assert (found["rows"], found["agreement"]["voters"]) == (3, 1)
    (judge,) = found["judges"]
    assert (judge["voter"], judge["rows"], judge["adapter"], judge["base"]) == ("judge:gpt", 4, 2, 1)
    assert judge["with_people"] == {"rows": 3, "equal": 2, "share": pytest.approx(2 / 3)}
    assert judge["verdict"]["outcome"] == "cannot_tell", "four rows are too few"


# The example of four observers and twelve units in "Computing Krippendorff's Alpha-Reliability", section C.
EXAMPLE = [
    "1 1 . 1", "2 2 3 2", "3 3 3 3", "3 3 3 3", "2 2 2 2", "1 2 3 4", "4 4 4 4", "1 1 2 1", "2 2 2 2",
    ". 5 5 5", ". . 1 1", ". . 3 .",
]  # fmt: skip


def test_alpha_is_that_of_the_published_example():
    units = [[value for value in unit.split() if value != "."] for unit in EXAMPLE]
    assert vote_result.alpha([unit for unit in units if len(unit) > 1]) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_not_defined_where_all_votes_are_one_or_nobody_shares_a_row():
    assert vote_result.alpha([]) is None
    assert vote_result.alpha([["tie", "tie"], ["tie", "tie"]]) is None
    assert vote_result.alpha([["a", "b"], ["b", "a"]]) < 0
