"""The handlers of the Publish tab, called as Gradio calls them."""

from __future__ import annotations

import errno

import gradio as gr
import pytest

from pipeline.errors import LabError
from pipeline.publish import targets
from tests.helpers import planted
from tests.helpers.page import FULL, failing
from webapp.tabs import publish
from webapp.ui import form


@pytest.fixture
def registry():
    with gr.Blocks():
        made = form.Form()
        made.fields("publish", targets.PUBLISHERS["local"].Options)
    return made


def test_a_dry_run_writes_nothing(store, registry, home):
    run = planted.finished(store)
    *_, (problems, planned, files) = publish.check(registry, run, "travel", "", False, "")
    assert problems is None
    assert planned["text"].startswith("Version 1 of travel: 1 files")
    assert files["rows"] == [["model.onnx", "2.0 kB"]]
    assert not (home / "registry").exists()


def test_publishing_queues_a_stage_of_the_run(store, registry):
    run = planted.finished(store)
    problems, *_, progress = publish.publish(registry, run, "travel", "", False, "")
    assert (problems, progress) == (None, {"run": run, "stage": "publish"})
    assert store.get(run).stage("publish").status == "queued"


@pytest.mark.parametrize(
    ("error", "words"), [(OSError(errno.ENOSPC, "x"), FULL), (LabError("Locked; try again."), "Locked; try")]
)
def test_what_keeps_a_version_from_being_published_is_a_sentence(store, registry, monkeypatch, error, words):
    run = planted.finished(store)
    monkeypatch.setattr(publish.submit, "publish", failing(error))
    monkeypatch.setattr(publish.targets.PUBLISHERS["local"], "plan", failing(error))
    given = registry, run, "travel", "", False, ""
    for problems, *rest in ([*publish.check(*given)][-1], publish.publish(*given)):
        assert problems["items"][0].startswith(words)
        assert set(rest) == {None}


@pytest.mark.parametrize(
    ("name", "version", "word"), [("no good!", "", "name"), ("good", "zero", "version"), ("", "", "name")]
)
def test_bad_names_and_versions_are_refused_before_anything_is_queued(store, registry, name, version, word):
    run = planted.finished(store)
    problems, *_ = publish.publish(registry, run, name, version, False, "")
    assert problems["items"][0].startswith(word)
    assert len(store.get(run).stages) == 4
    assert publish.publish(registry, None, "x", "", False, "")[0]["items"] == ["run: choose a finished run"]
