from __future__ import annotations

import io
import shutil
import zipfile

import planted
import pytest
import yaml
from starlette.testclient import TestClient

from pipeline import settings
from pipeline.run import CANCELED, FAILED
from webapp import tail
from webapp.app import create


def test_a_log_is_read_by_offset(client, store):
    run = planted.queued(store)
    planted.log(store, run, "quantize", "one\ntwo\nthr")
    first = client.get(f"/runs/{run}/quantize/log")
    assert first.text == "one\ntwo\n"
    assert first.headers["x-next-offset"] == "8"
    assert first.headers["content-type"] == "text/plain; charset=utf-8"
    planted.log(store, run, "quantize", "ee\n")
    assert client.get(f"/runs/{run}/quantize/log?offset=8").text == "three\n"
    assert client.get(f"/runs/{run}/quantize/log?offset=14").text == ""


def test_a_log_that_is_not_there_yet_is_empty(client, store):
    reply = client.get(f"/runs/{planted.queued(store)}/evaluate/log?offset=0")
    assert (reply.status_code, reply.text, reply.headers["x-next-offset"]) == (200, "", "0")


def test_an_answer_is_at_most_256_kb_and_may_start_at_the_end(client, store):
    run = planted.queued(store)
    planted.log(
        store, run, "quantize", "x" * 99 + "\n" + "y" * 99 + "\n" * 10_000 + "z" * 99 + "\n" * 300_000
    )
    reply = client.get(f"/runs/{run}/quantize/log")
    assert len(reply.content) == tail.MOST_BYTES
    end = client.get(f"/runs/{run}/quantize/log?offset=-1000")
    assert len(end.content) <= 1000
    assert int(end.headers["x-start-offset"]) > 300_000
    assert client.get(f"/runs/{run}/quantize/log?offset=-{2**40}").status_code == 422
    assert client.get(f"/runs/{run}/quantize/log?offset=x").status_code == 422


def test_the_last_line_of_an_ended_stage_is_whole(client, store):
    run = planted.queued(store)
    planted.log(store, run, "quantize", "boom")
    store.claim("cpu")
    assert client.get(f"/runs/{run}/quantize/log").text == ""
    store.finish(run, "quantize", FAILED, error="It broke.")
    assert client.get(f"/runs/{run}/quantize/log").text == "boom"


@pytest.mark.parametrize(
    "path",
    [
        "/runs/nope.json",
        "/runs/nope/quantize/log",
        "/runs/RUN/nope/log",
        "/runs/RUN/../log",
        "/runs/RUN/%2e%2e/log",
        "/runs/RUN/..%2f..%2fruns.db/log",
        "/runs/..%2f..%2fetc/passwd/log",
        "/runs/RUN/quantize/log.txt",
        "/runs/%00/quantize/log",
        "/runs/BEGINNING.json",
        "/docs",
        "/openapi.json",
        "/redoc",
    ],
)
def test_nothing_but_runs_and_stages_of_the_store_is_served(client, store, path):
    run = planted.queued(store)
    path = path.replace("RUN", run).replace("BEGINNING", run[:-2])
    assert client.get(path).status_code == 404


def test_the_status_of_a_running_run(client, store):
    run = planted.running(store)
    status = client.get(f"/runs/{run}.json").json()
    assert (status["id"], status["status"], status["current"]) == (run, "running", "finetune")
    quantize, finetune, *_ = status["stages"]
    assert (quantize["status"], quantize["seconds"], quantize["facts"]) == ("done", 12.5, {})
    assert finetune["facts"]["progress"] == 0.5
    assert finetune["facts"]["message"] == "Training"
    assert status["now"] >= finetune["started"]


def test_a_queued_run_knows_how_many_are_before_it(client, store):
    planted.running(store)
    planted.queued(store)
    assert client.get(f"/runs/{planted.queued(store)}.json").json()["ahead"] == 2


def test_events_are_whole_lines(client, store):
    run = planted.running(store, steps=3)
    reply = client.get(f"/runs/{run}/finetune/events?offset=0")
    assert len(reply.text.splitlines()) == 5
    assert reply.headers["x-next-offset"] == str(len(reply.content))


def test_cancel_and_retry(client, store):
    run = planted.queued(store)
    assert client.post(f"/runs/{run}/retry").status_code == 409
    assert client.post(f"/runs/{run}/cancel").json()["status"] == CANCELED
    again = client.post(f"/runs/{run}/cancel")
    assert again.status_code == 409
    assert "already ended" in again.json()["error"]
    assert client.post(f"/runs/{run}/retry").json()["status"] == "queued"
    assert client.get(f"/runs/{run}/cancel").status_code in (404, 405)
    assert client.post("/runs/nope/cancel").status_code == 404


def test_uploads_stay_in_the_home_and_have_a_limit(home, monkeypatch):
    monkeypatch.setenv("OLIVE_LAB_MAX_UPLOAD_MB", "1")
    with TestClient(create(), base_url="http://localhost:7860") as client:
        small = client.post("/gradio_api/upload", files={"files": ("a.jsonl", b"x" * 1000)})
        assert small.json()[0].startswith(str(home / ".gradio-uploads"))
        assert (home / ".gradio-uploads").stat().st_mode & 0o777 == 0o700
        large = client.post("/gradio_api/upload", files={"files": ("b.jsonl", b"x" * 1_100_000)})
        assert large.status_code == 413
    assert [path.name for path in (home / ".gradio-uploads").rglob("*.jsonl")] in ([], ["a.jsonl"])


def test_only_the_folder_of_the_app_is_emptied_at_its_start(home):
    for name in ("uploads", ".gradio-uploads"):
        (home / name).mkdir()
        (home / name / "kept.jsonl").touch()
    create()
    assert (home / "uploads" / "kept.jsonl").exists()
    assert list((home / ".gradio-uploads").glob("*.jsonl")) == []
    assert (home / ".gradio-uploads").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("path", ["HOME/runs.db", "HOME/webapp.lock", "ROOT/pyproject.toml", "/etc/passwd"])
def test_gradio_serves_no_file_of_ours(client, home, path):
    (home / "webapp.lock").touch()
    path = path.replace("HOME", str(home)).replace("ROOT", str(settings.ROOT))
    assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_gradio_fetches_nothing_for_others(client):
    assert client.get("/gradio_api/proxy=http://127.0.0.1:1/x").status_code in (400, 403, 404)


def test_downloads(client, store):
    run = planted.running(store)
    log = client.get(f"/runs/{run}/finetune/log.txt")
    assert log.headers["content-disposition"] == f'attachment; filename="{run}-finetune.txt"'
    assert log.text.startswith("line 0")
    recipe = client.get(f"/runs/{run}/recipe.yaml")
    assert yaml.safe_load(recipe.text) == store.get(run).recipe


def test_a_finished_run_is_taken_away_as_a_zip(client, store):
    run = planted.finished(store, 'my "trip"\r\nX-Evil: 1')
    reply = client.get(f"/runs/{run}/model.zip")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/zip")
    assert reply.headers["content-disposition"] == f'attachment; filename="my-trip-X-Evil-1-{run}.zip"'
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert int(reply.headers["content-length"]) == len(reply.content)
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["README.md", "recipe.yaml", "model.onnx", "SHA256SUMS"]
        assert yaml.safe_load(archive.read("recipe.yaml"))["data"] == "travel.jsonl"
    assert client.get(f"/runs/{run}.json").json()["exported"] is True


def test_a_run_without_an_export_is_not_taken_away(client, store):
    run = planted.running(store)
    reply = client.get(f"/runs/{run}/model.zip")
    assert reply.status_code == 404
    assert "is running and has no exported model" in reply.json()["detail"]
    assert client.get(f"/runs/{run}.json").json()["exported"] is False
    assert client.get("/runs/nope/model.zip").status_code == 404
    finished = planted.finished(store, "another")
    shutil.rmtree(str(store.get(finished).artifact("onnx")))
    assert "no longer there" in client.get(f"/runs/{finished}/model.zip").json()["detail"]


def test_another_site_cannot_take_a_model_away(client, store):
    run = planted.finished(store)
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get(f"/runs/{run}/model.zip", headers=link).status_code == 403
    assert client.get(f"/runs/{run}/model.zip", headers={"host": "evil.example"}).status_code == 403


def test_plotly_comes_from_here_and_may_be_kept(client):
    reply = client.get("/plotly.min.js?v=1")
    assert len(reply.content) > 1_000_000
    assert "immutable" in reply.headers["cache-control"]


def test_our_scripts_are_asked_for_again_but_not_sent_again(client):
    reply = client.get("/lab/live.js")
    assert reply.headers["content-type"].startswith("text/javascript")
    assert client.get("/lab/live.js", headers={"if-none-match": reply.headers["etag"]}).status_code == 304


def test_a_scorecard_is_told_as_far_as_it_is_measured(client, store):
    assert client.get("/scorecards/nope.json").status_code == 404
    group = planted.scorecard(store)
    told = client.get(f"/scorecards/{group}.json").json()
    assert [row[0] for row in told["table"]["rows"]] == ["rtn", "awq", "gptq"]
    assert told["points"] == [
        {"name": "rtn", "bytes": 88_000_000, "data": 94.4, "general": 38.9},
        {"name": "awq", "bytes": 88_000_000, "data": 89.6, "general": 34.9},
    ]
    assert told["ended"] is False
    store.claim("cpu")
    store.finish(store.list()[0].id, "quantize", FAILED, error="It broke.")
    told = client.get(f"/scorecards/{group}.json").json()
    assert told["ended"] is True
    assert told["table"]["rows"][2][-1] == "quantize: It broke."
