"""Foundry Local's part of the Publish tab. A real process compares prompts."""

from __future__ import annotations

import gradio as gr
import pytest

from tests.helpers import exports, planted
from tests.helpers.planted import finish_all, plant
from webapp.tabs import publish
from webapp.tabs.devices import foundry_local


@pytest.fixture
def inputs(home):
    with gr.Blocks():
        return foundry_local.build().inputs


@pytest.fixture
def run(store, tmp_path):
    """A finished run with a merged export."""
    folder = exports.write(tmp_path / "export", merged=True)
    made = [{"name": "model", "kind": "onnx", "path": str(folder), "bytes": 1}]
    return finish_all(store, plant(store), {"optimize": {"artifacts": made}}).id


def values(inputs, **changes):
    """The form's values, as the page would send them."""
    pairs = zip(inputs.keys, inputs.inputs, strict=True)
    return [changes.get(name, component.value) for (_, name), component in pairs]


def test_no_browser_names_a_folder(inputs):
    assert [name for _, name in inputs.keys] == ["name", "version", "description", "patience"]


def test_a_dry_run_compares_prompts(store, run, inputs):
    first, *_, last = foundry_local.check(inputs, run, *values(inputs, name="trips"))
    assert first[:2] == (None, foundry_local.ASKING)
    problems, summary, findings, files = last
    assert (problems, summary["kind"]) == (None, "good")
    assert ["model.onnx.data", "33.7 kB"] in files["rows"]
    said = {row[1]: (row[0]["word"], row[2]) for row in findings["rows"]}
    assert said["Prompts"] == ("Good", "71 prompts were compared with training by their tokens")
    assert len(store.get(run).stages) == 4


def test_publishing_queues_a_stage_and_what_is_wrong_is_named(store, run, inputs):
    *rest, progress = foundry_local.publish(inputs, run, *values(inputs, name="trips"))
    assert (set(rest), progress) == ({None}, {"run": run, "stage": "publish"})
    assert store.get(run).stage("publish").options["to"] == "foundry-local"
    problems, *rest = foundry_local.publish(inputs, run, *values(inputs, name="a b"))
    assert problems["items"][0].startswith("name: 'a b' is not allowed")
    *_, (problems, *_rest) = foundry_local.check(
        inputs, planted.finished(store), *values(inputs, name="trips")
    )
    assert "its export is not whole; run its recipe again" in problems["items"][0]


def test_what_was_published_is_listed(store, run, tmp_path):
    stage = store.add_publish(run, {"to": "foundry-local"})
    store.claim_publish()
    facts = {"name": "trips", "version": "1", "path": str(tmp_path), "id": "trips-generic-cpu:1"}
    store.finish(run, stage, "done", seconds=1.0, metrics={**facts, "bytes": 2048, "verified": True})
    ((_, *told),) = foundry_local.listed()["rows"]
    assert (told[0], told[3:]) == ("trips", [run, "trips-generic-cpu:1", "2.0 kB", str(tmp_path)])


def test_the_tab_shows_the_fields_and_the_list_of_the_chosen_place():
    shown = [update["visible"] for update in publish.moved("foundry-local")[:7]]
    assert shown == [False, False, False, True, False, False, True]
    assert [update["visible"] for update in publish.moved("local")[:7]] == [
        True,
        *(False,) * 3,
        True,
        False,
        False,
    ]
