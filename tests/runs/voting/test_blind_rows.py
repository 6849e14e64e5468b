"""Nothing that a voter gets before a vote names a side."""

from __future__ import annotations

import json
import sys

import pytest

from pipeline.errors import LabError
from pipeline.runs.voting import ballots, blind_rows
from tests.helpers import planted
from tests.helpers.votes import SECRET, Booth, rows

SWAPPED = {"base": "of the adapter", "adapter": "of the base"}
VOTERS = [f"voter {number}" for number in range(20)]


def states(booth: Booth, voter: str) -> list[str]:
    """What the page gets for each row, as it is sent."""
    return [json.dumps(booth.ask("state", voter=voter, row=number)) for number in range(40)]


def test_no_byte_before_a_vote_tells_a_side_and_both_come_first_equally_often(store):
    """The same secret with swapped answers: all that differs is which text is A, and which B."""
    booth, other = Booth(store, rows(40)), Booth(store, rows(40, **SWAPPED))
    for one in (booth, other):
        one.ballots.parent.mkdir()
        (one.ballots.parent / "secret").write_bytes(SECRET)
    first = 0
    for voter in VOTERS:
        for given, exchanged in zip(states(booth, voter), states(other, voter), strict=True):
            told = json.loads(given)["row"]
            assert sorted(told) == ["a", "b", "expected", "position", "prompt", "row", "seen", "system"]
            first += "adapter" in told["a"]
            swap = {"of the base": "of the adapter", "of the adapter": "of the base"}
            told["a"], told["b"] = (
                next(text.replace(old, new) for old, new in swap.items() if old in text)
                for text in (told["a"], told["b"])
            )
            assert json.loads(exchanged) == {**json.loads(given), "row": told}
            rest = given.replace("of the base", "").replace("of the adapter", "")
            assert not [word for word in ("base", "adapter", "tokens", "loss", "verdict") if word in rest]
    assert 340 < first < 460  # of 800: more than 4 standard deviations to either side


def test_the_order_differs_between_rows_voters_and_runs(store):
    booth = Booth(store, rows(40))
    row = blind_rows.load(booth.answers).asked[0]
    ada, grace = (ballots.person(name)[0] for name in ("Ada", "Grace"))
    others = [blind_rows.sides(bytes([n]) * 32, row, ada) for n in range(40)]
    assert 8 < others.count(("base", "adapter")) < 32
    mine, hers = (
        [blind_rows.sides(SECRET, one, voter) for one in blind_rows.load(booth.answers).asked]
        for voter in (ada, grace)
    )
    assert 8 < sum(one == other for one, other in zip(mine, hers, strict=True)) < 32
    assert mine == [blind_rows.sides(SECRET, one, ballots.person("ada")[0]) for one in
                    blind_rows.load(booth.answers).asked]  # fmt: skip


def test_the_same_work_is_done_whichever_side_is_a(store):
    """What takes no other path takes no other time: as many lines of code are run for either order."""
    row = blind_rows.load(Booth(store, rows(1)).answers).asked[0]
    found: dict[tuple[str, str], set[int]] = {}
    for name in VOTERS:
        voter = ballots.person(name)[0]
        lines = 0

        def count(frame, event, given):
            nonlocal lines
            lines += event == "line"
            return count

        before = sys.gettrace()
        sys.settrace(count)
        blind_rows.shown(SECRET, row, voter)
        sys.settrace(before)
        found.setdefault(blind_rows.sides(SECRET, row, voter), set()).add(lines)
    assert len(found) == 2
    assert len(set.union(*found.values())) == 1


def test_a_cut_answer_is_marked_on_the_page_only(store):
    given = rows(1)
    given[0]["base"]["cut"] = True
    booth = Booth(store, given)
    told = booth.ask("state", voter="Ada")["row"]
    assert sorted([told["a"], told["b"]])[1].endswith("[cut at the limit]")
    assert blind_rows.load(booth.answers).asked[0].base == "of the base 00000"


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (
            [{"prompt": "x", "expected": "y", "base": None, "adapter": {"text": "y"}}],
            "merged into the weights",
        ),
        ([{"prompt": "x", "base": {"text": "y"}, "adapter": {"text": "y"}}] * 3, "equal answers to all 3"),
        ([{"prompt": "x", "base": 7, "adapter": {"text": "y"}}], "cannot be read (TypeError)"),
        ([{"base": {"text": "z"}, "adapter": {"text": "y"}}], "cannot be read (KeyError)"),
        ([None], "cannot be read"),
    ],
)
def test_answers_that_cannot_be_voted_on_are_a_sentence(store, answers, says):
    with pytest.raises(LabError) as refused:
        Booth(store, answers).ask("state", voter="Ada")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "written", ["", "{}", "[]", '{"rows": 7}', '{"rows": {"a": 1}}', "[" * 100_000, "\xff"]
)
def test_a_broken_file_of_answers_is_a_sentence(store, written):
    booth = Booth(store, rows(1))
    booth.answers.write_text(written, encoding="latin-1")
    with pytest.raises(LabError, match="cannot be read"):
        booth.ask("state", voter="Ada")


def test_where_nothing_was_asked_it_says_why(store):
    booth = Booth(store, rows(1))
    booth.answers.write_text(json.dumps({"rows": [], "why_none": "No answers: all 3 prompts are long."}))
    with pytest.raises(
        LabError, match=r"^There is nothing to vote on. No answers: all 3 prompts are long\.$"
    ):
        booth.ask("state", voter="Ada")


def test_a_run_without_answers_says_how_to_record_some(store):
    run = planted.running(store)
    with pytest.raises(LabError, match=rf"run {run} --set evaluate.prompts=50"):
        blind_rows.recorded(store.get(run))
    done = planted.finished(store)
    store.delete(done)
    with pytest.raises(LabError, match="was deleted meanwhile"):
        blind_rows.recorded(store.get(done))


def test_too_many_answers_are_not_read(store, monkeypatch):
    booth = Booth(store, rows(3))
    monkeypatch.setattr(blind_rows, "LARGEST", 100)
    with pytest.raises(LabError, match="too much for a vote"):
        booth.ask("state", voter="Ada")


def test_text_that_a_page_cannot_hold_is_mended(store):
    given = rows(1)
    given[0]["base"]["text"] = "half \ud800 <script>"
    assert "half � <script>" in json.dumps(Booth(store, given).ask("state", voter="A"), ensure_ascii=False)
