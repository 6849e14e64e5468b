"""The routes of the blind vote: what they send names no side, and what is refused is a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline.runs import check_pool
from pipeline.runs.voting import judge_client
from pipeline.store import Store
from pipeline.store.run import DONE, RUNNING
from tests.helpers import planted
from tests.helpers.judges import prefers_marker, served
from tests.helpers.lab import until
from tests.helpers.votes import SECRET, rows
from webapp.routes import votes

KEY = "sk-a-very-secret-key"
ATTACK = "<img src=x onerror=alert(1)>"


@pytest.fixture
def client(lasting_client: TestClient) -> TestClient:
    return lasting_client


@pytest.fixture
def store(lasting_home: Path) -> Store:
    return Store(lasting_home)


def voted(client: TestClient, run: str, choice: str, voter: str = "Ada") -> dict:
    shown = client.get(f"/votes/{run}.json", params={"voter": voter}).json()["row"]
    given = {"voter": voter, "row": shown["row"], "choice": choice, "seen": shown["seen"]}
    reply = client.post(f"/votes/{run}", json=given)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_reply_is_as_long_and_has_the_same_headers_whichever_side_is_a(client, store):
    """The texts have one length here, so each byte that differs would be another's."""
    first, second = rows(12, base="text 1", adapter="text 2"), rows(12, base="text 2", adapter="text 1")
    told = []
    for answers in (first, second):
        run = planted.finished(store, answers=answers)
        (store.folder(run) / "votes").mkdir()
        (store.folder(run) / "votes" / "secret").write_bytes(SECRET)
        replies = [client.get(f"/votes/{run}.json", params={"voter": "Ada", "row": n}) for n in range(12)]
        told.append([(reply.text, sorted(reply.headers.items())) for reply in replies])
    for (mine, headers), (other, others) in zip(*told, strict=True):
        assert (len(mine), headers) == (len(other), others)
        assert dict(headers)["cache-control"] == "no-store"
        assert "etag" not in dict(headers)
        assert mine.replace("text 1", "x").replace("text 2", "x") == other.replace("text 1", "x").replace(
            "text 2", "x"
        )
    assert [mine[0] for mine in told[0]] != [other[0] for other in told[1]]


def sent(client, monkeypatch, path: str, **given) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The headers of a reply, and its body in the pieces in which the server hands them to the network."""
    headers, pieces = [], []
    app = client.app

    async def watched(scope, receive, send):
        async def keep(message):
            headers.extend(message.get("headers", ()))
            pieces.extend([message["body"]] if message.get("body") else [])
            await send(message)

        await app(scope, receive, keep)

    with monkeypatch.context() as patch:
        patch.setattr(client._transport, "app", watched)
        assert client.get(path, params=given).status_code == 200
    return headers, pieces


@pytest.mark.parametrize("longer", [2, 50_000])
def test_what_is_sent_is_the_same_but_for_the_answers_and_both_arrive_at_once(
    client, store, monkeypatch, longer
):
    """Sides swapped under the same secret: each byte before, between and after the texts, all headers, and
    how the reply comes in pieces. No text comes in a piece of its own, or one would be there first."""
    texts = "short", "long " * longer
    told = []
    for base, adapter in (texts, texts[::-1]):
        run = planted.finished(store, answers=rows(12, base=base, adapter=adapter))
        (store.folder(run) / "votes").mkdir()
        (store.folder(run) / "votes" / "secret").write_bytes(SECRET)
        path = f"/votes/{run}.json"
        told.append([sent(client, monkeypatch, path, voter="Ada", row=row) for row in range(12)])
    shown = set()
    for row, ((headers, pieces), (others, theirs)) in enumerate(zip(*told, strict=True)):
        assert sorted(headers) == sorted(others)
        assert [len(piece) for piece in pieces] == [len(piece) for piece in theirs] == [len(pieces[0])]
        mine, swapped = (json.loads(body)["row"] for body in (pieces[0], theirs[0]))
        assert (mine["a"], mine["b"]) == (swapped["b"], swapped["a"])
        around = []
        for body, one in ((pieces[0], mine), (theirs[0], swapped)):
            first, second = (json.dumps(one[letter], ensure_ascii=False).encode() for letter in "ab")
            around.append(body.replace(first, b"?", 1).replace(second, b"?", 1))
        assert around[0] == around[1], row
        assert around[0].count(b"?") == 2 + 1, "both texts, and the question mark of the prompt"
        shown.add(len(mine["a"]) < len(mine["b"]))
    assert shown == {True, False}


def test_a_vote_from_the_first_row_to_the_pairs(client, store, monkeypatch):
    asked = []
    ask = check_pool.ask
    monkeypatch.setattr(
        check_pool, "ask", lambda function, given: asked.append(function) or ask(function, given)
    )
    run = planted.finished(store, answers=rows(2))
    assert voted(client, run, "a")["row"]["row"] == 1
    pairs = f"/votes/{run}/pairs.jsonl"
    for path in (pairs, f"/votes/{run}/result.json"):
        refused = client.get(path, params={"voter": "Ada"})
        assert (refused.status_code, "after Reveal" in refused.json()["error"]) == (409, True)
    assert voted(client, run, "tie")["row"] is None
    told = client.post(f"/votes/{run}/reveal", json={"voter": "Ada"}).json()
    assert client.get(f"/votes/{run}/result.json", params={"voter": "ADA"}).json() == told
    reply = client.get(pairs, params={"voter": "Ada"})
    side = told["sides"][0]
    assert json.loads(reply.text)["chosen"] == f"of the {side['a']} 00000"
    assert reply.text.count("\n") == 1
    assert f'filename="{run}-pairs.jsonl"' in reply.headers["content-disposition"]
    assert {function.rpartition(":")[2] for function in asked} == {
        "state",
        "vote",
        "reveal",
        "result",
        "pairs",
    }


@pytest.mark.parametrize(
    ("voter", "says"),
    [("", "write it at the top"), ("judge:gpt", "no colon"), (ATTACK, "letters, digits"), ("a\0b", "letters"),
     ("x" * 41, "up to 40 letters")],
)  # fmt: skip
def test_names_that_are_none_are_a_sentence(client, store, voter, says):
    run = planted.finished(store, answers=rows(1))
    reply = client.get(f"/votes/{run}.json", params={"voter": voter})
    assert (reply.status_code, says in reply.json()["error"]) == (409, True)


@pytest.mark.parametrize(
    "given",
    [{"row": 7}, {"choice": "adapter"}, {"seen": "0" * 32}, {"seen": "\ud800"}, {"row": True}, {"row": -1},
     {"row": "../x"}, {"voter": ["a"]}, {"voter": "x" * 201}, {"row": 1e300}, {"row": None}, {"seen": {}}],
)  # fmt: skip
def test_what_does_not_fit_is_a_sentence_and_kept_nowhere(client, store, given):
    run = planted.finished(store, answers=rows(1))
    shown = client.get(f"/votes/{run}.json", params={"voter": "Ada"}).json()["row"]
    asked = json.dumps({"voter": "Ada", "row": 0, "choice": "a", "seen": shown["seen"], **given})
    for body in (asked, f"[{asked}]", "7", "null"):
        reply = client.post(f"/votes/{run}", content=body, headers={"Content-Type": "application/json"})
        assert (reply.status_code, bool(reply.json()["error"])) == (409, True)
    assert client.get(f"/votes/{run}.json", params={"voter": "Ada"}).json()["voted"] == 0


@pytest.mark.parametrize("run", ["nope", "..", "20261122-120000-abcdef", "%2e%2e%2fruns", "x" * 300])
def test_only_runs_of_this_home_can_be_voted_on(client, run):
    assert client.get(f"/votes/{run}.json", params={"voter": "Ada"}).status_code == 404
    assert client.post(f"/votes/{run}/reveal", json={"voter": "Ada"}).status_code in (404, 405)


def test_runs_without_answers_and_deleted_ones_are_a_sentence(client, store):
    merged = [{"prompt": "x", "expected": "", "base": None, "adapter": {"text": "y"}}]
    for run, says in (
        (planted.running(store), "recorded no answers"),
        (planted.finished(store, answers=merged, merged=True), "merged into the weights"),
    ):
        reply = client.get(f"/votes/{run}.json", params={"voter": "Ada"})
        assert (reply.status_code, says in reply.json()["error"]) == (409, True)
    run = planted.finished(store, answers=rows(1))
    shown = client.get(f"/votes/{run}.json", params={"voter": "Ada"}).json()["row"]
    store.delete(run)
    given = {"voter": "Ada", "row": 0, "choice": "a", "seen": shown["seen"]}
    assert "was deleted meanwhile" in client.post(f"/votes/{run}", json=given).json()["error"]


def test_a_page_of_another_site_cannot_vote(client, store):
    run = planted.finished(store, answers=rows(1))
    given = {"voter": "Ada", "row": 0, "choice": "a", "seen": ""}
    for headers in ({"Origin": "https://other.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post(f"/votes/{run}", json=given, headers=headers).status_code == 403


def test_without_a_named_judge_none_is_asked(client, store):
    run = planted.finished(store, answers=rows(1))
    assert client.get(f"/votes/{run}/judge.json").json() == {"model": None, "facts": None}
    reply = client.post(
        f"/votes/{run}/judge", json={"url": "http://127.0.0.1:1/v1", "judge": "http://127.0.0.1:1"}
    )
    assert (reply.status_code, "No judge is named" in reply.json()["error"]) == (409, True)
    assert "not at work" in client.post(f"/votes/{run}/judge/stop").json()["error"]
    assert client.post("/votes/nope/judge").status_code == 404


def test_a_named_judge_votes_in_a_process_and_no_reply_says_where_it_is(client, store, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    run = planted.finished(store, answers=rows(2))
    with served(prefers_marker) as endpoint:
        votes.name_judge(judge_client.checked(endpoint.url, "m", "JUDGE_KEY"))
        try:
            replies = [client.post(f"/votes/{run}/judge")]
            until(
                lambda: client.get(f"/votes/{run}/judge.json").json()["facts"]["status"] != RUNNING, "its end"
            )
            replies += [client.get(f"/votes/{run}/judge.json"), client.get("/config"), client.get("/")]
        finally:
            votes.name_judge(None)
    assert replies[1].json() == {
        "model": "m",
        "facts": {
            "rows": 2,
            "done": 2,
            "left_out": 0,
            "order_decided": 0,
            "status": DONE,
            "error": None,
            "model": "m",
        },
    }
    told = "".join(reply.text for reply in replies)
    assert not [word for word in (KEY, "JUDGE_KEY", endpoint.url) if word in told]
    found = client.post(f"/votes/{run}/reveal", json={"voter": "Ada"}).json()
    assert [judge["adapter"] for judge in found["judges"]] == [2]
