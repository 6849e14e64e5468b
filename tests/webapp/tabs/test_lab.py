"""The handlers of the Lab tab, called as Gradio calls them."""

from __future__ import annotations

import errno
import re

import gradio as gr
import pytest
import yaml

from pipeline.errors import LabError
from pipeline.stages.costs import machine
from pipeline.stages.recipe import OPTIONS
from tests.helpers.page import FULL, SAMPLE, failing, values
from webapp import local_models
from webapp.tabs import data, lab
from webapp.ui import preflight_view

GOOD = b'{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'
TEMPLATE = "{prompt} {response}"
SKIP = gr.skip()


def test_the_preview_is_the_recipe_and_its_command(home, inputs):
    text, command, problems, launch, why = lab.preview(
        inputs, *values(inputs, name="my run!", quantize=False, finetune_r=8)
    )
    recipe = yaml.safe_load(text)
    assert (recipe["quantize"], recipe["finetune"]["r"], recipe["data"]) == (None, 8, SAMPLE)
    assert command == "python -m pipeline run my-run.yaml"
    assert (problems, launch["interactive"], why) == (None, True, None)


def test_the_preview_names_what_is_wrong(home, inputs):
    _, _, problems, launch, why = lab.preview(inputs, *values(inputs, name="", finetune_r=None, seed=-1))
    wrong = {item["text"].partition(":")[0]: item["at"] for item in problems["items"]}
    assert wrong == {"Name": "name", "Seed": "seed", "Finetune, Rank (r)": "finetune-r"}
    assert (launch["interactive"], why) == (False, "Launch is off until the 3 points below are put right.")


def test_a_preset_that_cannot_be_set_changes_nothing(home, inputs):
    given = values(inputs, template="{prompt")
    *_, (notice, *changed) = lab.choose_preset(inputs, *given, "quick")
    assert notice["text"].startswith("The preset is not set: template")
    *_, (other, *others) = lab.choose_preset(inputs, *values(inputs), "fast")
    assert other["text"] == "The preset is not set: preset: choose one of those on the page"
    assert [*changed, *others] == [SKIP] * 2 * len(inputs.inputs)


def test_a_form_that_nobody_filled_follows_the_data(home, inputs):
    text, *_ = lab.preview(inputs, *values(inputs))
    finetune = yaml.safe_load(text)["finetune"]
    assert set(lab.SUITED) == {"max_steps", "batch_size", "max_length"}
    assert [finetune[name] for name in lab.SUITED] == ["auto"] * 3


def test_other_data_forget_what_a_preset_chose_by_the_last(home, inputs):
    taken = lab.take(SAMPLE, "chat", "starter", [], "quick")
    assert taken[-3:] == ("auto",) * 3
    assert taken[5:7] == (None, None)
    assert lab.take(SAMPLE, "chat", "starter", [], None)[-3:] == (SKIP,) * 3  # typed by hand
    ((*kept,),) = lab.choose_again(inputs, *values(inputs), None)
    assert kept == [SKIP] * (1 + len(inputs.inputs))
    *_, (notice, *_) = lab.choose_again(inputs, *values(inputs, template="{prompt"), "quick")
    assert notice["text"].startswith("The preset is not set: template")


def test_a_new_form_is_what_a_new_page_has(home, inputs):
    *filled, preset, notice = lab.fresh(inputs)
    plain = [component.value for component in inputs.inputs]
    at = inputs.keys.index(("", "data"))
    assert filled.pop(at) == SAMPLE
    plain.pop(at)
    assert filled == plain
    assert (preset, notice) == (None, None)


def test_a_recipe_with_faults_starts_nothing(store, inputs):
    first, *_, last = lab.launch(inputs, *values(inputs, model="nowhere", template="{prompt"), "ann")
    assert "Checking" in first[0]["text"]
    assert {"model", "template"} <= {item["at"] for item in last[1]["items"]}
    assert store.list() == []


@pytest.mark.parametrize(
    ("error", "words"), [(OSError(errno.ENOSPC, "x"), FULL), (LabError("Locked; try again."), "Locked; try")]
)
def test_what_keeps_a_run_from_starting_is_a_sentence(store, inputs, monkeypatch, error, words):
    monkeypatch.setattr(lab.submit, "submit", failing(error))
    *_, (notice, problems, run, _) = lab.launch(inputs, *values(inputs), "ann")
    assert (notice, run) == (None, SKIP)
    assert problems["items"][0]["text"].startswith(words)
    problems, run, _ = lab.launch_sample("ann")
    assert run == SKIP
    assert problems["items"][0].startswith(words)


def test_a_good_recipe_is_queued(store, inputs, model_folder):
    local_models.offer([model_folder])
    *_, (notice, problems, run, form_update) = lab.launch(
        inputs, *values(inputs, model=str(model_folder), name="mine"), "  Ann\n\x00 B. "
    )
    assert (problems, form_update["open"]) == (None, False)  # what auto became is in the run's recipe
    assert "finetune.max_steps is 98 (auto): " in notice["note"]
    assert store.get(run).recipe["finetune"]["max_steps"] == 98
    assert (store.get(run).recipe["name"], store.get(run).owner) == ("mine", "Ann B.")


def test_what_should_be_known_of_the_data_is_shown_on_launch(store, inputs, uploaded, model_folder):
    local_models.offer([model_folder])
    kept = data.found(uploaded(GOOD * 2), None, TEMPLATE, "starter")[8]["value"]
    given = values(inputs, data=kept, model=str(model_folder), template=TEMPLATE)
    *_, (notice, problems, run, form_update) = lab.launch(inputs, *given, "ann")
    assert notice["text"] == f"Run {run} is queued. About its data:"
    assert notice["note"].endswith("\n2 of 4 rows are copies of an earlier one.")
    assert (problems, form_update["open"]) == (None, True)


def test_what_does_not_fit_names_the_nearest_setting_at_its_field_and_that_is_taken(store, inputs, narrow):
    """What Launch says while it is off, what a click says all the same, and that the setting named fits."""
    local_models.offer([narrow])
    (store.home / machine.FILE).write_text("{}")  # so that none is measured beside other tests

    def given(batch):
        return values(inputs, model=str(narrow), finetune_batch_size=str(batch))

    def beside_launch(batch):
        *_, (*_, problems, launch, why) = preflight_view.show(inputs, lab._recipe, *given(batch))
        return problems, launch["interactive"], why

    problems, is_on, why = beside_launch(512)
    (item,) = problems["items"]
    told = re.fullmatch(
        r"Finetune, Batch size: 512 needs about \S+ GB of memory,"
        r" and 3\.6 GB can be used here; (\d+) fits",
        item["text"],
    )
    assert told, item
    assert item["at"] == "finetune-batch_size"
    assert not is_on
    assert why == f"Launch is off, this does not fit this machine. {item['text']}."
    *_, (_, refused, run, _) = lab.launch(inputs, *given(512), "ann")
    assert (refused["items"], run, store.list()) == ([item], SKIP, [])
    nearest = int(told[1])
    assert beside_launch(2 * nearest)[1] is False
    assert beside_launch(nearest) == (None, True, None)
    *_, (_, refused, run, _) = lab.launch(inputs, *given(nearest), "ann")
    assert refused is None
    assert store.get(run).recipe["finetune"]["batch_size"] == nearest


def test_what_no_option_helps_stands_at_the_stage(store, inputs, model_folder, little_memory):
    local_models.offer([model_folder])
    *_, (_, refused, *_) = lab.launch(inputs, *values(inputs, model=str(model_folder)), "ann")
    assert [item["at"] for item in refused["items"]][:2] == ["quantize-on", "finetune-on"]
    assert refused["items"][1]["text"].startswith("Finetune: needs about ")
    assert store.list() == []


def test_every_stage_has_a_description():
    assert all(len(lab._about(stage)) > 10 for stage in OPTIONS)


def test_a_long_text_that_is_refused_is_not_written_out(home, inputs):
    text, _, problems, *_ = lab.preview(inputs, *values(inputs, template="\x85" * 60_000))
    assert [item["at"] for item in problems["items"]] == ["template"]
    assert len(text) < 40_000
