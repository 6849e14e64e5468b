"""A judge over a run: both orders, ties where the order decides, progress, resume, and no key anywhere."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from pipeline.errors import InputError, LabError
from pipeline.runs.voting import ballots, blind_rows, judge_client, judging, vote_result
from pipeline.runs.voting.judge_client import Judge
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED, RUNNING
from tests.helpers.judges import MARKER, always_first, prefers_marker, said, served
from tests.helpers.lab import until
from tests.helpers.votes import SECRET, Booth, rows

KEY = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(judge_client, "LONGEST_WAIT", 0.0)


def judged(store, booth: Booth, url: str, key: str = ""):
    told = []
    facts = judging.now(store, booth.run, Judge(url, "m", key), lambda known: told.append(dict(known)))
    return facts, told


def result(booth: Booth):
    return vote_result.result(blind_rows.load(booth.answers), ballots.read(booth.folder))


def test_a_judge_that_prefers_a_text_votes_for_it_in_both_orders(store):
    booth = Booth(store, rows(6))
    with served(prefers_marker) as endpoint:
        facts, told = judged(store, booth, endpoint.url)
    assert (facts["status"], facts["done"], facts["rows"], facts["order_decided"]) == (DONE, 6, 6, 0)
    assert [known["done"] for known in told][-2:] == [6, 6]
    assert len(endpoint.asked) == 12
    (judge,) = result(booth)["judges"]
    assert (judge["voter"], judge["adapter"], judge["rows"]) == ("judge:m", 6, 6)
    assert judging.facts(booth.folder) == facts


def arriving(endpoint, prompt: str) -> list[str]:
    """What came about a prompt, in the order in which it came, as it was sent."""
    return [json.dumps(one) for one in endpoint.asked if f'{prompt}\\"' in json.dumps(one)]


def test_no_byte_and_no_order_of_arrival_tells_the_judges_endpoint_a_side(store):
    """The same secret with the texts of the sides swapped: all that is sent is the same, but for the texts,
    and the adapter's comes first in about half of the first questions."""
    told = []
    for answers in (rows(60), rows(60, base="of the adapter", adapter="of the base")):
        booth = Booth(store, answers)
        booth.ballots.parent.mkdir()
        (booth.ballots.parent / "secret").write_bytes(SECRET)
        with served(prefers_marker) as endpoint:
            judged(store, booth, endpoint.url)
        told.append(endpoint)
    first = 0
    for number in range(60):
        mine, others = (arriving(endpoint, f"Question {number}?") for endpoint in told)
        assert len(mine) == 2
        swapped = [one.replace("of the base", "@").replace("of the adapter", "of the base") for one in others]
        assert mine == [one.replace("@", "of the adapter") for one in swapped]
        first += "of the adapter" in mine[0].rpartition("answer_b")[0]
        rest = mine[0].replace("of the base", "").replace("of the adapter", "")
        assert not [word for word in ("base", "adapter", "tuned", "token_", "loss") if word in rest]
    assert 15 < first < 45
    assert {one["content-length"] for one in told[0].headers} == {
        one["content-length"] for one in told[1].headers
    }


def test_a_judge_that_always_says_the_first_makes_ties_only(store):
    booth = Booth(store, rows(5))
    with served(always_first) as endpoint:
        facts, _ = judged(store, booth, endpoint.url)
    assert facts["order_decided"] == 5
    assert [vote.choice for vote in ballots.read(booth.folder).of(Judge("", "m").voter).values()] == [
        "tie"
    ] * 5


def test_both_bad_is_kept_and_a_tie_in_one_order_is_a_tie(store):
    booth = Booth(store, rows(2))
    replies = {
        0: lambda question: "BAD",
        1: lambda question: "TIE" if MARKER in question["answer_a"] else "A",
    }
    with served(
        lambda question: said(replies[int(question["prompt"].split()[1][:-1])](question))
    ) as endpoint:
        facts, _ = judged(store, booth, endpoint.url)
    assert {n: vote.choice for n, vote in ballots.read(booth.folder).of(Judge("", "m").voter).items()} == {
        0: "bad", 1: "tie",
    }  # fmt: skip
    assert facts["order_decided"] == 0


def test_it_resumes_where_it_failed_and_asks_no_row_twice(store):
    booth, count = Booth(store, rows(12)), []

    def breaks(question):
        count.append(question)
        return prefers_marker(question) if len(count) <= 12 else (500, "")

    with served(breaks) as endpoint, pytest.raises(LabError, match=r"status 500.*resumes"):
        judged(store, booth, endpoint.url)
    facts = judging.facts(booth.folder)
    assert facts["status"] == FAILED
    done = len(ballots.read(booth.folder).of(Judge("", "m").voter))
    assert 0 < done < 12
    with served(prefers_marker) as endpoint:
        facts, told = judged(store, booth, endpoint.url)
    assert (facts["done"], told[0]["done"]) == (12, done)
    assert len(endpoint.asked) == 2 * (12 - done)


def test_rubbish_ends_it_at_once_and_one_bad_row_does_not(store):
    booth = Booth(store, rows(50))
    with (
        served(lambda question: said("I prefer not to say")) as endpoint,
        pytest.raises(LabError, match="another"),
    ):
        judged(store, booth, endpoint.url)
    assert len(endpoint.asked) < 30
    with served(
        lambda question: said("?") if "7?" in question["prompt"] else prefers_marker(question)
    ) as endpoint:
        facts, _ = judged(store, booth, endpoint.url)
    assert (facts["status"], facts["left_out"], facts["done"]) == (DONE, 5, 45)


def test_it_can_be_stopped_and_only_one_works_at_a_time(store):
    booth = Booth(store, rows(30))

    def meanwhile(question):
        if "9?" in question["prompt"] and not refused:
            refused.append(judging.facts(booth.folder)["status"])
            judging.stop(booth.folder)
            with pytest.raises(LabError, match="already"):
                judging.now(store, booth.run, Judge("http://h", "m"), lambda known: None)
        return prefers_marker(question)

    refused: list[str] = []
    with served(meanwhile) as endpoint:
        facts, _ = judged(store, booth, endpoint.url)
    assert (facts["status"], refused) == (CANCELED, [RUNNING])
    assert facts["done"] < 30
    with pytest.raises(InputError, match="not at work"):
        judging.stop(booth.folder)


def test_a_run_that_is_deleted_meanwhile_ends_it(store):
    booth = Booth(store, rows(3))

    def gone(question):
        booth.folder.rename(booth.folder.with_name("gone"))
        return prefers_marker(question)

    with served(gone) as endpoint, pytest.raises((LabError, OSError)):
        judged(store, booth, endpoint.url)
    assert not booth.folder.exists()


def texts(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def test_a_process_of_its_own_judges_and_the_key_is_nowhere(store, monkeypatch, capfd):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    booth = Booth(store, rows(3))
    with served(prefers_marker) as endpoint:
        judging.start(store, booth.run, Judge(endpoint.url, "m", "JUDGE_KEY"))
        commands = [Path(f"/proc/{process.pid}/cmdline").read_text() for process in judging._begun]
        until(lambda: judging.facts(booth.folder)["status"] != RUNNING, "the end of the judge")
    assert judging.facts(booth.folder)["status"] == DONE
    assert {given["authorization"] for given in endpoint.headers} == {f"Bearer {KEY}"}
    said_here = capfd.readouterr()
    assert KEY not in texts(store.home) + "".join(commands) + said_here.out + said_here.err
    assert result(booth)["judges"][0]["adapter"] == 3


def test_a_process_that_was_killed_is_seen_and_resumes(store):
    booth = Booth(store, rows(2))
    with served(lambda question: None) as endpoint:
        judging.start(store, booth.run, Judge(endpoint.url, "m"))
        until(lambda: endpoint.asked, "the first question", 60)
        judging._begun[-1].kill()
        judging._begun[-1].wait()
    facts = judging.facts(booth.folder)
    assert (facts["status"], facts["error"].endswith("it resumes.")) == (INTERRUPTED, True)
    with served(prefers_marker) as endpoint:
        assert judged(store, booth, endpoint.url)[0]["status"] == DONE
    assert os.environ.get("JUDGE_KEY") is None


def test_a_few_judges_of_a_home_work_at_a_time_and_stop_while_the_endpoint_is_silent(store):
    booths = [Booth(store, rows(2)) for _ in range(judging.MOST_JUDGES + 1)]
    asked, go = threading.Event(), threading.Event()

    def silent(question):
        asked.set()
        go.wait(60)
        return always_first(question)

    with served(silent) as endpoint:
        judge = Judge(endpoint.url, "m", "")
        for booth in booths[:-1]:
            judging.start(store, booth.run, judge)
        with pytest.raises(LabError, match="at work on 2 other runs"):
            judging.start(store, booths[-1].run, judge)
        assert asked.wait(60)
        for booth in booths[:-1]:
            judging.stop(booth.folder)
            until(lambda booth=booth: judging.facts(booth.folder)["status"] == CANCELED, "the end")
        until(lambda: all(process.poll() is not None for process in judging._begun), "their processes' end")
        judging.start(store, booths[-1].run, judge)
        judging.stop(booths[-1].folder)
        until(lambda: judging.facts(booths[-1].folder)["status"] == CANCELED, "the end")
        go.set()
