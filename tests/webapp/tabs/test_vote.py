"""The handlers of the Vote tab: which run is voted on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.helpers import planted
from tests.helpers.votes import rows
from webapp.tabs import vote


def address(**given):
    return SimpleNamespace(query_params=given)


def test_the_newest_run_with_answers_is_chosen_or_the_one_that_was_or_is_in_the_address(store):
    older, newer = (planted.finished(store, name, rows(2)) for name in ("older", "newer"))
    planted.running(store)
    choices, booth, notice = vote.arrive(None, address())
    assert [value for _, value in choices["choices"]] == [newer, older]
    assert (choices["value"], booth, notice) == (newer, {"run": newer}, None)
    assert vote.arrive(None, address(vote=older))[1] == {"run": older}
    assert vote.arrive(newer, address(vote=older))[1] == {"run": newer}
    assert vote.arrive("nope", address(vote="../x"))[1] == {"run": newer}


def test_a_run_without_answers_and_no_run_are_a_notice(store):
    assert vote.arrive(None, address())[1:] == (None, vote.NONE)
    booth, notice = vote.choose(planted.running(store))
    assert booth is None
    assert "recorded no answers" in notice["text"]


@pytest.mark.parametrize("run", ["../../etc", "\0", "x" * 300])
def test_an_id_that_is_none_is_a_notice(store, run):
    booth, notice = vote.choose(run)
    assert (booth, notice["kind"]) == (None, "bad")
