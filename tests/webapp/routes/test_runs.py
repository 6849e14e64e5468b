from __future__ import annotations

import io
import re
import shutil
import zipfile

import pytest
import yaml
from starlette.testclient import TestClient

from docs.make_reference import our_routes
from pipeline import settings
from pipeline.runs import pulls
from pipeline.store import Store
from pipeline.store.run import CANCELED, FAILED
from tests.helpers import planted
from tests.helpers.lab import until
from webapp.app import create
from webapp.routes import watch


@pytest.mark.parametrize(
    "path",
    [
        "/runs/nope.json",
        "/runs/nope/live",
        "/runs/nope/quantize/log?before=9",
        "/runs/RUN/live?stage=nope",
        "/runs/RUN/live?stage=..",
        "/runs/RUN/live?events=nope:0",
        "/runs/RUN/live?events=../quantize:0",
        "/runs/RUN/live?events=:0",
        "/runs/RUN/nope/log?before=9",
        "/runs/RUN/../log?before=9",
        "/runs/RUN/%2e%2e/log?before=9",
        "/runs/RUN/..%2f..%2fruns.db/log?before=9",
        "/runs/..%2f..%2fetc/passwd/log?before=9",
        "/runs/RUN/quantize/log.txt",
        "/runs/%00/quantize/log?before=9",
        "/runs/BEGINNING/live",
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
def test_gradio_serves_no_file_of_ours(own_client, home, path):
    (home / "webapp.lock").touch()
    path = path.replace("HOME", str(home)).replace("ROOT", str(settings.ROOT))
    assert own_client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_gradio_fetches_nothing_for_others(own_client):
    assert own_client.get("/gradio_api/proxy=http://127.0.0.1:1/x").status_code in (400, 403, 404)


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
        assert archive.namelist() == [
            "README.md", "recipe.yaml", "LICENSE-base-model.txt", "report.html", "report.md",
            "ask_server.mjs", "model.onnx", "SHA256SUMS",
        ]  # fmt: skip
        assert yaml.safe_load(archive.read("recipe.yaml"))["data"] == "travel.jsonl"
    assert client.get(f"/runs/{run}.json").json()["exported"] is True


def test_reports_and_zips_have_rows_only_if_asked(client, store):
    run = planted.finished(store, "<script>alert(1)</script>")
    page = client.get(f"/runs/{run}/report.html")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("sandbox; default-src 'none'; style-src")
    assert "<script" not in page.text
    text = client.get(f"/runs/{run}/report.md")
    assert "-report.md" in text.headers["content-disposition"]
    for name in ("report.html", "report.md"):
        assert "Lindenhafen" not in client.get(f"/runs/{run}/{name}").text
        assert "Lindenhafen" in client.get(f"/runs/{run}/{name}?rows=true").text
    for rows, there in (("false", False), ("true", True)):
        zipped = client.get(f"/runs/{run}/model.zip?rows={rows}").content
        with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
            assert ("answers.json" in archive.namelist()) is there
        assert (b"Lindenhafen" in zipped) is there
    assert client.get("/runs/nope/report.html").status_code == 404
    assert client.get(f"/runs/{run}/report.exe").status_code == 422


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
    reply = client.get("/lab/page.js")
    assert reply.headers["content-type"].startswith("text/javascript")
    assert client.get("/lab/page.js", headers={"if-none-match": reply.headers["etag"]}).status_code == 304


def test_a_scorecard_is_told_as_far_as_it_is_measured(client, store):
    assert client.get("/scorecards/nope.json").status_code == 404
    group = planted.scorecard(store)
    told = client.get(f"/scorecards/{group}.json").json()
    assert [row[0] for row in told["table"]["rows"]] == ["rtn", "awq", "gptq"]
    ranges = [point.pop("data_range") for point in told["points"]]
    assert told["points"] == [
        {"name": "rtn", "bytes": 88_000_000, "data": pytest.approx(94.4), "general": 38.9},
        {"name": "awq", "bytes": 88_000_000, "data": pytest.approx(89.6), "general": 34.9},
    ]
    assert [
        low < point["data"] < high for point, (low, high) in zip(told["points"], ranges, strict=True)
    ] == [
        True,
        True,
    ]
    assert told["ended"] is False
    store.claim("cpu")
    store.finish(store.list()[0].id, "quantize", FAILED, error="It broke.")
    until(lambda: client.get(f"/scorecards/{group}.json").json()["ended"], "a look that is new")
    told = client.get(f"/scorecards/{group}.json").json()
    assert told["table"]["rows"][2][-1] == "quantize: It broke."


def test_a_scorecard_that_was_queued_just_now_is_known(client, store, monkeypatch):
    """Although what is known of all of them may be a second old: the page asks once for one that is not."""
    monkeypatch.setattr(watch.watch()._scorecards, "seconds", 60)
    assert client.get("/scorecards/nope.json").status_code == 404
    assert client.get(f"/scorecards/{planted.scorecard(store)}.json").status_code == 200


def test_a_name_that_somebody_made_up_costs_no_look_at_all_that_there_is(client, store, home, monkeypatch):
    """Whatever is asked about it, or how many such names: each look at all runs takes others' time."""
    planted.finished(store)
    (home / "pulled").mkdir()
    for number in range(5):
        (home / "pulled" / f".one-{number}.json").write_text(f'{{"key": "one-{number}", "status": "failed"}}')
    looks, names = [], 10
    all_runs, read = Store.list, pulls._read
    monkeypatch.setattr(
        Store, "list", lambda *given, **more: looks.append("runs") or all_runs(*given, **more)
    )
    monkeypatch.setattr(pulls, "_read", lambda *given: looks.append("pull") or read(*given))
    monkeypatch.setattr(watch.watch()._scorecards, "seconds", 60)
    asked = [(method, route.path) for route in our_routes() for method in route.methods if "{" in route.path]
    assert ("GET", "/scorecards/{group}.json") in asked
    assert ("GET", "/pulled/{key}.json") in asked
    for method, path in asked:
        before = len(looks)
        for number in range(names):
            client.request(method, re.sub(r"{\w+}", f"nobody-{number}", path), json={})
        spent = looks[before:]
        assert spent.count("pull") <= names, f"{method} {path} reads others' pulls"
        # Those of scorecards share theirs: see test_watch.
        assert "scorecards" in path or spent.count("runs") <= 2, f"{method} {path} reads all runs"
