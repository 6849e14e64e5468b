"""The page's questions about a vote: resume, undo, reveal, and what a vote is about."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError, LabError
from pipeline.runs.voting import booth as questions
from tests.helpers.votes import Booth, rows


@pytest.fixture
def booth(store) -> Booth:
    return Booth(store, rows(3))


def test_each_voter_resumes_at_the_first_row_without_a_vote(booth):
    assert booth.vote("Ada", "adapter")["row"]["row"] == 1
    booth.vote("Ada", "tie", row=2)
    assert booth.ask("state", voter=" ADA")["row"]["row"] == 1
    assert booth.ask("state", voter="Grace")["row"]["row"] == 0
    done = booth.vote("Ada", "bad")
    assert (done["row"], done["voted"], done["rows"], done["last"]) == (None, 3, 3, 1)


def test_a_vote_can_be_undone_by_another_and_is_shown_as_it_was_given(booth):
    shown = booth.ask("state", voter="Ada")["row"]
    booth.cast("Ada", shown, "b")
    again = booth.ask("state", voter="Ada", row=0)
    assert (again["row"]["choice"], again["last"]) == ("b", 0)
    booth.vote("Ada", "adapter", row=0)
    booth.ask("reveal", voter="Ada")
    assert booth.ask("result", voter="Ada")["adapter"] == 1


def test_who_has_seen_the_sides_votes_no_more_and_others_still_see_none(booth):
    shown = booth.ask("state", voter="Ada")["row"]
    booth.cast("Ada", shown, "a")
    with pytest.raises(LabError, match="after Reveal"):
        booth.ask("result", voter="Ada")
    with pytest.raises(LabError, match="after Reveal"):
        booth.ask("pairs", voter="Ada", to="")
    told = booth.ask("reveal", voter="ada")
    side = told["sides"][0]
    assert shown["a"].startswith(f"of the {side['a']}")
    assert shown["b"].startswith(f"of the {side['b']}")
    assert side["choice"] == side["a"]
    with pytest.raises(LabError, match="your vote on this run is closed"):
        booth.cast("Ada", shown, "b")
    assert booth.ask("state", voter="Ada")["row"] is None
    with pytest.raises(LabError, match="after Reveal"):
        booth.ask("result", voter="Grace")


@pytest.mark.parametrize("wanted", ["adapter", "base"])
def test_votes_are_for_the_text_that_was_read(booth, wanted):
    for voter in ("Ada", "Grace", "Edsger"):
        for _ in range(3):
            booth.vote(voter, wanted)
    found = booth.ask("everything")
    assert (found[wanted], found["rows"]) == (3, 3)


def test_a_vote_on_answers_that_have_changed_does_not_count(booth):
    shown = booth.ask("state", voter="Ada")["row"]
    booth.vote("Ada", "adapter", row=1)
    booth.rewrite(rows(3, adapter="of another adapter"))
    with pytest.raises(LabError, match="have changed"):
        booth.cast("Ada", shown, "a")
    assert booth.ask("state", voter="Ada")["voted"] == 0
    found = booth.ask("everything")
    assert (found["rows"], found["left_out"]) == (0, 1)


def test_another_secret_is_noticed(booth):
    shown = booth.ask("state", voter="Ada")["row"]
    (booth.ballots.parent / "secret").unlink()
    with pytest.raises(LabError, match="have changed"):
        booth.cast("Ada", shown, "a")


@pytest.mark.parametrize(
    "given", [{"row": 3}, {"row": -1}, {"choice": "c"}, {"choice": "base"}, {"voter": ""}]
)
def test_what_does_not_fit_is_a_sentence(booth, given):
    shown = booth.ask("state", voter="Ada")["row"]
    asked = {"voter": "Ada", "row": 0, "choice": "a", "seen": shown["seen"], **given}
    with pytest.raises(InputError):
        booth.ask("vote", **asked)
    with pytest.raises(LabError, match="have changed"):
        booth.ask("vote", voter="Grace", row=0, choice="a", seen=shown["seen"])
    with pytest.raises(LabError, match="have changed"):
        booth.ask("vote", voter="Ada", row=0, choice="a", seen="ü")


def test_equal_answers_are_not_asked(store):
    given = rows(3)
    given[1]["adapter"] = given[1]["base"]
    booth = Booth(store, given)
    told = booth.vote("Ada", "adapter")
    assert (told["row"]["row"], told["row"]["position"], told["rows"], told["equal_answers"]) == (2, 2, 2, 1)
    with pytest.raises(InputError, match="no such row"):
        booth.ask("state", voter="Ada", row=1)


def test_ten_thousand_rows_and_long_answers_are_voted_on(store):
    given = rows(10_000)
    given[0]["base"]["text"] = "of the base " + "word " * 40_000
    booth = Booth(store, given)
    assert booth.vote("Ada", "base")["row"]["row"] == 1
    booth.vote("Ada", "tie", row=9_999)
    assert booth.ask("reveal", voter="Ada")["rows"] == 2
    assert len(booth.ask("everything")["voters"]) == 1
    assert questions.MOST_LISTED < 10_000
