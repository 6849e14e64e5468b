"""What the page polls. Answers may be a fraction of a second old, so what follows a change waits for it."""

from __future__ import annotations

import json

from pipeline.store.run import DONE, FAILED
from pipeline.system import clock
from pipeline.worker.stage_process import PROCESS
from tests.helpers import planted
from tests.helpers.lab import until
from webapp.routes import tail


def ask(client, run, **query):
    reply = client.get(f"/runs/{run}/live", params=query)
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store")
    return reply.json()


def test_a_log_is_read_by_offset(client, store):
    run = planted.queued(store)
    planted.log(store, run, "quantize", "one\ntwo\nthr")
    assert ask(client, run)["log"] == {
        "stage": "quantize", "start": 0, "next": 8, "size": 11, "text": "one\ntwo\n"
    }  # fmt: skip
    planted.log(store, run, "quantize", "ee\n")
    assert ask(client, run, stage="quantize", log=8)["log"]["text"] == "three\n"
    assert ask(client, run, stage="quantize", log=14)["log"]["text"] == ""


def test_a_log_that_is_not_there_yet_is_empty(client, store):
    told = ask(client, planted.queued(store), stage="evaluate")["log"]
    assert told == {"stage": "evaluate", "start": 0, "next": 0, "size": 0, "text": ""}


def test_an_answer_is_at_most_256_kb_and_may_start_at_the_end(client, store):
    run = planted.queued(store)
    planted.log(store, run, "quantize", ("x" * 99 + "\n") * 10_000)
    assert len(ask(client, run, log=0)["log"]["text"]) == tail.MOST_BYTES // 100 * 100
    end = ask(client, run, log=-1000)["log"]
    assert len(end["text"]) <= 1000
    assert (end["start"], end["size"]) == (999_100, 1_000_000)
    for log in (-(2**40), "x"):
        assert client.get(f"/runs/{run}/live?log={log}").status_code == 422


def test_earlier_lines_are_read_backwards(client, store):
    run = planted.queued(store)
    planted.log(store, run, "quantize", "one\ntwo\nthree\n")
    told = client.get(f"/runs/{run}/quantize/log?before=8").json()
    assert told == {"start": 0, "next": 8, "size": 14, "text": "one\ntwo\n"}
    assert client.get(f"/runs/{run}/quantize/log?before=-1").status_code == 422


def test_the_last_line_of_an_ended_stage_is_whole(client, store):
    run = planted.queued(store)
    planted.log(store, run, "quantize", "boom")
    store.claim("cpu")
    assert ask(client, run)["log"]["text"] == ""
    store.finish(run, "quantize", FAILED, error="It broke.")
    until(lambda: ask(client, run)["log"]["text"] == "boom", "the last line")


def test_the_status_of_a_running_run(client, store):
    run = planted.running(store)
    status = client.get(f"/runs/{run}.json").json()
    assert status == ask(client, run)["run"] | {"now": status["now"]}
    assert (status["id"], status["status"], status["current"]) == (run, "running", "finetune")
    quantize, finetune, *_ = status["stages"]
    assert (quantize["status"], quantize["seconds"], quantize["facts"]) == ("done", 12.5, {})
    assert finetune["facts"]["progress"] == 0.5
    assert finetune["facts"]["message"] == "Training"
    assert status["now"] >= finetune["started"]


def test_the_verdict_of_a_finished_run(client, store):
    said = {"outcome": "better", "text": "Better: most.", "worse": 3}
    run = planted.finished(store, verdict=said, changes=["evaluate.data=prompts.jsonl"])
    stages = client.get(f"/runs/{run}.json").json()["stages"]
    assert [stage["verdict"] for stage in stages] == ["", "", "", "Better: most."]
    assert [stage["worse"] for stage in stages] == [0, 0, 0, 3]
    assert [stage["asked"] for stage in stages] == ["", "", "", "prompts.jsonl"]


def test_how_long_a_stage_has_run_is_told_by_its_process_and_not_by_the_clock(client, store):
    run = planted.running(store)
    assert client.get(f"/runs/{run}.json").json()["stages"][1]["elapsed"] is None
    mark = clock.mark()
    mark["monotonic"] -= 100
    (store.folder(run, "finetune") / PROCESS).write_text(json.dumps({"pid": 1, **mark}))

    def elapsed():
        return client.get(f"/runs/{run}.json").json()["stages"][1]["elapsed"]

    assert 100 <= until(elapsed, "the time") < 160


def test_a_queued_run_knows_how_many_are_before_it(client, store):
    planted.running(store)
    planted.queued(store)
    assert client.get(f"/runs/{planted.queued(store)}.json").json()["ahead"] == 2


def test_events_are_whole_lines_of_the_stages_asked_for(client, store):
    run = planted.running(store, steps=3)
    first = ask(client, run)["events"]
    assert list(first) == ["quantize", "finetune"]
    told = first["finetune"]
    assert len(told["text"].splitlines()) == 5
    planted.event(store, run, "finetune", step=4)
    more = ask(client, run, events=f"finetune:{told['next']}")["events"]
    assert list(more) == ["finetune"]
    assert json.loads(more["finetune"]["text"])["step"] == 4
    assert ask(client, run, events="")["events"] == {}
    for events in ("finetune", "finetune:x", "finetune:-1", f"finetune:{'9' * 30}"):
        assert client.get(f"/runs/{run}/live", params={"events": events}).status_code == 422


def test_the_time_a_run_still_takes_is_known_from_one_before(client, store):
    planted.finished(store)
    run = planted.running(store)  # finetune says 42 s; optimize was reused, evaluate took 20 s
    told = ask(client, run)["run"]["progress"]
    assert told["eta_seconds"] is None
    assert told["at_least_seconds"] == 62
    assert 0.2 < told["fraction"] < 0.9
    queued = planted.queued(store)
    assert ask(client, queued)["run"]["progress"] is None


def activity(client, **query):
    return client.get("/activity.json", params=query).json()


def test_a_page_that_comes_is_told_of_no_end_and_then_of_each_once(client, store):
    planted.finished(store, "old")
    on = planted.running(store, "on")
    first = activity(client)
    assert first == {"newest": on, "active": [on], "ended": []}
    store.finish(on, "finetune", FAILED, error="It broke.")
    short = planted.finished(store, "short")  # begun and ended between two looks
    known = {"after": first["newest"], "were": ",".join(first["active"])}
    told = until(lambda: (t := activity(client, **known))["ended"] and t, "the ends")
    assert told["ended"] == [
        {"id": on, "name": "on", "status": FAILED},
        {"id": short, "name": "short", "status": DONE},
    ]
    assert (told["newest"], told["active"]) == (short, [])
    assert activity(client, after=told["newest"], were="")["ended"] == []


def test_an_empty_home_has_no_activity(client):
    assert activity(client) == {"newest": "", "active": [], "ended": []}
    assert activity(client, after="nope", were="nope")["ended"] == []
