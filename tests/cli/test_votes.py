"""`votes` in a terminal: the result, the export, and a judge."""

from __future__ import annotations

import json

import pytest

from pipeline.__main__ import main
from tests.helpers import planted
from tests.helpers.judges import prefers_marker, served
from tests.helpers.votes import Booth, rows


@pytest.fixture
def booth(store) -> Booth:
    made = Booth(store, rows(3))
    for voter in ("Ada", "Grace"):
        made.vote(voter, "adapter")
        made.vote(voter, "tie")
    return made


def test_the_result_is_told_in_words_and_as_json(booth, capsys):
    assert main(["votes", booth.run]) == 0
    said = capsys.readouterr().out
    assert "The adapter is preferred in 1 of 2 rows, the base in 0; no difference in 1. Cannot tell" in said
    assert (
        "Agreement of 2 voters: 100% of the votes on 2 shared rows are equal; Krippendorff's alpha 1.00."
        in said
    )
    assert main(["votes", booth.run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["adapter"], told["verdict"]["outcome"], told["agreement"]["alpha"]) == (
        1,
        "cannot_tell",
        1.0,
    )


def test_pairs_are_exported_and_what_is_left_out_is_counted(booth, tmp_path, capsys):
    target = tmp_path / "pairs.jsonl"
    assert main(["votes", booth.run, "--export", str(target), "--json"]) == 0
    assert json.loads(target.read_text())["chosen"] == "of the adapter 00000"
    assert f"1 pairs are in {target}; 1 rows without a preference are left out." in capsys.readouterr().err
    assert main(["votes", booth.run, "--export", str(tmp_path / "none" / "x.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_only_those_who_are_named_count_and_a_wrong_name_asks_no_judge(booth, capsys):
    assert main(["votes", booth.run, "--only", "ada"]) == 0
    said = capsys.readouterr().out
    assert "1 other voters don't count." in said
    assert "Grace" not in said
    with served(prefers_marker) as endpoint:
        judge = ["--judge", endpoint.url, "--judge-model", "m"]
        assert main(["votes", booth.run, "--only", "Ada", "--only", "Bob", *judge]) == 2
    told = capsys.readouterr()
    assert "--only: nobody called bob has voted on the answers of this run" in told.err
    assert "judge:m" not in told.err


def test_votes_of_others_are_dropped_only_beside_those_that_stay(booth, capsys):
    assert main(["votes", booth.run, "--drop-others"]) == 2
    assert "--drop-others: say with --only whose votes stay" in capsys.readouterr().err
    assert main(["votes", booth.run, "--only", "Nobody", "--drop-others"]) == 2
    assert main(["votes", booth.run, "--only", "Ada", "--drop-others"]) == 0
    told = capsys.readouterr()
    assert "The votes of 1 others are dropped; all as they were before are in" in told.err
    assert "don't count" not in told.out
    assert main(["votes", booth.run, "--only", "Grace"]) == 2


def test_a_judge_votes_in_the_terminal(booth, capsys):
    with served(prefers_marker) as endpoint:
        assert main(["votes", booth.run, "--judge", endpoint.url, "--judge-model", "m"]) == 0
    told = capsys.readouterr()
    assert "judge:m: 3 of 3 rows" in told.err
    assert "judge:m: The adapter is preferred in 3 of 3 rows" in told.out
    assert "Agrees with people in 50% of 2 rows." in told.out
    assert main(["votes", booth.run, "--judge", "nowhere", "--judge-model", "m"]) == 2
    assert "--judge: give the address" in capsys.readouterr().err


def test_a_run_without_answers_is_a_sentence(store, capsys):
    assert main(["votes", planted.running(store)]) == 1
    assert "recorded no answers to vote on" in capsys.readouterr().err
