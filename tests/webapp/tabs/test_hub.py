"""The hub's part of the Publish tab. A real process asks; nobody is logged in, or nothing answers."""

from __future__ import annotations

from types import SimpleNamespace

import gradio as gr
import pytest

from pipeline.store import Store
from tests.helpers import planted
from webapp.tabs import hub, publish
from webapp.ui import form

NOBODY = (
    "Nobody is logged in to the Hugging Face Hub here; run `hf auth login` in a terminal, or set HF_TOKEN"
)


@pytest.fixture
def inputs(home):
    with gr.Blocks():
        return hub.build().inputs


@pytest.fixture
def nobody(home, monkeypatch):
    """No login, whatever this machine has."""
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)


def values(inputs: form.Form, **changes):
    """The form's values, as the page would send them."""
    pairs = zip(inputs.keys, inputs.inputs, strict=True)
    return [changes.get(name, component.value) for (_, name), component in pairs]


def test_the_form_is_private_at_first_and_never_asks_for_a_token(inputs):
    told = dict(zip([name for _, name in inputs.keys], values(inputs), strict=True))
    assert (told["public"], told["adapter"]) == (False, True)
    assert not any("token" in name or "password" in name for name in told)


def test_who_am_i_without_a_login_says_what_to_do(home, nobody):
    asking, *_, (notice, facts) = hub.whoami()
    assert asking == (hub.ASKING, None)
    assert notice["text"].startswith(NOBODY)
    assert (notice["kind"], facts) == ("bad", None)


@pytest.mark.parametrize(("role", "kind"), [("read", "bad"), ("write", "good")])
def test_who_am_i_says_what_the_token_may(home, monkeypatch, role, kind):
    found = {"name": "ann", "organisations": ["walkers"], "token": "laptop", "role": role, "scopes": []}
    monkeypatch.setattr(hub.ask, "whoami", lambda home: found)
    *_, (notice, facts) = hub.whoami()
    assert notice["kind"] == kind
    assert facts == [["Account", "ann"], ["Organisations", "walkers"], ["Token", f"laptop ({role})"]]


def test_a_dry_run_shows_findings_and_files_without_a_login(store, nobody, inputs):
    run = planted.finished(store)
    first, *_, last = hub.check(inputs, run, *values(inputs, name="walkers/trips"))
    assert first[:2] == (None, hub.ASKING)
    problems, summary, findings, files = last
    assert (problems, summary["kind"]) == (None, "bad")
    assert "in a private repository on the Hugging Face Hub" in summary["text"]
    assert files["rows"][0] == ["model.onnx", "2.0 kB"]
    said = {row[1]: (row[0]["word"], row[2]) for row in findings["rows"]}
    assert said["Login"][0] == "Blocked"
    assert said["Login"][1].startswith(NOBODY)
    assert said["Version"] == ("Skipped", "is asked once what stands above is good")
    assert len(store.get(run).stages) == 4


def test_what_is_wrong_is_named_and_nothing_is_queued(store, inputs):
    run = planted.finished(store)
    *_, (problems, *_rest) = hub.check(inputs, run, *values(inputs, name="a b"))
    assert problems["items"][0].startswith("name: 'a b' is not allowed")
    problems, *_, stage = hub.publish(inputs, run, *values(inputs, name=""))
    assert problems["items"][0].startswith("name: '' is not allowed")
    assert stage is None
    problems, *_ = hub.publish(inputs, None, *values(inputs, name="trips"))
    assert problems["items"] == ["run: choose a finished run"]
    assert len(store.get(run).stages) == 4


def test_publishing_queues_a_stage(store, inputs):
    run = planted.finished(store)
    *_, stage = hub.publish(inputs, run, *values(inputs, name="trips", public=True, version="2"))
    assert stage == {"run": run, "stage": "publish", "again": hub.AGAIN}
    queued = store.get(run).stage("publish")
    chosen = {name: queued.options[name] for name in ("to", "name", "version", "public", "adapter", "check")}
    assert chosen == {
        "to": "huggingface", "name": "trips", "version": "2", "public": True, "adapter": True, "check": False,
    }  # fmt: skip


def test_what_was_published_is_listed_with_its_link(store: Store):
    run = planted.finished(store)
    assert hub.listed()[0]["empty"] == hub.NONE
    page = "https://huggingface.co/ann/trips/tree/v1"
    stage = store.add_publish(run, {"to": "huggingface"})
    store.claim_publish()
    facts = {
        "name": "ann/trips",
        "version": "1",
        "path": page,
        "private": True,
        "bytes": 2048,
        "verified": True,
    }
    store.finish(run, stage, "done", seconds=1.0, metrics=facts)
    table, *nothing = hub.listed()
    (row,) = table["rows"]
    assert (row[1], row[2], row[4], row[5], row[7]) == ("ann/trips", "1", run, "You", page)
    assert (table["ids"], nothing) == ([page], [None, None])
    title, link = hub.select(SimpleNamespace(_data={"id": page}))
    assert (title["text"], link["href"]) == ("ann/trips, version 1", page)
    assert hub.select(SimpleNamespace(_data={"id": "https://elsewhere.example"})) == (None, None)


def test_only_the_fields_of_the_place_that_was_chosen_are_shown():
    shown = {place: [update["visible"] for update in publish.moved(place)[:7]] for _, place in publish.PLACES}
    assert shown == {
        "local": [True, False, False, False, True, False, False],
        "azureml": [False, True, False, False, True, False, False],
        "huggingface": [False, False, True, False, False, True, False],
        "foundry-local": [False, False, False, True, False, False, True],
    }
