"""What the panel of base models answers, called as Gradio calls it."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from pipeline.errors import InputError
from pipeline.inputs.models import base_models, catalogue
from pipeline.runs import cached_models, pulls
from pipeline.store.run import DONE, RUNNING
from pipeline.system import capacity
from pipeline.system.capacity import Capacity
from tests.helpers.fake_hub import served
from tests.helpers.lab import CONFIG, until
from tests.helpers.planted import plant
from webapp import local_models
from webapp.tabs import models
from webapp.ui import choices

GB = 1000**3
NAME = "org--tiny-0123456789ab"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(capacity, "of", lambda folder: Capacity(16 * GB, None, 500 * GB))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with served(tmp_path, monkeypatch) as made:
        files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"x" * 3000}
        made.put("org/tiny", {**files, "tokenizer_config.json": b"{}"})
        made.repos["org/tiny"].card = {"license": "mit"}
        yield made


@pytest.fixture
def cached(home):
    folder = home / "models" / NAME
    base_models.mark(folder)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 2000)
    return folder


def event(name):
    return SimpleNamespace(_data={"id": name})


def last(steps):
    *_, told = steps
    return told


def test_each_choice_says_size_licence_context_gate_and_fit(home):
    labels = {value: label for label, value in choices.models()}
    assert list(labels) == [entry.id for entry in catalogue.CATALOGUE]
    assert labels["meta-llama/Llama-3.1-8B-Instruct"] == (
        "Llama 3.1 8B · 8.0 B · 16.1 GB · Llama 3.1 · 131,072 tokens · gated · does not fit"
    )
    assert labels["Qwen/Qwen2.5-0.5B-Instruct"].endswith("· 988.1 MB · Apache-2.0 · 32,768 tokens · fits")


def test_a_model_of_the_hub_is_looked_up_downloaded_and_deleted(home, hub):
    notice, problems, facts, _, get = last(models.look("org/tiny"))
    assert (problems, get["interactive"], notice["kind"]) == (None, True, "good")
    assert dict(facts["rows"])["License"] == "mit"
    assert dict(facts["rows"])["Weights"] == "3.0 kB"
    assert dict(facts["rows"])["In this lab"] == "no"
    problems, progress, _ = last(models.fetch("org/tiny"))
    assert problems is None
    until(lambda: pulls.facts(home, progress["pulled"])["status"] != RUNNING, "the download")
    assert pulls.facts(home, progress["pulled"])["status"] == DONE
    get, table, *_ = models.ended()
    (name,) = table["ids"]
    assert last(models.look("org/tiny"))[4]["interactive"] is False
    assert models.choose(event(name))[2]["interactive"]
    assert models.ask_delete(name)["id"] == name
    table, note, chosen, drop = models.delete(event(name))
    assert (table["ids"], chosen, drop["interactive"]) == ([], "", False)
    assert note["text"].endswith("are free again.")


@pytest.mark.parametrize("model", ["/etc", "/", "../x", "", None, 5, "a b"])
def test_what_is_not_offered_is_not_looked_at(home, model, monkeypatch):
    monkeypatch.setattr(base_models, "resolve", lambda model: pytest.fail(f"{model} was looked at"))
    assert last(models.look(model))[1]["title"] == models.REFUSED
    assert last(models.fetch(model))[0]["title"] == "Nothing is downloaded"
    with pytest.raises(InputError):
        models.use(model)


def test_an_offered_folder_is_told_and_needs_no_download(home, model_folder):
    local_models.offer([model_folder])
    _notice, problems, facts, _, get = last(models.look(str(model_folder)))
    assert (problems, get["interactive"]) == (None, False)
    assert dict(facts["rows"])["Gated"] == "no"
    assert "is on this machine already" in last(models.fetch(str(model_folder)))[0]["items"][0]
    assert models.use(str(model_folder))[0] == str(model_folder)


def test_one_that_does_not_fit_says_why(home, model_folder, monkeypatch):
    monkeypatch.setattr(capacity, "of", lambda folder: Capacity(GB // 2, None, 500 * GB))
    local_models.offer([model_folder])
    notice, *_ = last(models.look(str(model_folder)))
    assert (notice["kind"], notice["note"]) == (
        "bad",
        "needs about 1.0 GB of memory, and 450.0 MB can be used here",
    )


def test_one_in_use_is_not_deleted(store, cached):
    run = plant(store, model="org/tiny@0123456789abcdef")
    name, note, drop = models.choose(event(NAME))
    assert (name, drop["interactive"]) == (NAME, False)
    assert note["text"].endswith(f"used by {run}")
    _, note, *_ = models.delete(event(NAME))
    assert note["kind"] == "bad"
    assert cached.is_dir()


def test_a_folder_of_somebodys_stays_and_its_path_is_not_told(home, cached):
    cached.rename(cached.with_name("mine"))
    assert models.listed()[0]["rows"][0][3] == "put there by somebody, stays"
    assert not models.choose(event("mine"))[2]["interactive"]
    _, note, *_ = models.delete(event("mine"))
    assert str(home) not in note["text"]
    assert (home / "models" / "mine").is_dir()


@pytest.mark.parametrize("name", ["../datasets", "/", "", "x" * 5000])
def test_no_other_folder_is_named(home, cached, name):
    assert models.choose(event(name))[2]["interactive"] is False
    assert models.ask_delete(name) is None
    assert models.delete(event(name))[1]["kind"] == "bad"
    assert [one.name for one in cached_models.listed(models.store())] == [NAME]


def test_a_name_that_no_page_can_hold_spoils_no_list(home):
    (home / "models" / os.fsdecode(b"mod\xe8le")).mkdir(parents=True)
    table = models.listed()[0]
    assert json.dumps(table, ensure_ascii=False).encode()
    assert len(table["ids"]) == 1
