"""The queue's routes, and the sweep's panel."""

from __future__ import annotations

import gradio as gr
import pytest

from pipeline import settings
from pipeline.cli import terminal
from pipeline.errors import InputError
from tests.helpers import planted
from webapp import local_models
from webapp.home import known_run
from webapp.routes import watch
from webapp.tabs import lab
from webapp.tabs.tuning import sweep


def waiting(reply):
    assert reply.status_code == 200
    return [run["name"] for run in reply.json()["waiting"]]


def test_what_runs_and_what_waits(client, store):
    running = planted.running(store, "first")
    planted.queued(store, "second")
    facts = client.get("/queue.json").json()
    assert facts["running"] == [{"id": running, "name": "first", "owner": "", "stage": "finetune"}]
    assert [run["name"] for run in facts["waiting"]] == ["second"]
    assert (facts["paused"], facts["more"]) == (False, 0)


def test_only_the_first_of_a_long_queue_are_sent(client, store, monkeypatch):
    monkeypatch.setattr(watch, "MOST_WAITING", 2)
    for name in "abc":
        planted.queued(store, name)
    facts = client.get("/queue.json").json()
    assert ([run["name"] for run in facts["waiting"]], facts["more"]) == (["a", "b"], 1)


def test_a_run_is_moved_and_the_new_order_answered(client, store):
    runs = [planted.queued(store, name) for name in "abc"]
    assert waiting(client.post(f"/runs/{runs[2]}/move/first")) == ["c", "a", "b"]
    assert client.post(f"/runs/{runs[2]}/move/sideways").status_code == 422
    assert client.post("/runs/nope/move/first").status_code == 404


def test_what_runs_is_not_moved(client, store):
    run = planted.running(store)
    reply = client.post(f"/runs/{run}/move/up")
    assert (reply.status_code, "only waiting runs" in reply.json()["error"]) == (409, True)


def test_the_queue_is_paused_and_opened(client, store):
    planted.queued(store)
    assert client.post("/queue/paused").json()["paused"] is True
    assert store.claim("cpu") is None
    assert client.post("/queue/open").json()["paused"] is False
    assert store.claim("cpu") is not None


def test_how_many_are_before_a_run_follows_the_order(client, store):
    planted.running(store)
    runs = [planted.queued(store, name) for name in "ab"]
    assert ahead(runs) == [1, 2]
    store.move(runs[1], "first")
    assert ahead(runs) == [2, 1]


def test_a_run_says_that_it_waits_for_gpus(store, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("pipeline.system.hardware.gpus", lambda: 2)
    planted.one_stage(store)
    store.claim("cuda:0")
    run = planted.plant(store, stages={"finetune": {"gpus": 2}})
    assert watch.watch().look_now(run, refresh=True).status["waits"] == "waiting for 2 GPUs; 1 is free"
    assert terminal._waits(store, run) == "Waiting for 2 GPUs; 1 is free"
    other = planted.one_stage(store, "other")
    assert watch.watch().look_now(other, refresh=True).status["waits"] == ""


def ahead(runs):
    """As the page is told, without what is remembered for a moment."""
    watch.watch().queue_now()
    return [watch.watch().look_now(run, refresh=True).status["ahead"] for run in runs]


def launch(inputs, model, *axes):
    local_models.offer([model])
    values = [component.value for component in inputs.inputs]
    values[inputs.keys.index(("", "data"))] = str(settings.SAMPLES / "travel.jsonl")
    values[inputs.keys.index(("", "model"))] = str(model)
    return list(sweep.launch(inputs, lab.filled, *values, *axes, "ann"))[-1]


def test_a_sweep_queues_its_runs_and_shows_the_first(store, inputs, model_folder):
    notice, problems, run = launch(inputs, model_folder, "finetune.r", "4, 8", "seed", "1,2")
    assert (notice["text"], problems) == ("Queued 4 runs.", None)
    queued = [store.get(waiting.id) for waiting in store.queue()]
    assert queued[0].id == run
    assert [(r.recipe["finetune"]["r"], r.recipe["seed"], r.owner) for r in queued] == [
        (4, 1, "ann"), (4, 2, "ann"), (8, 1, "ann"), (8, 2, "ann"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "words"),
    [((None, "", None, ""), "Choose an option"), (("finetune.r", "4, -1", None, ""), "finetune.r: -1")],
)
def test_a_sweep_with_a_fault_starts_nothing(store, inputs, model_folder, axes, words):
    notice, problems, run = launch(inputs, model_folder, *axes)
    assert (notice, run, store.list()) == (None, gr.skip(), [])
    assert words in problems["items"][0]


def test_every_option_of_a_stage_can_be_swept_over():
    keys = [key for _, key in sweep.offered()]
    assert {"finetune.r", "quantize.algorithm", "optimize.precision"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_a_run_is_named_by_its_whole_id(client, store):
    run = planted.queued(store)
    for name in (run[:-1], run[-6:], "%", "../..", "x" * 5000):
        assert client.post(f"/runs/{name}/move/up").status_code == 404
        with pytest.raises(InputError):
            known_run(name)
    assert known_run(run).id == run


def test_what_was_just_done_to_the_queue_is_seen_at_once(client, store, monkeypatch):
    """However long the queue that pages ask for is remembered."""
    runs = [planted.queued(store, name) for name in "abc"]
    monkeypatch.setattr(watch.watch()._queues, "seconds", 600)
    assert waiting(client.get("/queue.json")) == ["a", "b", "c"]
    client.post(f"/runs/{runs[2]}/move/first")
    assert waiting(client.get("/queue.json")) == ["c", "a", "b"]
    client.post(f"/runs/{runs[0]}/cancel")
    assert waiting(client.get("/queue.json")) == ["c", "b"]
    client.post("/queue/paused")
    assert client.get("/queue.json").json()["paused"] is True
    client.post(f"/runs/{runs[0]}/retry")
    assert len(waiting(client.get("/queue.json"))) == 3
